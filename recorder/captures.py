"""Handing one directory over: its record and its file to storage's door, and the directory's end afterwards.

Called by `recorder.service`, several at a time. Removes a directory only when storage has answered that it has all of
it, and renames it first: a directory that is half removed must not be taken for a torn session.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import ValidationError

from bus.capture import File, Ingest, Subject, ingest
from bus.errors import SpoolError
from bus.model import Frozen
from bus.records import ContainerRecord, SessionRecord
from bus.spool import load
from recorder.record import Tally, build_record, tally

_DONE = ".done-"


async def tell(door: Path, record: SessionRecord) -> None:
    """Let storage know a live session."""
    with _open(record, None) as fds:
        await ingest(door, Ingest(subject=Subject.SESSION), fds)


async def hand_session(door: Path, path: Path) -> SessionRecord:
    """Hand a whole or torn session over; `SpoolError` if the directory is damaged, bus errors, `OSError`."""
    record = await asyncio.to_thread(_session_record, path)
    with _open(record, path / "stream") as fds:
        await ingest(door, Ingest(subject=Subject.SESSION, files=(File.STREAM,)), fds)
    await asyncio.to_thread(remove, path)
    return record


async def hand_container(door: Path, path: Path) -> ContainerRecord:
    """Hand a container's harvest over; errors as `hand_session`."""
    record = await asyncio.to_thread(_container_record, path)
    tar = path / "upper.tar"
    files = (File.HARVEST,) if tar.exists() else ()
    with _open(record, tar if files else None) as fds:
        await ingest(door, Ingest(subject=Subject.CONTAINER, files=files), fds)
    await asyncio.to_thread(remove, path)
    return record


def remove(path: Path) -> None:
    """Remove a directory in two steps, of which the first is whole or not at all."""
    done = path.rename(path.with_name(f"{_DONE}{path.name}"))
    shutil.rmtree(done)


def clear(root: Path) -> None:
    """Finish the removals that an earlier life began."""
    for leftover in root.glob(f"{_DONE}*"):
        shutil.rmtree(leftover)


def set_aside(path: Path, damaged: Path) -> Path:
    """Move a damaged directory out of everybody's way and tell where it is now."""
    damaged.mkdir(mode=0o770, exist_ok=True)
    target, number = damaged / path.name, 1
    while target.exists():
        number += 1
        target = damaged / f"{path.name}.{number}"
    return path.rename(target)


def _session_record(path: Path) -> SessionRecord:
    entry = load(path)
    if entry is None:
        raise SpoolError(f"{path} has no session.json")
    identity = entry.opening.handoff.identity
    if identity.id != path.name:
        raise SpoolError(f"{path} says that it is {identity.id!r}")
    if not (path / "stream").is_file():
        raise SpoolError(f"{path} has no stream")
    return build_record(entry, None if entry.ending else _cut(path / "stream"))


def _cut(stream: Path) -> Tally:
    """Cut a dead relay's stream back to its last whole frame, and count it."""
    with stream.open("r+b") as file:
        counted = tally(file)
        if os.fstat(file.fileno()).st_size != counted.whole_bytes:
            os.ftruncate(file.fileno(), counted.whole_bytes)
    return counted


def _container_record(path: Path) -> ContainerRecord:
    try:
        record = ContainerRecord.model_validate_json((path / "container.json").read_bytes())
    except ValidationError as error:
        raise SpoolError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
    if record.id != path.name:
        raise SpoolError(f"{path} says that it is {record.id!r}")
    return record


@contextmanager
def _open(record: Frozen, file: Path | None) -> Iterator[list[int]]:
    """Give the descriptors of a capture: its record's, then its file's."""
    with ExitStack() as closing:
        fds = [os.memfd_create("record", os.MFD_CLOEXEC)]
        closing.callback(os.close, fds[0])
        os.write(fds[0], record.model_dump_json().encode())
        if file:
            fds.append(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
            closing.callback(os.close, fds[1])
        yield fds
