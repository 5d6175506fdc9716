"""The catalogue of everything said on the bus: events (PUB/SUB) and commands (REQ/REP).

A test walks the source and proves that emitters, handlers, callers and `docs/bus.md` name exactly these. Events may be
lost and then only cost latency; commands carry an id and a deadline and are safe to repeat.
"""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from pydantic import Field

from bus.model import Frozen
from bus.records import ContainerFacts, ContainerRecord, EndReason, Identity, SessionRecord
from bus.settings import Config

R = TypeVar("R", bound=Frozen)


class Event(Frozen):
    """Something that happened; `name` is its topic."""

    name: ClassVar[str]


class Command(Frozen, Generic[R]):
    """A question to one manager; `name` is what the wire calls it, `reply` the answer's type."""

    name: ClassVar[str]
    reply: ClassVar[type[Frozen]]


class Done(Frozen):
    """The answer that says no more than that it was done."""


class Health(Frozen):
    """A manager's answer to a heartbeat: one line for people, figures for metrics."""

    manager: str
    boot: str
    pid: int
    detail: str = ""
    configuration: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)


# --- events -----------------------------------------------------------------------------------------------------------


class SessionStarted(Event):
    """Session: a relay took a connection."""

    name = "session.started"
    identity: Identity
    template: str


class SessionAttached(Event):
    """Session: a relay got its socket into a container."""

    name = "session.attached"
    session: str
    container: ContainerFacts


class SessionEnded(Event):
    """Session: a relay let go of its connection; its spool is complete."""

    name = "session.ended"
    session: str
    end_reason: EndReason


class SessionStored(Event):
    """Recorder: storage has the session's capture."""

    name = "session.stored"
    session: str


class ConnectionRefused(Event):
    """Listener: a connection waited past its limit and was closed."""

    name = "connection.refused"
    identity: Identity
    reason: str


class ContainerCreated(Event):
    """Containerd: a container is ready in the pool."""

    name = "container.created"
    container: ContainerFacts
    took_ms: float


class ContainerAssigned(Event):
    """Containerd: a container was given to a source address."""

    name = "container.assigned"
    container: ContainerFacts
    source: str


class ContainerRefused(Event):
    """Containerd: a container could not be made or lacked a guard, and was not handed out."""

    name = "container.refused"
    template: str
    reason: str


class ContainerDestroyed(Event):
    """Containerd: a container is gone; its harvest, if it served anybody, lies ready."""

    name = "container.destroyed"
    container: ContainerFacts
    harvested: bool


class ContainerStored(Event):
    """Recorder: storage has the container's harvest."""

    name = "container.stored"
    container: str


class StorageAway(Event):
    """Recorder: storage does not take captures; they stay in the spool."""

    name = "storage.away"
    waiting: int
    reason: str


class ConfigurationApplied(Event):
    """Controller: a configuration is in force."""

    name = "configuration.applied"
    configuration: str


class ManagerChanged(Event):
    """Controller: a manager's health changed."""

    name = "manager.changed"
    manager: str
    healthy: bool
    detail: str


EVENTS: dict[str, type[Event]] = {
    event.name: event
    for event in (
        SessionStarted,
        SessionAttached,
        SessionEnded,
        SessionStored,
        ConnectionRefused,
        ContainerCreated,
        ContainerAssigned,
        ContainerRefused,
        ContainerDestroyed,
        ContainerStored,
        StorageAway,
        ConfigurationApplied,
        ManagerChanged,
    )
}


# --- commands every manager answers -----------------------------------------------------------------------------------


class Ping(Command[Health]):
    """How are you?"""

    name = "ping"
    reply = Health


class Applied(Frozen):
    """What a manager says of a configuration: nothing, or why it can't be applied (then nothing changed)."""

    problem: str | None = None


class Apply(Command[Applied]):
    """Take this configuration; with `dry` only say whether it could be taken."""

    name = "apply"
    reply = Applied
    config: Config
    configuration: str
    dry: bool = False


