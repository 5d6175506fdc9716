"""The session manager: answers for relays on the bus, adopts those of its earlier lives, and keeps the zygote's size.

Owns the handoff socket and the zygote. Called by `__main__`. Never touches an attacker's connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from bus import descriptors
from bus.catalogue import Command, Configuration, Done, EndSession, Event, ListLive, LiveSession, LiveSessions
from bus.errors import Refused
from bus.layout import Layout
from bus.manager import Node
from bus.model import Frozen
from bus.parking import Parker
from bus.settings import Config
from bus.spool import Entry
from session.fleet import Fleet, fleet
from session.live import END_REASONS, end, find, live, outlived
from session.reports import Happened, Report, Sizes
from session.roster import Roster

log = logging.getLogger(__name__)

_HANDOFF = "handoff"
_SPARE_MIN, _SPARE_MAX, _SESSIONS_A_SPARE = 4, 16, 32


def sizes(config: Config) -> Sizes:
    """Derive how many relays to keep idle and how many there may be."""
    most = config.global_.max_sessions
    spare = min(_SPARE_MAX, max(_SPARE_MIN, most // _SESSIONS_A_SPARE))
    return Sizes(spare=spare, total=most + spare)


class Sessions:
    """What the session manager offers."""

    def __init__(self, node: Node, running: Fleet, config: Config) -> None:
        self._node = node
        self._fleet = running
        self._sizes = sizes(config)
        self._roster = Roster()
        self.handlers: Mapping[type[Command[Any]], Callable[[Any], Awaitable[Frozen]]] = {
            ListLive: self._list,
            EndSession: self._end,
        }

    async def apply(self, configuration: Configuration, *, dry: bool) -> str | None:
        """Take new sizes; any can be taken."""
        if not dry:
            self._sizes = sizes(configuration.config)
            self._fleet.resize(self._sizes)
        return None

    def health(self) -> tuple[str, dict[str, float]]:
        """Count sessions and relays."""
        roster = self._roster
        figures = {"live": roster.live, "idle": roster.idle, "spare": self._sizes.spare, "waiting": roster.waiting}
        detail = f"{roster.live} live, {roster.waiting} of them waiting for a container, {roster.idle} relays idle"
        return detail, {
            f"sessions_{name}" if name in ("live", "waiting") else f"relays_{name}": float(count)
            for name, count in figures.items()
        }

    async def listen(self) -> None:
        """Hear the zygote for ever; its death goes up and ends the manager."""
        async for report in self._fleet.reports():
            _log(report)
            self._emit(self._roster.heard(report))

    def adopt(self) -> None:
        """Watch every session that an earlier life's relay carries."""
        for entry in live(self._node.layout.spool):
            self._roster.adopted(entry.path.name)
            self._node.spawn(self._watch(entry), name=f"adopted-{entry.path.name}")
            log.info("adopted", extra={"session": entry.path.name})

    async def _watch(self, entry: Entry) -> None:
        reason = await outlived(entry)
        self._emit(self._roster.adopted_ended(entry.path.name, reason))
        log.info("ended: %s", reason, extra={"session": entry.path.name})

    def _emit(self, events: list[Event]) -> None:
        for event in events:
            self._node.emit(event)

    async def _list(self, _: ListLive) -> LiveSessions:
        entries = await asyncio.to_thread(lambda: list(live(self._node.layout.spool)))
        return LiveSessions(
            sessions=tuple(
                LiveSession(
                    identity=entry.opening.handoff.identity,
                    container=entry.container,
                    relay_pid=entry.opening.relay.pid,
                )
                for entry in entries
            )
        )

    async def _end(self, command: EndSession) -> Done:
        if command.reason not in END_REASONS:
            raise Refused("bad_request", f"a session can't be told to end as {command.reason}")
        if not command.session:
            for entry in live(self._node.layout.spool):
                end(entry, command.reason)
            return Done()
        found = find(self._node.layout.spool, command.session)
        if not found:
            raise Refused("not_found", f"there is no live session {command.session}")
        end(found, command.reason)
        return Done()


def _log(report: Report) -> None:
    """Write the line an operator reads, if there is one."""
    if report.what is Happened.FAILED:
        log.error("relay %d failed: %s", report.relay, report.detail)
    if not report.identity:
        return
    extra = {
        "session": report.identity.id,
        "service": report.identity.service,
        "source": report.identity.source.address,
    }
    if report.container:
        extra["container"] = report.container.id
    if report.what is Happened.ENDED:
        level = logging.WARNING if report.detail else logging.INFO
        log.log(level, "ended: %s%s", report.end_reason, f" ({report.detail})" if report.detail else "", extra=extra)
    else:
        log.info("%s", report.what, extra=extra)


@asynccontextmanager
async def start(node: Node, configuration: Configuration) -> AsyncIterator[Sessions]:
    """Take the handoff socket back or make it, start the zygote, adopt, and serve."""
    parker = Parker(node.layout.park, "session")
    handoff = _handoff(node.layout, await parker.take())
    with handoff:
        parker.want({_HANDOFF: handoff})
        node.spawn(parker.keep(), name="parking")
        async with fleet(node.layout, handoff, sizes(configuration.config)) as running:
            sessions = Sessions(node, running, configuration.config)
            sessions.adopt()
            hearing = node.spawn(sessions.listen(), name="zygote-reports")
            try:
                yield sessions
            finally:  # before the connection it reads is closed under it
                hearing.cancel()
                await asyncio.wait((hearing,))


def _handoff(layout: Layout, taken: dict[str, socket.socket]) -> socket.socket:
    """Use the parked socket while its path still leads to it, else bind anew."""
    parked = taken.pop(_HANDOFF, None)
    for sock in taken.values():
        sock.close()
    if parked and layout.handoff.is_socket():
        return parked
    if parked:
        parked.close()
    return descriptors.listen(layout.handoff)
