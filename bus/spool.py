"""The spool: one directory a session, written by its relay, read by whoever follows it. Format: docs/spool.md.

    SPOOL/<session id>/session.json   what the listener handed over, and the relay's (pid, start time)
                       attached.json  the container, once there is one
                       stream         the bytes, frame by frame, recorded before they were forwarded
                       end.json       why and when it ended; only now is the directory complete

No ZeroMQ here: relays write it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from bus.errors import SpoolError
from bus.model import Frozen, Instant
from bus.process import Mark
from bus.records import ContainerFacts, EndReason, Handoff

MAGIC = b"HPSTREAM\x00\x01"  # eight letters and the version, big-endian u16
_FRAME = struct.Struct("<QBBHI")  # time ns since 1970, direction, kind, zero, length
_END_RESERVE = 4096  # written ahead so that an end can be noted on a full disk
_PAYLOAD_MAX = 1 << 24  # no relay reads as much at once; a larger length is damage
_CHECK_EVERY = 1 << 20  # bytes between looks at the free space
_FILE_MODE = 0o660
_FULL = "no space left on device"


class Direction(IntEnum):
    """Which way bytes went."""

    IN = 0  # attacker to service
    OUT = 1


class Kind(IntEnum):
    """What a frame says."""

    DATA = 0
    FINISHED = 1  # this direction's sender has finished (FIN)
    RESET = 2  # this direction's sender reset the connection


@dataclass(frozen=True)
class Frame:
    """One frame of a stream; `payload` is empty unless `kind` is DATA."""

    at_ns: int
    direction: Direction
    kind: Kind
    payload: bytes = b""


class Opening(Frozen):
    """session.json."""

    handoff: Handoff
    relay: Mark


class Ending(Frozen):
    """end.json. `unsent` bytes were recorded, but the receiver was gone before they reached it."""

    ended_at: Instant
    end_reason: EndReason
    bytes_in: int
    bytes_out: int
    unsent_in: int = 0
    unsent_out: int = 0


@dataclass(frozen=True)
class Entry:
    """A session's directory as it is now."""

    path: Path
    opening: Opening
    container: ContainerFacts | None
    ending: Ending | None


class Writer:
    """A relay's hand on its spool: owns the directory's files until `end`. Every failure to write is a `SpoolError`."""

    def __init__(self, spool: Path, opening: Opening) -> None:
        self.path = spool / opening.handoff.identity.id
        self._min_free = opening.handoff.min_free_mib << 20
        self._unchecked = 0
        self._size = len(MAGIC)
        self._check_free(spool)
        with ExitStack() as undo:
            try:
                self.path.mkdir(mode=0o770)
                undo.callback(shutil.rmtree, self.path)
                self._reserve = _write(self.path / ".end", b" " * _END_RESERVE)
                undo.callback(os.close, self._reserve)
                self._stream = _write(self.path / "stream", MAGIC)
                undo.callback(os.close, self._stream)
                _publish(self.path / "session.json", opening.model_dump_json().encode())
            except OSError as error:
                raise self._unwritable(error.strerror) from error
            undo.pop_all()

    def append(self, at_ns: int, direction: Direction, kind: Kind, payload: bytes | memoryview = b"") -> None:
        """Append a frame; on failure the stream is cut back to its last whole frame."""
        frame = _FRAME.pack(at_ns, direction, kind, 0, len(payload))
        size = len(frame) + len(payload)
        self._unchecked += size
        if self._unchecked > _CHECK_EVERY:
            self._check_free(self.path)
        try:
            written = os.writev(self._stream, [frame, payload])
        except OSError as error:
            raise self._cut(error.strerror) from error
        if written != size:
            raise self._cut(_FULL)
        self._size += size

    def _cut(self, reason: str | None) -> SpoolError:
        os.ftruncate(self._stream, self._size)
        return self._unwritable(reason)

    def _unwritable(self, reason: str | None) -> SpoolError:
        return SpoolError(f"{self.path} can't be written: {reason}")

    def attached(self, container: ContainerFacts) -> None:
        """Note the container."""
        try:
            _publish(self.path / "attached.json", container.model_dump_json().encode())
        except OSError as error:
            raise self._unwritable(error.strerror) from error

    def end(self, ending: Ending) -> None:
        """Note the end in the reserved block; the directory is complete from here on."""
        try:
            os.pwrite(self._reserve, ending.model_dump_json().encode(), 0)
            (self.path / ".end").rename(self.path / "end.json")
        except OSError as error:
            raise self._unwritable(error.strerror) from error
        finally:
            os.close(self._reserve)
            os.close(self._stream)

    def _check_free(self, path: Path) -> None:
        self._unchecked = 0
        try:
            room = os.statvfs(path)
        except OSError as error:
            raise self._unwritable(error.strerror) from error
        if room.f_bavail * room.f_frsize < self._min_free:
            raise self._unwritable(f"less than {self._min_free >> 20} MiB free")


def _write(path: Path, content: bytes) -> int:
    """Write a new file and give its descriptor."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
    if os.write(descriptor, content) == len(content):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.ENOSPC, _FULL)


def _publish(path: Path, content: bytes) -> None:
    """Write a file so that nobody sees half of it."""
    temporary = path.with_name(f".{path.name}")
    os.close(_write(temporary, content))
    temporary.rename(path)


def entries(spool: Path) -> Iterator[Entry]:
    """Give every readable session directory, oldest first."""
    for path in sorted(spool.iterdir()) if spool.is_dir() else []:
        entry = load(path)
        if entry:
            yield entry


def load(path: Path) -> Entry | None:
    """Read one session's directory; None while (or because) it has no opening."""
    try:
        opening = Opening.model_validate_json((path / "session.json").read_bytes())
        container = _read(path / "attached.json")
        ending = _read(path / "end.json")
        return Entry(
            path,
            opening,
            ContainerFacts.model_validate(container) if container else None,
            Ending.model_validate(ending) if ending else None,
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValidationError, json.JSONDecodeError) as error:
        raise SpoolError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def frames(stream: BinaryIO) -> Iterator[Frame]:
    """Give a stream's frames from its start; a torn last frame is its end. `SpoolError` for what no relay writes."""
    if stream.read(len(MAGIC)) != MAGIC:
        raise SpoolError("not a stream of a version known here")
    while len(head := stream.read(_FRAME.size)) == _FRAME.size:
        at_ns, direction, kind, _, length = _FRAME.unpack(head)
        if length > _PAYLOAD_MAX:
            raise SpoolError(f"a frame of {length} bytes")
        payload = stream.read(length)
        if len(payload) < length:
            return
        try:
            yield Frame(at_ns, Direction(direction), Kind(kind), payload)
        except ValueError as error:
            raise SpoolError(f"a frame of an unknown kind: {error}") from error
