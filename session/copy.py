"""The copy loop: read, record, send, both ways, until the flow is over. Touches descriptors; `flow` decides.

Called by `carry` with non-blocking sockets and one reusable buffer. Never sends a byte that is not in the spool, and
never blocks but in its one epoll.
"""

from __future__ import annotations

import contextlib
import select
import time
from dataclasses import dataclass
from socket import IPPROTO_TCP, SHUT_WR, SO_OOBINLINE, SOL_SOCKET, TCP_NODELAY, socket

from bus.errors import SpoolError
from bus.records import EndReason
from bus.spool import Direction, Kind, Writer
from session.attach import Attachment
from session.flow import Flow, opposite
from session.orders import Orders

_GONE = select.EPOLLERR | select.EPOLLHUP
_RESETS = {EndReason.CLIENT_RESET: Direction.IN, EndReason.SERVICE_RESET: Direction.OUT}


def tune(sock: socket) -> None:
    """Make a connection non-blocking and transparent: no batching, urgent bytes in line."""
    sock.setblocking(False)
    with contextlib.suppress(OSError):  # already reset, or not TCP
        sock.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)


@dataclass(frozen=True)
class Ends:
    """The two connections, by the direction each is the sender of."""

    client: socket
    service: socket

    def sender(self, direction: Direction) -> socket:
        """Give the connection a direction's bytes come from."""
        return self.client if direction is Direction.IN else self.service


class Copier:
    """Runs one flow over its two connections."""

    def __init__(self, flow: Flow, ends: Ends, writer: Writer, buffer: bytearray) -> None:
        self._flow = flow
        self._ends = ends
        self._writer = writer
        self._view = memoryview(buffer)
        self._epoll = select.epoll()
        self._sides = {ends.sender(direction).fileno(): direction for direction in Direction}
        self._masks: dict[Direction, int | None] = dict.fromkeys(Direction)  # None: not registered
        self._muted: set[Direction] = set()
        self._reset_noted = False

    def run(self, orders: Orders, attachment: Attachment) -> None:
        """Copy until the flow is over; the sockets stay open."""
        with self._epoll:
            self._epoll.register(orders.fileno(), select.EPOLLIN)
            watched: socket | None = None
            while not self._flow.over:
                watched = self._watch(attachment, watched)
                self._arm()
                for descriptor, events in self._epoll.poll(self._patience_s(attachment)):
                    if descriptor in self._sides:
                        self._serve(self._sides[descriptor], events)
                    elif descriptor == orders.fileno():
                        orders.clear_wakeup()
                    else:
                        self._listen(attachment)
                self._tick(orders)

    def _watch(self, attachment: Attachment, watched: socket | None) -> socket | None:
        """Keep the attach connection registered while there is one (a closed one has left the epoll by itself)."""
        attachment.knock()
        if attachment.sock and attachment.sock is not watched:
            self._epoll.register(attachment.sock, select.EPOLLIN)
        return attachment.sock

    def _listen(self, attachment: Attachment) -> None:
        """Take whatever containerd says while the connection is copied; only its end matters."""
        answer = attachment.hear()
        if answer and answer.descriptor is not None:
            socket(fileno=answer.descriptor).close()

    def _patience_s(self, attachment: Attachment) -> float:
        until_s = self._flow.deadline_s if attachment.sock else min(self._flow.deadline_s, attachment.due_s)
        return max(0.0, until_s - time.monotonic())

    def _tick(self, orders: Orders) -> None:
        """Heed signals and time, and record a reset once."""
        if orders.reason:
            self._flow.stop(orders.reason)
        self._flow.expire(time.monotonic())
        if not self._reset_noted and self._flow.ending in _RESETS:
            self._reset_noted = True
            with contextlib.suppress(SpoolError):
                self._record(_RESETS[self._flow.ending], Kind.RESET)

    def _arm(self) -> None:
        """Ask epoll for what can be used now.

        Errors and hang-ups are always told, so a side is taken out while they can't be acted on.
        """
        for side in Direction:
            back = self._flow.lanes[opposite(side)]
            mask = select.EPOLLIN if self._flow.readable_bytes(side) else 0
            mask |= select.EPOLLOUT if back.pending else 0
            if mask:
                self._muted.discard(side)
            elif side in self._muted or (back.shut and not self._flow.lanes[side].speaking):
                self._set_mask(side, None)
                continue
            self._set_mask(side, mask)

    def _set_mask(self, side: Direction, mask: int | None) -> None:
        old = self._masks[side]
        if mask == old:
            return
        self._masks[side] = mask
        descriptor = self._ends.sender(side).fileno()
        if mask is None:
            self._epoll.unregister(descriptor)
        elif old is None:
            self._epoll.register(descriptor, mask)
        else:
            self._epoll.modify(descriptor, mask)

    def _serve(self, side: Direction, events: int) -> None:
        """Do what a side's events allow."""
        try:
            if events & select.EPOLLOUT and self._flow.lanes[opposite(side)].pending:
                self._send(opposite(side))
            if events & (select.EPOLLIN | _GONE) and self._flow.readable_bytes(side):
                self._read(side)
            elif events & _GONE:
                self._gone(side)
        except SpoolError:
            self._flow.stop(EndReason.SPOOL_FULL)

    def _gone(self, side: Direction) -> None:
        """Act on a hang-up of a side that is not to be read now."""
        if self._flow.lanes[opposite(side)].pending:
            self._send(opposite(side))
        elif not self._flow.lanes[side].speaking:
            self._flow.reset(side)
        else:
            self._muted.add(side)

    def _read(self, direction: Direction) -> None:
        size = self._flow.readable_bytes(direction)
        try:
            count = self._ends.sender(direction).recv_into(self._view[:size])
        except BlockingIOError:
            return
        except OSError:
            self._flow.reset(direction)
            return
        if count:
            data = self._view[:count]
            self._record(direction, Kind.DATA, data)
            self._flow.took(direction, data, time.monotonic())
            self._send(direction)
        else:
            self._flow.finished(direction)
            if not self._flow.ending:
                self._record(direction, Kind.FINISHED)
                self._finish(direction)

    def _send(self, direction: Direction) -> None:
        lane = self._flow.lanes[direction]
        try:
            count = self._ends.sender(opposite(direction)).send(lane.pending)
        except BlockingIOError:
            count = 0
        except OSError:
            self._flow.broke(direction)
            return
        self._flow.sent(direction, count, time.monotonic())
        self._finish(direction)

    def _finish(self, direction: Direction) -> None:
        """Pass a FIN on when all before it is sent."""
        if self._flow.lanes[direction].finish_due:
            try:
                self._ends.sender(opposite(direction)).shutdown(SHUT_WR)
            except OSError:
                self._flow.broke(direction)
            else:
                self._flow.shut(direction)

    def _record(self, direction: Direction, kind: Kind, data: memoryview | bytes = b"") -> None:
        self._writer.append(time.time_ns(), direction, kind, data)
