"""Storage's door: captures come in and blobs go out as descriptors. The messages are in `bus.capture`.

Serves recorder, webui and the command line; the socket's file mode says who may come. Blobs are stored before the
document that names them, and both before the answer: what fails in between leaves at most a blob that nobody names yet,
which the repetition finds in place.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from bus.capture import Failed, File, Ingest, Ingested, Open, Opened, Question, Subject, read_question
from bus.descriptors import arrivals, close_all, listen, send, serve
from bus.errors import HoneypotError
from bus.model import Frozen
from bus.records import Blob, ContainerRecord, SessionRecord
from storage.blobs import Blobs
from storage.errors import BadCapture
from storage.store import ID

log = logging.getLogger(__name__)

Record = SessionRecord | ContainerRecord
_ALLOWED: dict[Subject, tuple[File, ...]] = {Subject.SESSION: (File.STREAM,), Subject.CONTAINER: (File.HARVEST,)}
_RECORD_MAX_BYTES = 64 << 20
_AT_ONCE = 8


class Door:
    """Answers at the door; `put` makes a record durable in the document store."""

    def __init__(self, path: Path, blobs: Blobs, put: Callable[[Record], Awaitable[None]]) -> None:
        self._path = path
        self._blobs = blobs
        self._put = put
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def serve(self) -> None:
        """Answer until cancelled."""
        with listen(self._path) as server:
            await serve(server, self._converse)

    async def _converse(self, connection: socket.socket) -> None:
        async for message, fds in arrivals(connection):
            given: list[int] = []
            try:
                async with self._slots:
                    answer, given = await self._answer(message, fds)
                send(connection, answer.pack(), given)
            except OSError as error:
                log.info("an asker left before its answer: %s", error.strerror)
                return
            finally:
                close_all(fds)
                close_all(given)

    async def _answer(self, message: bytes, fds: Sequence[int]) -> tuple[Frozen, list[int]]:
        """Do what is asked; whatever goes wrong is an answer."""
        try:
            return await self._do(read_question(message), fds)
        except HoneypotError as error:
            return Failed(code=error.code, message=str(error)), []
        except ValueError as error:
            return Failed(code="bad_request", message=_one_line(error)), []
        except Exception as error:
            log.exception("a question at the door failed")
            return Failed(code="failed", message=f"{type(error).__name__}: {_one_line(error)}"), []

    async def _do(self, question: Question, fds: Sequence[int]) -> tuple[Frozen, list[int]]:
        if isinstance(question, Open):
            descriptor = await asyncio.to_thread(self._blobs.fetch, question.sha256)
            return Opened(size_bytes=os.fstat(descriptor).st_size), [descriptor]
        return await self._ingest(question, fds), []

    async def _ingest(self, question: Ingest, fds: Sequence[int]) -> Ingested:
        _check(question, len(fds))
        record = await asyncio.to_thread(_read_record, question.subject, fds[0])
        blobs = [await asyncio.to_thread(self._blobs.store, fd) for fd in fds[1:]]
        await self._put(fill(record, dict(zip(question.files, blobs, strict=True))))
        return Ingested(sha256s=tuple(blob.sha256 for blob in blobs))


def _check(question: Ingest, descriptors: int) -> None:
    """Refuse files that the record has no place for, and a wrong number of descriptors."""
    if descriptors != 1 + len(question.files):
        raise BadCapture(f"{descriptors} descriptors came with a record and {len(question.files)} files")
    allowed = _ALLOWED[question.subject]
    if len(set(question.files)) != len(question.files) or not set(question.files) <= set(allowed):
        raise BadCapture(f"a {question.subject} has no place for {', '.join(question.files)}")


def _read_record(subject: Subject, fd: int) -> Record:
    """Read the record's JSON from its descriptor."""
    size = os.fstat(fd).st_size
    if size > _RECORD_MAX_BYTES:
        raise BadCapture(f"a record of {size} bytes is larger than {_RECORD_MAX_BYTES}")
    try:
        text = os.pread(fd, size, 0)
        kind: type[Record] = SessionRecord if subject is Subject.SESSION else ContainerRecord
        record = kind.model_validate_json(text)
    except ValueError as error:
        raise BadCapture(f"not a {subject}'s record: {_one_line(error)}") from error
    if not ID.fullmatch(record.id):
        raise BadCapture(f"{record.id!r} is not an id")
    return record


def fill(record: Record, blobs: dict[File, Blob]) -> Record:
    """Put the blobs into the record's fields of their names."""
    return record.model_copy(update={str(file): blob for file, blob in blobs.items()})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
