"""What relays and the zygote say: one JSON line each on a shared pipe, short enough to be written whole.

Relays write, the zygote counts by them and passes them to the manager. A lost line costs an event, never a session.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from enum import StrEnum

from bus.model import Frozen
from bus.records import ContainerFacts, EndReason, Identity

_DETAIL_MAX = 500


class Happened(StrEnum):
    """What a report is about."""

    IDLE = "idle"  # the relay waits for a connection
    TOOK = "took"  # it took one; identity and template
    ATTACHED = "attached"  # it got its socket into a container
    ENDED = "ended"  # the session is over; identity, reason, detail where something was wrong
    FAILED = "failed"  # the relay met what it did not expect and ends; detail
    DIED = "died"  # said by the zygote: the relay's process is gone


class Report(Frozen):
    """One line: which relay, what happened, and to whom."""

    relay: int
    what: Happened
    identity: Identity | None = None
    template: str = ""
    container: ContainerFacts | None = None
    end_reason: EndReason | None = None
    detail: str = ""


class Sizes(Frozen):
    """The manager's word to the zygote: how many relays to keep idle, and how many there may be at all."""

    spare: int
    total: int


def say(descriptor: int, report: Report) -> None:
    """Write a report to the shared pipe; nobody listening, or nobody for long, is no error."""
    line = report.model_copy(update={"detail": report.detail[:_DETAIL_MAX]}).model_dump_json().encode() + b"\n"
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(descriptor, line)


class Lines:
    """Cuts what comes out of the pipe into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give the lines that are now complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        yield from lines
