"""What is said of sessions and containers: the records that cross process borders and reach the store.

The names here are the names in `--json`, in the API and in the store.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from bus.model import Frozen, Instant
from bus.settings import Service


class EndReason(StrEnum):
    """Why a session ended."""

    CLOSED = "closed"  # both sides finished
    CLIENT_RESET = "client_reset"
    SERVICE_RESET = "service_reset"
    INACTIVE = "inactive"
    BYTE_LIMIT = "byte_limit"
    NO_CONTAINER = "no_container"  # none could be had within the wait limit
    SPOOL_FULL = "spool_full"  # it could not be recorded, so it was not relayed
    OPERATOR = "operator"  # somebody said so
    SHUTDOWN = "shutdown"
    TORN = "torn"  # its relay died; the spool is whole to its last frame


class Endpoint(Frozen):
    """One end of a connection."""

    address: str
    port: Annotated[int, Field(ge=0, le=65535)]


class ContainerFacts(Frozen):
    """Which container served: its id, its template's name and that template's build digest."""

    id: str
    template: str
    image: str


class Identity(Frozen):
    """Who came to what and when, bound once at accept."""

    id: str
    sensor: str
    service: str
    protocol: Literal["tcp", "udp"]
    source: Endpoint
    destination: Endpoint
    started_at: Instant


class Handoff(Frozen):
    """What the listener hands a relay beside the connection: the identity and the settings in force."""

    identity: Identity
    service: Service
    min_free_mib: int
    configuration: str  # digest of the configuration in force


class AttachRequest(Frozen):
    """A relay's question to containerd: the attacker's container, and a socket into it.

    With `container` set the relay already has its socket and only says that it still uses that container
    (containerd was restarted); no descriptor is sent back.
    """

    identity: Identity
    service: Service
    container: str | None = None


class AttachReply(Frozen):
    """Containerd's answer; a descriptor comes with it when `error` is None and the request had no container."""

    container: ContainerFacts | None = None
    error: str | None = None


class Blob(Frozen):
    """Stored bytes by their digest."""

    sha256: str
    size_bytes: int


class SessionRecord(Frozen):
    """One session, as stored and shown. `ended_at` is None while it lives."""

    id: str
    sensor: str
    service: str
    protocol: Literal["tcp", "udp"]
    source: Endpoint
    destination: Endpoint
    started_at: Instant
    ended_at: Instant | None = None
    end_reason: EndReason | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    container: ContainerFacts | None = None
    configuration: str = ""
    stream: Blob | None = None


class ContainerRecord(Frozen):
    """One container that served a source, after its end."""

    id: str
    sensor: str
    template: str
    image: str
    source: str
    sessions: tuple[str, ...]
    created_at: Instant
    destroyed_at: Instant
    deleted: tuple[str, ...] = ()  # paths of the template that were deleted
    harvest: Blob | None = None  # tar of everything created or changed
    harvest_error: str | None = None
