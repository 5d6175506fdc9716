"""Who may be served now, who waits, and which services are to stop accepting. Pure.

Three limits: all sessions, one service's, one source's on one service. At the first two nobody is accepted, so the
kernel's backlog waits; at the third the connection is accepted already and waits in silence, in its order. Called by
`door` and `manager`; knows neither sockets nor time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum, auto

from bus.settings import Config, Limits


class Verdict(Enum):
    """What becomes of a connection that was accepted."""

    ADMITTED = auto()
    WAITING = auto()
    REFUSED = auto()  # more of this source wait already than may


@dataclass(frozen=True)
class Ticket:
    """One connection's place: unique by `id`."""

    id: str
    service: str
    source: str


class Admission:
    """Counts live sessions and keeps the line of those that wait."""

    def __init__(self, config: Config) -> None:
        self._live: dict[str, Ticket] = {}
        self._by_service: Counter[str] = Counter()
        self._by_source: Counter[tuple[str, str]] = Counter()
        self._line: dict[str, Ticket] = {}
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take new limits; nobody who is in is put out."""
        self._most = config.global_.max_sessions
        self._limits: dict[str, Limits] = {service.name: service.limits for service in config.service}

    def open(self, service: str) -> bool:
        """Say whether a service is to accept: there is room for one more, live or in line."""
        limits = self._limits.get(service)
        if limits is None or len(self._line) >= self._most:
            return False
        return len(self._live) < self._most and self._by_service[service] < limits.max_sessions

    def arrive(self, ticket: Ticket) -> Verdict:
        """Place a connection that was accepted."""
        waiting = sum(1 for other in self._line.values() if _same(other, ticket))
        if waiting == 0 and self._fits(ticket):
            self._enter(ticket)
            return Verdict.ADMITTED
        limits = self._limits.get(ticket.service)
        if limits and waiting >= limits.max_sessions_per_source:
            return Verdict.REFUSED
        self._line[ticket.id] = ticket
        return Verdict.WAITING

    def enter(self, ticket: Ticket) -> None:
        """Count a session that lives already, whatever the limits say."""
        self._enter(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Forget a connection, live or waiting; twice is no error."""
        self._line.pop(ticket.id, None)
        if self._live.pop(ticket.id, None):
            self._by_service[ticket.service] -= 1
            self._by_source[ticket.service, ticket.source] -= 1
            if not self._by_source[ticket.service, ticket.source]:
                del self._by_source[ticket.service, ticket.source]

    def advance(self) -> list[Ticket]:
        """Admit from the line whoever fits now, first come first; give them."""
        admitted = []
        for ticket in list(self._line.values()):
            if self._fits(ticket):
                del self._line[ticket.id]
                self._enter(ticket)
                admitted.append(ticket)
        return admitted

    def live(self, service: str) -> int:
        """Count a service's live sessions."""
        return self._by_service[service]

    def waiting(self, service: str) -> int:
        """Count a service's connections in line."""
        return sum(1 for ticket in self._line.values() if ticket.service == service)

    def _fits(self, ticket: Ticket) -> bool:
        """Say whether a connection may be served; one whose service is gone waits in vain."""
        limits = self._limits.get(ticket.service)
        return (
            limits is not None
            and len(self._live) < self._most
            and self._by_service[ticket.service] < limits.max_sessions
            and self._by_source[ticket.service, ticket.source] < limits.max_sessions_per_source
        )

    def _enter(self, ticket: Ticket) -> None:
        self._live[ticket.id] = ticket
        self._by_service[ticket.service] += 1
        self._by_source[ticket.service, ticket.source] += 1


def _same(one: Ticket, other: Ticket) -> bool:
    """Say whether two connections count against the same source's limit."""
    return (one.service, one.source) == (other.service, other.source)
