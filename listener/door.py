"""Accepting: from a ready listening socket to a connection that is over.

Owns the accepted connections and the readiness of the listening sockets; each connection is one task. Called by
`manager`. Never reads a byte an attacker sent, and never closes a connection that could still wait.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from dataclasses import dataclass

from bus.catalogue import ConnectionRefused
from bus.manager import Node
from bus.model import new_id, now
from bus.records import Endpoint, Handoff, Identity
from bus.settings import Config, Service
from listener.admission import Admission, Ticket, Verdict
from listener.gone import Gone
from listener.handoff import ended, hand_over
from listener.ports import Ports

log = logging.getLogger(__name__)

_AT_ONCE = 64  # accepted in one go before others get their turn
_EXHAUSTED_S = 1.0


@dataclass(frozen=True)
class Arrival:
    """An accepted connection and all that goes with it."""

    ticket: Ticket
    handoff: Handoff
    client: socket.socket
    turn: asyncio.Future[bool]  # True: go on; False: the attacker has gone


class Door:
    """Accepts on every port that may, and sees each connection to its end."""

    def __init__(self, node: Node, ports: Ports, admission: Admission) -> None:
        self.accepted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.ids: set[str] = set()  # of every connection that is not over
        self._node = node
        self._ports = ports
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self._reading: dict[str, socket.socket] = {}
        self._in_line: dict[str, Arrival] = {}
        self._stuck: set[str] = set()  # admitted, but nobody listens at the handoff socket
        self._services: dict[str, Service] = {}
        self._exhausted = False
        self._gone = Gone()

    def configure(self, config: Config, configuration: str) -> None:
        """Take the settings that new connections get, and accept what may now be accepted."""
        self._global = config.global_
        self._configuration = configuration
        self._services = {service.name: service for service in config.service}
        self.advance()

    def pause(self) -> None:
        """Stop accepting; to be called before any listening socket is closed.

        A parked copy keeps the file open, so epoll would go on to report a closed descriptor.
        """
        for sock in self._reading.values():
            self._loop.remove_reader(sock)
        self._reading.clear()

    def close(self) -> None:
        """Stop accepting for good."""
        self.pause()
        self._services = {}
        self._gone.close()

    def advance(self) -> None:
        """Let in from the line whoever fits now, and accept wherever there is room."""
        for ticket in self._admission.advance():
            arrival = self._in_line.pop(ticket.id)
            self._gone.forget(arrival.client)
            if not arrival.turn.done():
                arrival.turn.set_result(True)
        for name, port in self._ports.ports.items():
            self._attend(name, self._may_accept(port.service))

    def _may_accept(self, service: str) -> bool:
        known = service in self._services
        return known and not self._stuck and not self._exhausted and self._admission.open(service)

    def _attend(self, name: str, accepting: bool) -> None:
        """Start or stop looking at one listening socket."""
        sock = self._ports.sockets.get(name)
        if sock and accepting and name not in self._reading:
            self._reading[name] = sock
            self._loop.add_reader(sock, self._ready, name)
        elif not accepting and name in self._reading:
            self._loop.remove_reader(self._reading.pop(name))

    def _ready(self, name: str) -> None:
        """Accept what waits on a listening socket, as long as it may."""
        service = self._ports.ports[name].service
        for _ in range(_AT_ONCE):
            if name not in self._reading or not self._may_accept(service):
                break
            try:
                client, peer = self._reading[name].accept()
            except BlockingIOError:
                break
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._rest(error)
                break
            self._arrive(self._services[service], client, Endpoint(address=peer[0], port=peer[1]))
        self.advance()

    def _rest(self, error: OSError) -> None:
        """Accept nothing for a moment: the process or the host has no descriptor or memory left."""
        log.error("connections can't be accepted: %s", error.strerror)
        self._exhausted = True
        self._loop.call_later(_EXHAUSTED_S, self._rested)

    def _rested(self) -> None:
        self._exhausted = False
        self.advance()

    def _arrive(self, service: Service, client: socket.socket, source: Endpoint) -> None:
        """Bind a connection's identity and find its place."""
        here = client.getsockname()
        identity = Identity(
            id=new_id(),
            sensor=self._global.sensor,
            service=service.name,
            protocol="tcp",
            source=source,
            destination=Endpoint(address=here[0], port=here[1]),
            started_at=now(),
        )
        handoff = Handoff(
            identity=identity,
            service=service,
            min_free_mib=self._global.min_free_mib,
            configuration=self._configuration,
        )
        ticket = Ticket(identity.id, service.name, source.address)
        arrival = Arrival(ticket, handoff, client, self._loop.create_future())
        self.accepted[service.name] += 1
        self.ids.add(ticket.id)
        self._place(arrival, self._admission.arrive(ticket))

    def _place(self, arrival: Arrival, verdict: Verdict) -> None:
        if verdict is Verdict.REFUSED:
            self._refuse(arrival, "too many connections of this source wait already")
            self._finish(arrival)
            return
        if verdict is Verdict.ADMITTED:
            arrival.turn.set_result(True)
        else:
            self._in_line[arrival.ticket.id] = arrival
            self._gone.watch(arrival.client, lambda: _leave_line(arrival))
        self._node.spawn(self._carry(arrival), name=f"connection-{arrival.ticket.id}")

    async def _carry(self, arrival: Arrival) -> None:
        """See one connection from its place in line to its end."""
        service = arrival.handoff.service
        try:
            link = None
            async with asyncio.timeout(service.limits.wait_limit_seconds):
                if await arrival.turn:
                    link = await hand_over(
                        self._node.layout.handoff, arrival.handoff, arrival.client, lambda up: self._met(arrival, up)
                    )
            if link:
                await ended(link)
        except TimeoutError:
            waited = f"its turn did not come within {service.limits.wait_limit_seconds} s"
            away = "no relay took it in time"
            self._refuse(arrival, away if arrival.turn.done() and not arrival.turn.cancelled() else waited)
        finally:
            self._finish(arrival)

    def _met(self, arrival: Arrival, up: bool) -> None:
        """Note whether somebody listens for handed-over connections; while nobody does, nobody is accepted."""
        was_stuck = bool(self._stuck)
        (self._stuck.discard if up else self._stuck.add)(arrival.ticket.id)
        if bool(self._stuck) != was_stuck:
            self.advance()

    def _refuse(self, arrival: Arrival, reason: str) -> None:
        identity = arrival.handoff.identity
        self.refused[identity.service] += 1
        self._node.emit(ConnectionRefused(identity=identity, reason=reason))
        extra = {"session": identity.id, "service": identity.service, "source": identity.source.address}
        log.warning("connection closed: %s", reason, extra=extra)

    def _finish(self, arrival: Arrival) -> None:
        """Forget a connection, and let the next one in."""
        if self._in_line.pop(arrival.ticket.id, None):
            self._gone.forget(arrival.client)
        arrival.client.close()
        self.ids.discard(arrival.ticket.id)
        self._stuck.discard(arrival.ticket.id)
        self._admission.leave(arrival.ticket)
        self.advance()


def _leave_line(arrival: Arrival) -> None:
    """Let a connection that was reset while it waited go its way."""
    if not arrival.turn.done():
        arrival.turn.set_result(False)
