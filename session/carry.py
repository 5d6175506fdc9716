"""One session in a relay, from the handed-over connection to `end.json`: spool, container, copy, end.

Called by `relay`. Owns the client's socket, the spool's writer and the attach connection for the session's time. Never
reads from the client before the spool is open and the service connected.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import SO_ERROR, SOL_SOCKET, socket
from typing import Any

from bus import descriptors
from bus.errors import SpoolError
from bus.model import now
from bus.process import mark
from bus.records import AttachRequest, EndReason, Handoff
from bus.spool import Direction, Ending, Kind, Opening, Writer
from session.attach import Answer, Attachment
from session.copy import Copier, Ends, tune
from session.flow import CHUNK_BYTES, Flow
from session.orders import Orders
from session.parting import close_gently, close_with_reset
from session.reports import Happened, Report

_SPOOL_RETRY_S = 1.0
Say = Callable[[Report], None]


class Over(Exception):
    """The session ends before there was anything to copy."""

    def __init__(self, reason: EndReason, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Ground:
    """What every session of a relay stands on."""

    spool: Path
    door: Path
    orders: Orders
    say: Say
    pid: int
    buffer: bytearray


def ground(spool: Path, door: Path, orders: Orders, say: Say, pid: int) -> Ground:
    """Make the ground; the buffer's pages cost nothing before their first use."""
    return Ground(spool, door, orders, say, pid, bytearray(CHUNK_BYTES))


def carry(on: Ground, handoff: Handoff, client: socket) -> None:
    """Live through one session and close the client's socket. `SpoolError` if its end could not be noted."""
    with ExitStack() as closing:
        closing.enter_context(client)
        tune(client)
        reason, detail = _Session(on, handoff, client, closing).live()
    _say(on, handoff, Happened.ENDED, end_reason=reason, detail=detail)


def _say(on: Ground, handoff: Handoff, what: Happened, **more: Any) -> None:
    on.say(Report(relay=on.pid, what=what, identity=handoff.identity, **more))


class _Session:
    def __init__(self, on: Ground, handoff: Handoff, client: socket, closing: ExitStack) -> None:
        self._on = on
        self._handoff = handoff
        self._client = client
        self._closing = closing
        self._flow = Flow(handoff.service.session.timeout_seconds, handoff.service.session.max_bytes)
        self._until_s = time.monotonic() + handoff.service.limits.wait_limit_seconds

    def live(self) -> tuple[EndReason, str]:
        """Spool, attach, copy, end; give the reason and what there is to say about it.

        What is not expected here goes up and ends the relay, and leaves the spool torn.
        """
        writer: Writer | None = None
        service: socket | None = None
        detail = ""
        try:
            writer = self._open_spool()
            attachment = self._attachment()
            service = self._attach(attachment, writer)
            self._flow.start(time.monotonic())
            Copier(self._flow, Ends(self._client, service), writer, self._on.buffer).run(self._on.orders, attachment)
        except Over as over:
            self._flow.stop(over.reason)
            detail = over.detail
        reason = self._flow.ending or EndReason.TORN
        if writer:
            writer.end(_ending(self._flow, reason))
        self._part(reason, service)
        return reason, detail

    def _open_spool(self) -> Writer:
        """Open the spool as soon as it can be written; `Over` when that takes too long."""
        opening = Opening(handoff=self._handoff, relay=mark(self._on.pid))
        while True:
            try:
                return Writer(self._on.spool, opening)
            except SpoolError as error:
                if time.monotonic() >= self._until_s:
                    raise Over(EndReason.SPOOL_FULL, str(error)) from error
            self._wait(None, time.monotonic() + _SPOOL_RETRY_S)

    def _attachment(self) -> Attachment:
        request = AttachRequest(identity=self._handoff.identity, service=self._handoff.service)
        attachment = Attachment(self._on.door, request)
        self._closing.callback(attachment.close)
        return attachment

    def _attach(self, attachment: Attachment, writer: Writer) -> socket:
        """Wait for the socket into the container; `Over` if there is none in time."""
        try:
            while time.monotonic() < self._until_s:
                attachment.knock()
                if self._wait(attachment.sock, self._until_s if attachment.sock else attachment.due_s):
                    answer = attachment.hear()
                    if answer:
                        return self._attached(attachment, writer, answer)
        except Over as over:
            if over.reason is EndReason.CLIENT_RESET:
                with suppress(SpoolError):
                    writer.append(time.time_ns(), Direction.IN, Kind.RESET)
            raise
        except SpoolError as error:
            raise Over(EndReason.SPOOL_FULL, str(error)) from error
        raise Over(EndReason.NO_CONTAINER, "no answer at the attach door in time")

    def _attached(self, attachment: Attachment, writer: Writer, answer: Answer) -> socket:
        container, descriptor = answer.reply.container, answer.descriptor
        if descriptor is None or not descriptors.is_socket(descriptor) or container is None or answer.reply.error:
            descriptors.close_all([descriptor] if descriptor is not None else [])
            raise Over(EndReason.NO_CONTAINER, answer.reply.error or "the attach door answered without a socket")
        service = self._closing.enter_context(socket(fileno=descriptor))
        tune(service)
        attachment.settle(container.id)
        writer.attached(container)
        _say(self._on, self._handoff, Happened.ATTACHED, container=container)
        return service

    def _wait(self, sock: socket | None, until_s: float) -> bool:
        """Wait until a socket is readable (True) or a moment; `Over` if the client resets or an order comes first."""
        orders = self._on.orders
        poll = select.poll()
        poll.register(orders.fileno(), select.POLLIN)
        poll.register(self._client, 0)
        if sock:
            poll.register(sock, select.POLLIN)
        wait_s = max(0.0, min(until_s, self._until_s) - time.monotonic())
        events = dict(poll.poll(int(wait_s * 1000) + 1))
        if orders.fileno() in events:
            orders.clear_wakeup()
        if orders.reason:
            raise Over(orders.reason)
        if self._client.fileno() in events:
            self._client.getsockopt(SOL_SOCKET, SO_ERROR)
            raise Over(EndReason.CLIENT_RESET)
        return bool(sock and sock.fileno() in events)

    def _part(self, reason: EndReason, service: socket | None) -> None:
        """Close both connections the way the reason asks for: a reset goes on as a reset."""
        if reason is EndReason.CLOSED:
            return
        if reason is EndReason.SERVICE_RESET:
            close_with_reset(self._client)
        elif reason is EndReason.CLIENT_RESET:
            if service:
                close_with_reset(service)
        else:
            close_gently(*filter(None, (self._client, service)))


def _ending(flow: Flow, reason: EndReason) -> Ending:
    lane_in, lane_out = flow.lanes
    return Ending(
        ended_at=now(),
        end_reason=reason,
        bytes_in=lane_in.recorded,
        bytes_out=lane_out.recorded,
        unsent_in=lane_in.unsent,
        unsent_out=lane_out.unsent,
    )
