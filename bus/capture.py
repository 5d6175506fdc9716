"""What is said at storage's door: captures in (from recorder), blobs out (to webui and the command line).

A capture's record travels as a descriptor too, since a container's may be longer than a datagram: the descriptors of an
`Ingest` are the record's JSON first, then one for each of `files`. Both halves are here: the door reads questions with
`read_question`, everybody else asks with `ingest` and `open_blob`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from bus.descriptors import close_all, request
from bus.errors import PeerNonsense, PeerSlow, Refused
from bus.model import Frozen, unpack

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
INGEST_TIMEOUT_S = 120.0
OPEN_TIMEOUT_S = 10.0


class Subject(StrEnum):
    """What a capture is of."""

    SESSION = "session"  # bus.records.SessionRecord
    CONTAINER = "container"  # bus.records.ContainerRecord


class File(StrEnum):
    """A file of a capture; its blob is the record's field of that name."""

    STREAM = "stream"
    HARVEST = "harvest"


class Ingest(Frozen):
    """Keep this capture; descriptors: the record's JSON, then one for each of `files`."""

    ask: Literal["ingest"] = "ingest"
    subject: Subject
    files: tuple[File, ...] = ()


class Open(Frozen):
    """Hand out a blob."""

    ask: Literal["open"] = "open"
    sha256: Sha256


class Ingested(Frozen):
    """The capture is on disk for good: the digests, in the order of `files`."""

    answer: Literal["ingested"] = "ingested"
    sha256s: tuple[Sha256, ...]


class Opened(Frozen):
    """The blob's read-only descriptor comes with this."""

    answer: Literal["opened"] = "opened"
    size_bytes: int


class Failed(Frozen):
    """It was not done, and nothing of it is visible."""

    answer: Literal["failed"] = "failed"
    code: str
    message: str


Question = Ingest | Open
_QUESTION: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="ask")])
_ANSWER: TypeAdapter[Ingested | Opened | Failed] = TypeAdapter(
    Annotated[Ingested | Opened | Failed, Field(discriminator="answer")]
)


def read_question(data: bytes) -> Question:
    """Decode a question; `ValueError` for anything else."""
    return _QUESTION.validate_python(unpack(data))


async def ingest(
    door: Path, question: Ingest, fds: Sequence[int], timeout_s: float = INGEST_TIMEOUT_S
) -> tuple[str, ...]:
    """Hand a capture over and give its files' digests; safe to repeat.

    `PeerDown`, `PeerSlow`, `PeerNonsense`, or `Refused` with storage's code.
    """
    answer, received = await _ask(door, question, fds, timeout_s)
    close_all(received)
    if not isinstance(answer, Ingested):
        raise PeerNonsense(f"storage answered {type(answer).__name__} to a capture")
    return answer.sha256s


async def open_blob(door: Path, sha256: str, timeout_s: float = OPEN_TIMEOUT_S) -> tuple[int, int]:
    """Give a blob's read-only descriptor and its size in bytes; errors as `ingest`, `Refused` with `not_found`."""
    answer, received = await _ask(door, Open(sha256=sha256), (), timeout_s)
    if isinstance(answer, Opened) and len(received) == 1 and os.fstat(received[0]).st_size == answer.size_bytes:
        return received[0], answer.size_bytes
    close_all(received)
    raise PeerNonsense(f"storage answered {type(answer).__name__} with {len(received)} descriptors")


async def _ask(
    door: Path, question: Question, fds: Sequence[int], timeout_s: float
) -> tuple[Ingested | Opened, list[int]]:
    try:
        data, received = await request(door, question.pack(), fds, timeout_s)
    except TimeoutError:
        raise PeerSlow(f"storage did not answer at {door} within {timeout_s:g} s") from None
    try:
        answer = _ANSWER.validate_python(unpack(data))
    except ValueError as error:
        close_all(received)
        raise PeerNonsense(f"storage answered nonsense: {' '.join(str(error).split())[:200]}") from error
    if isinstance(answer, Failed):
        close_all(received)
        raise Refused(answer.code, answer.message)
    return answer, received