# --- commands of one manager ------------------------------------------------------------------------------------------


class Configuration(Frozen):
    """The configuration in force and its digest."""

    config: Config
    configuration: str


class GetConfiguration(Command[Configuration]):
    """Controller: what is in force?"""

    name = "controller.configuration"
    reply = Configuration


class ManagerStatus(Frozen):
    """One manager as the controller sees it."""

    manager: str
    healthy: bool
    restarts: int
    health: Health | None = None
    problem: str | None = None


class Status(Frozen):
    """The whole instance at a glance."""

    sensor: str
    configuration: str
    managers: tuple[ManagerStatus, ...]


class GetStatus(Command[Status]):
    """Controller: how is everybody?"""

    name = "controller.status"
    reply = Status


class Reload(Command[Applied]):
    """Controller: read the file again and apply it everywhere, or say what is wrong with it and change nothing."""

    name = "controller.reload"
    reply = Applied


class LiveSession(Frozen):
    """A session that is not over."""

    identity: Identity
    container: ContainerFacts | None
    relay_pid: int


class LiveSessions(Frozen):
    """Every session that is not over, oldest first."""

    sessions: tuple[LiveSession, ...]


class ListLive(Command[LiveSessions]):
    """Session: who is connected?"""

    name = "session.live"
    reply = LiveSessions


class EndSession(Command[Done]):
    """Session: end one session, or all of them with `session` empty. Refused with `not_found`."""

    name = "session.end"
    reply = Done
    session: str = ""
    reason: EndReason = EndReason.OPERATOR


class ContainerStatus(Frozen):
    """A container that exists: in the pool while `source` is None."""

    container: ContainerFacts
    source: str | None
    sessions: tuple[str, ...]
    state: str
    leader_pid: int
    expires_in_s: float | None = None


class ContainerStatuses(Frozen):
    """Every container that exists."""

    containers: tuple[ContainerStatus, ...]


class ListContainers(Command[ContainerStatuses]):
    """Containerd: which containers are there?"""

    name = "containerd.containers"
    reply = ContainerStatuses


class SetPool(Command[Done]):
    """Containerd: how many unused containers to keep ready of each template."""

    name = "containerd.pool"
    reply = Done
    targets: dict[str, int]


class DestroyContainer(Command[Done]):
    """Containerd: destroy one container, or all and stop filling the pool with `container` empty."""

    name = "containerd.destroy"
    reply = Done
    container: str = ""


class Waiting(Frozen):
    """How many captures storage does not have yet."""

    waiting: int


class Flush(Command[Waiting]):
    """Recorder: hand over everything that is complete, now."""

    name = "recorder.flush"
    reply = Waiting


class SessionPage(Frozen):
    """Sessions, newest first; `next` continues the listing and is None at its end."""

    sessions: tuple[SessionRecord, ...]
    next: str | None = None


class FindSessions(Command[SessionPage]):
    """Storage: sessions that match every given filter, newest first."""

    name = "storage.sessions"
    reply = SessionPage
    service: str | None = None
    source: str | None = None  # an address or a network
    since: str | None = None  # an instant, ISO 8601
    limit: int = 50
    cursor: str | None = None


class GetSession(Command[SessionRecord]):
    """Storage: one session. Refused with `not_found`."""

    name = "storage.session"
    reply = SessionRecord
    session: str


class GetContainer(Command[ContainerRecord]):
    """Storage: one destroyed container. Refused with `not_found`."""

    name = "storage.container"
    reply = ContainerRecord
    container: str


COMMANDS: dict[str, type[Command[Frozen]]] = {
    command.name: command  # type: ignore[misc]
    for command in (
        Ping,
        Apply,
        GetConfiguration,
        GetStatus,
        Reload,
        ListLive,
        EndSession,
        ListContainers,
        SetPool,
        DestroyContainer,
        Flush,
        FindSessions,
        GetSession,
        GetContainer,
    )
}
