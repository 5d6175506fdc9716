"""A relay: waits at the handoff socket, carries one connection, waits again. Forked by `zygote`; never returns there.

Owns its copy of the listening socket, the reading end of the life pipe and the writing end of the reports. When the
zygote is dead (life pipe at its end) an idle relay ends at once and a busy one after its session. Never writes to a
terminal or a log, never imports ZeroMQ or asyncio.
"""

from __future__ import annotations

import os
import select
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import socket

from bus import descriptors
from bus.errors import PeerNonsense
from bus.records import Handoff
from session.carry import Ground, carry, ground
from session.orders import Orders
from session.reports import Happened, Report, say

_MESSAGE_WAIT_MS = 5000  # the listener sends at once; one that died in between must not hold a relay


@dataclass(frozen=True)
class Inherited:
    """What a relay has from its zygote."""

    handoff: socket
    life: int
    reports: int
    spool: Path
    door: Path


def run(inherited: Inherited) -> int:
    """Be a relay until the zygote's death or an order to go; give the exit status."""
    pid = os.getpid()
    tell = partial(say, inherited.reports)
    try:
        orders = Orders()
        _live(inherited, ground(inherited.spool, inherited.door, orders, tell, pid))
    except Exception:  # noqa: BLE001 - the process ends here, and says why
        tell(Report(relay=pid, what=Happened.FAILED, detail=traceback.format_exc()[-500:]))
        return 1
    return 0


def _live(inherited: Inherited, on: Ground) -> None:
    with select.epoll() as epoll:
        epoll.register(inherited.handoff, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        epoll.register(inherited.life, select.EPOLLIN)
        epoll.register(on.orders.fileno(), select.EPOLLIN)
        on.say(Report(relay=on.pid, what=Happened.IDLE))
        while not (on.orders.retire or on.orders.reason):
            ready = {descriptor for descriptor, _ in epoll.poll()}
            if inherited.life in ready:
                return
            if inherited.handoff.fileno() in ready:
                _accept(inherited.handoff, partial(_serve, on))


def _accept(server: socket, serve: Callable[[socket], None]) -> None:
    """Serve one handoff connection, unless another relay was quicker; it stays open while the session lives."""
    with suppress(BlockingIOError, ConnectionAbortedError):
        link, _ = server.accept()
        with link:
            serve(link)


def _serve(on: Ground, link: socket) -> None:
    taken = _take(link)
    if not taken:
        return
    handoff, client = taken
    on.say(
        Report(
            relay=on.pid,
            what=Happened.TOOK,
            identity=handoff.identity,
            template=handoff.service.container_template,
        )
    )
    carry(on, handoff, client)
    on.say(Report(relay=on.pid, what=Happened.IDLE))


def _take(link: socket) -> tuple[Handoff, socket] | None:
    """Receive what the listener hands over; None if it is gone or makes no sense."""
    poll = select.poll()
    poll.register(link, select.POLLIN)
    if not poll.poll(_MESSAGE_WAIT_MS):
        return None
    try:
        message, fds = descriptors.receive(link)
    except (ConnectionError, PeerNonsense):
        return None
    try:
        handoff = Handoff.unpack(message)
    except ValueError:
        descriptors.close_all(fds)
        return None
    if len(fds) != 1 or not descriptors.is_socket(fds[0]):
        descriptors.close_all(fds)
        return None
    return handoff, socket(fileno=fds[0])
