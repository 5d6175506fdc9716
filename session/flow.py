"""What a relayed connection is at this moment: both directions' bytes, half-closes and resets; when and why it ends.

Pure: `copy` tells it what its sockets said and does what it says next. It never reads a clock or touches a descriptor.
A direction's number is also its sender's side (0 the client, 1 the service); its receiver is the other side.
"""

from __future__ import annotations

from bus.records import EndReason
from bus.spool import Direction

CHUNK_BYTES = 256 * 1024
_NOTHING = memoryview(b"")
_RESET_BY = {Direction.IN: EndReason.CLIENT_RESET, Direction.OUT: EndReason.SERVICE_RESET}


def opposite(direction: Direction) -> Direction:
    """Give the other direction."""
    return Direction.OUT if direction is Direction.IN else Direction.IN


class Lane:
    """One direction: what was recorded, what of it is sent, and how far its two ends have closed."""

    def __init__(self) -> None:
        self.recorded = 0
        self.forwarded = 0
        self.pending = _NOTHING  # recorded, not sent; while there is some, the sender is not read
        self.speaking = True  # the sender may still send
        self.shut = False  # the sender's FIN was passed on
        self.broken = False  # the receiver takes nothing any more
        self._borrowed = False  # pending lies in the reader's buffer

    @property
    def unsent(self) -> int:
        """Bytes recorded that the receiver did not get."""
        return self.recorded - self.forwarded

    @property
    def finish_due(self) -> bool:
        """Say whether the sender's FIN is now to be passed on."""
        return not (self.speaking or self.shut or self.broken or self.pending)

    def take(self, data: memoryview) -> None:
        """Note recorded bytes; they may lie in a buffer that is reused after the next `sent` or `drop`."""
        self.recorded += len(data)
        self.pending = data
        self._borrowed = True

    def sent(self, count: int) -> None:
        """Note how much of `pending` was sent, and keep an own copy of the rest."""
        self.forwarded += count
        self.pending = self.pending[count:]
        if self._borrowed and self.pending:
            self.pending = memoryview(bytes(self.pending))
        self._borrowed = False

    def drop(self) -> None:
        """Forget what can't be sent any more; it stays counted as unsent."""
        self.pending = _NOTHING
        self._borrowed = False


class Flow:
    """Both directions and the end they come to; `ending` is set once and stays."""

    def __init__(self, timeout_s: float, max_bytes: int, now_s: float = 0.0) -> None:
        self.lanes = (Lane(), Lane())
        self.ending: EndReason | None = None
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._active_s = now_s
        self._cut = False

    @property
    def over(self) -> bool:
        """Say whether nothing is left to do: an end is known, and what could be sent was."""
        return self._cut or (self.ending is not None and not any(lane.pending for lane in self.lanes))

    @property
    def deadline_s(self) -> float:
        """When inactivity ends it."""
        return self._active_s + self._timeout_s

    def start(self, now_s: float) -> None:
        """Count inactivity from now."""
        self._active_s = now_s

    def readable_bytes(self, direction: Direction) -> int:
        """Say how much may be read from a direction's sender now."""
        lane = self.lanes[direction]
        if self.ending or lane.pending or lane.broken or not lane.speaking:
            return 0
        return min(CHUNK_BYTES, self._max_bytes - sum(lane.recorded for lane in self.lanes))

    def took(self, direction: Direction, data: memoryview, now_s: float) -> None:
        """Note bytes that were read and recorded."""
        self._active_s = now_s
        self.lanes[direction].take(data)
        if sum(lane.recorded for lane in self.lanes) >= self._max_bytes:
            self.ending = self.ending or EndReason.BYTE_LIMIT

    def sent(self, direction: Direction, count: int, now_s: float) -> None:
        """Note how many of the pending bytes were sent."""
        if count:
            self._active_s = now_s
        self.lanes[direction].sent(count)

    def finished(self, direction: Direction) -> None:
        """Note a sender's FIN; from one that takes nothing any more it is what is left of a reset."""
        self.lanes[direction].speaking = False
        if self.lanes[opposite(direction)].broken:
            self.reset(direction)

    def shut(self, direction: Direction) -> None:
        """Note that a sender's FIN was passed on."""
        self.lanes[direction].shut = True
        if all(lane.shut for lane in self.lanes):
            self.ending = self.ending or EndReason.CLOSED

    def reset(self, direction: Direction) -> None:
        """Note that a direction's sender reset the connection."""
        self.lanes[direction].speaking = False
        self.lanes[opposite(direction)].drop()
        self.ending = self.ending or _RESET_BY[direction]

    def broke(self, direction: Direction) -> None:
        """Note that a receiver refused bytes: it has reset, but what it sent before may still be there to read."""
        self.lanes[direction].broken = True
        self.lanes[direction].drop()
        if not self.lanes[opposite(direction)].speaking:
            self.reset(opposite(direction))

    def stop(self, reason: EndReason) -> None:
        """End at once; an end already known stays the reason."""
        self.ending = self.ending or reason
        self._cut = True

    def expire(self, now_s: float) -> None:
        """End if nothing has moved for too long."""
        if now_s >= self.deadline_s:
            self.stop(EndReason.INACTIVE)
