"""Attacker's bytes as text that is safe to look at, and a stream as rows of a table. Pure.

Escaping for HTML is the templates' business (autoescape); here, everything that is not plainly visible is spelt out:
control characters, terminal escapes, text direction marks, combining marks, invalid UTF-8.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bus.spool import Direction, Frame, Kind

_HEX_WIDTH = 16
_NAMES = {"\n": "\\n\n", "\r": "\\r", "\t": "\\t"}
_COMBINING = ("Mn", "Me", "Mc")
_LATIN_END = 0x100
_BMP_END = 0x10000


@dataclass(frozen=True)
class Row:
    """One frame as shown: seconds since the session's start, `in` or `out`, what it was, and its bytes."""

    offset_s: float
    direction: str
    kind: str
    size_bytes: int
    text: str


def visible(data: bytes | str) -> str:
    """Write bytes as text in which everything invisible or misleading is an escape; lines stay lines."""
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    return "".join(map(_spell, text))


def _spell(char: str) -> str:
    if char in _NAMES:
        return _NAMES[char]
    if char.isprintable() and unicodedata.category(char) not in _COMBINING:
        return char
    code = ord(char)
    if code < _LATIN_END:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < _BMP_END else f"\\U{code:08x}"


def hexdump(data: bytes) -> str:
    """Write bytes as lines of offset, hex and ASCII."""
    lines = []
    for start in range(0, len(data), _HEX_WIDTH):
        part = data[start : start + _HEX_WIDTH]
        ascii_ = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)  # noqa: PLR2004 - ASCII's visible range
        lines.append(f"{start:06x}  {part.hex(' '):<{_HEX_WIDTH * 3}} {ascii_}")
    return "\n".join(lines)


def rows(frames: Iterable[Frame], started_ns: int, limit_bytes: int, *, as_hex: bool) -> Iterator[Row]:
    """Give a row for each frame until so many bytes were shown."""
    left = limit_bytes
    for frame in frames:
        shown = frame.payload[:left]
        yield Row(
            (frame.at_ns - started_ns) / 1e9,
            frame.direction.name.lower(),
            frame.kind.name.lower(),
            len(frame.payload),
            hexdump(shown) if as_hex else visible(shown),
        )
        left -= max(len(shown), 1)
        if left <= 0:
            return


def payloads(frames: Iterable[Frame], direction: Direction) -> Iterator[bytes]:
    """Give one direction's bytes."""
    return (frame.payload for frame in frames if frame.direction is direction and frame.kind is Kind.DATA)
