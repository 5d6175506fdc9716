"""A session as text for a person. Pure but for reading the stream; called by `cli_sessions.py`.

An attacker's bytes never reach the terminal as they are: everything but printable ASCII is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import BinaryIO

from bus.model import iso
from bus.records import Endpoint, SessionRecord
from bus.spool import Direction, Frame, Kind, frames

_ARROWS = {Direction.IN: "->", Direction.OUT: "<-"}
_ENDS = {Kind.FINISHED: "(finished)", Kind.RESET: "(reset)"}
_ESCAPES = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x5C: "\\\\"}
_WIDTH = 100
_PRINTABLE = range(0x20, 0x7F)


def record_lines(record: SessionRecord) -> Iterator[str]:
    """Give the record, a line for each thing."""
    container = record.container
    image = f"{container.id} ({container.template}, image {container.image[:12]})" if container else "none"
    yield f"session      {record.id}"
    yield f"sensor       {record.sensor}"
    yield f"service      {record.service} ({record.protocol})"
    yield f"source       {_endpoint(record.source)}"
    yield f"destination  {_endpoint(record.destination)}"
    yield f"started      {iso(record.started_at)}"
    yield f"ended        {f'{iso(record.ended_at)} ({record.end_reason})' if record.ended_at else 'not yet'}"
    yield f"bytes        {record.bytes_in} in, {record.bytes_out} out"
    yield f"container    {image}"
    yield f"stream       {record.stream.sha256 if record.stream else 'in the spool'}"
    yield ""


def _endpoint(endpoint: Endpoint) -> str:
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"{host}:{endpoint.port}"


def stream_lines(stream: BinaryIO, started_at: datetime) -> Iterator[str]:
    """Give the stream: seconds since the start, an arrow (-> from the attacker), the bytes."""
    start_ns = int(started_at.timestamp() * 1e9)
    for frame in frames(stream):
        head = f"{max(0, frame.at_ns - start_ns) / 1e9:10.3f} {_ARROWS[frame.direction]} "
        for text in _texts(frame):
            yield head + text
            head = " " * len(head)


def _texts(frame: Frame) -> Iterator[str]:
    """Give a frame's text: a line of the text for each line of the bytes, long ones folded."""
    if frame.kind != Kind.DATA:
        yield _ENDS[frame.kind]
        return
    for line in frame.payload.splitlines(keepends=True):
        text = escape(line)
        yield from (text[at : at + _WIDTH] for at in range(0, len(text), _WIDTH))


def escape(data: bytes) -> str:
    r"""Write bytes as printable ASCII, the rest as \n, \t or \x1b; no two inputs look the same."""
    return "".join(_ESCAPES.get(byte) or (chr(byte) if byte in _PRINTABLE else f"\\x{byte:02x}") for byte in data)
