"""Who is connected, as relays report it, and the events that follow. Pure: `manager` emits what it returns."""

from __future__ import annotations

from dataclasses import dataclass

from bus.catalogue import Event, SessionAttached, SessionEnded, SessionStarted
from bus.records import EndReason
from session.reports import Happened, Report


@dataclass
class _Relay:
    session: str | None = None
    attached: bool = False


class Roster:
    """Relays of this manager's zygote, and sessions of earlier ones that still live."""

    def __init__(self) -> None:
        self._relays: dict[int, _Relay] = {}
        self._adopted: set[str] = set()

    def heard(self, report: Report) -> list[Event]:
        """Note a report; give the events to emit."""
        if report.what is Happened.DIED:
            relay = self._relays.pop(report.relay, _Relay())
            return [_ended(relay.session, EndReason.TORN)] if relay.session else []
        relay = self._relays.setdefault(report.relay, _Relay())
        if report.what is Happened.IDLE:
            self._relays[report.relay] = _Relay()
        if report.identity is None:
            return []
        session = report.identity.id
        if report.what is Happened.TOOK:
            self._relays[report.relay] = _Relay(session)
            return [SessionStarted(identity=report.identity, template=report.template)]
        if report.what is Happened.ATTACHED and report.container:
            relay.attached = True
            return [SessionAttached(session=session, container=report.container)]
        if report.what is Happened.ENDED and report.end_reason:
            self._relays[report.relay] = _Relay()
            return [_ended(session, report.end_reason)]
        return []

    def adopted(self, session: str) -> None:
        """Note a session whose relay is an earlier zygote's."""
        self._adopted.add(session)

    def adopted_ended(self, session: str, reason: EndReason) -> list[Event]:
        """Note such a session's end; give the events to emit."""
        self._adopted.discard(session)
        return [_ended(session, reason)]

    @property
    def live(self) -> int:
        """Sessions that are not over."""
        return len(self._adopted) + sum(1 for relay in self._relays.values() if relay.session)

    @property
    def idle(self) -> int:
        """Relays without a session."""
        return sum(1 for relay in self._relays.values() if not relay.session)

    @property
    def waiting(self) -> int:
        """Sessions that have no container yet."""
        return sum(1 for relay in self._relays.values() if relay.session and not relay.attached)


def _ended(session: str, reason: EndReason) -> SessionEnded:
    return SessionEnded(session=session, end_reason=reason)
