"""What a session's directory says as one `SessionRecord`. Pure, but for reading a stream it is given.

Called by `recorder.captures`. A torn session has no ending of its own: its stream is asked instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

from bus.model import instant
from bus.records import EndReason, SessionRecord
from bus.spool import MAGIC, Direction, Entry, Kind, frames


@dataclass(frozen=True)
class Tally:
    """A stream, counted: when its last whole frame was written, its bytes by direction, and where that frame ends."""

    last_at: datetime | None
    bytes_in: int
    bytes_out: int
    whole_bytes: int


def tally(stream: BinaryIO) -> Tally:
    """Count a stream's whole frames; `SpoolError` if it is no stream."""
    moved = {Direction.IN: 0, Direction.OUT: 0}
    last_at, whole = None, len(MAGIC)
    for frame in frames(stream):
        if frame.at_ns == 0 or (frame.kind is Kind.DATA and not frame.payload):
            break  # zeros: the file's length reached the disk before a power cut, its content did not
        moved[frame.direction] += len(frame.payload)
        last_at, whole = instant(frame.at_ns), stream.tell()
    return Tally(last_at, moved[Direction.IN], moved[Direction.OUT], whole)


def build_record(entry: Entry, torn: Tally | None = None) -> SessionRecord:
    """Build a session's record: finished by its ending, torn where its stream was counted, else still living."""
    identity = entry.opening.handoff.identity
    living = SessionRecord(
        **{name: getattr(identity, name) for name in type(identity).model_fields},
        container=entry.container,
        configuration=entry.opening.handoff.configuration,
    )
    if entry.ending:
        names = ("ended_at", "end_reason", "bytes_in", "bytes_out")
        return living.model_copy(update={name: getattr(entry.ending, name) for name in names})
    if torn:
        return living.model_copy(
            update={
                "ended_at": max(torn.last_at or identity.started_at, identity.started_at),
                "end_reason": EndReason.TORN,
                "bytes_in": torn.bytes_in,
                "bytes_out": torn.bytes_out,
            }
        )
    return living
