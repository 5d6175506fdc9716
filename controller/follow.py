"""Follows the managers' log files for a person in the foreground, across rotation.

Called by `cli_up.py`; only reads.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from bus.logs import render

_EVERY_S = 0.2
_BEGINNING = '{"at": "2026-01-31T12:00:00.000000Z"'


class Tail:
    """The end of one log file: gives whole new lines, and goes on with the next file when it is rotated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""
        if path.is_file():
            self._file = path.open("rb")
            self._file.seek(0, 2)

    def lines(self) -> list[str]:
        """Give the lines written since the last time."""
        data = self._rest + self._more()
        *lines, self._rest = data.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def _more(self) -> bytes:
        data = self._file.read() if self._file else b""
        if self._rotated():
            if self._file:
                self._file.close()
            self._file = self._path.open("rb")
            data += self._file.read()
        return data

    def _rotated(self) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        return self._file is None or not os.path.samestat(there, os.fstat(self._file.fileno()))

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


def in_order(lines: Iterable[str]) -> list[str]:
    """Order lines of several files by their instant, with which each JSON line begins; others stay behind theirs."""
    last = ""
    keyed: list[tuple[str, str]] = []
    for line in lines:
        last = line[: len(_BEGINNING)] if line.startswith(_BEGINNING[:7]) else last
        keyed.append((last, line))
    return [line for _, line in sorted(keyed, key=lambda pair: pair[0])]


async def follow(tails: Iterable[Tail], say: Callable[[str], None]) -> None:
    """Say every new line, rendered, for ever."""
    while True:
        for line in in_order([line for tail in tails for line in tail.lines()]):
            say(render(line))
        await asyncio.sleep(_EVERY_S)
