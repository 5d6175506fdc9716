"""What a person may set: the configuration's one declaration (name, type, default, sentence).

The parser, the error lines and `config.toml.example` derive from these models. The controller loads them;
the managers get them over the bus.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bus.model import Frozen

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
LogLevel = Literal["debug", "info", "warning", "error"]
Count = Annotated[int, Field(strict=True, ge=1)]
Amount = Annotated[int, Field(strict=True, ge=0)]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]

PRIVATE_NETWORKS = (
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
)


def _listed(value: Any) -> Any:
    """Let one value stand for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


class GlobalSettings(Frozen):
    """`[global]`: the sensor as a whole."""

    sensor: Name = Field(
        default_factory=lambda: socket.gethostname().split(".")[0].lower()[:63],
        description="This sensor's name, carried by every record (default: the host's name)",
    )
    bind_address: Annotated[tuple[Address, ...], BeforeValidator(_listed)] = Field(
        (IPv4Address(0), IPv6Address(0)),
        min_length=1,
        description="The address, or list of addresses, the services' ports are bound on",
    )
    log_level: LogLevel = Field("info", description="How much is logged: debug, info, warning or error")
    log_dir: Path = Field(Path("/var/log/honeypot"), description="Where each manager's log file is")
    state_dir: Path = Field(Path("/var/lib/honeypot"), description="Templates, containers, spool, blobs and database")
    run_dir: Path = Field(Path("/run/honeypot"), description="Sockets; gone after a reboot")
    recipe_dir: Path = Field(
        Path("/etc/honeypot/templates"), description="Your own template recipes, beside the shipped ones"
    )
    max_sessions: Count = Field(500, description="Live sessions at once; more wait in the kernel's backlog")
    min_free_mib: Amount = Field(
        256, description="Free space to keep on state_dir's filesystem; sessions end rather than use it"
    )


class Capture(Frozen):
    """What is kept of a session beside its streams."""

    pty: Flag = Field(True, description="Keep a terminal transcript")
    pcap: Flag = Field(True, description="Keep the packets")
    metadata: Flag = Field(True, description="Keep decoded metadata")


class SessionLimits(Frozen):
    """How long and how large one session may be."""

    timeout_seconds: Count = Field(600, description="End a session after this long without a byte either way")
    max_bytes: Count = Field(67108864, description="End a session after this many bytes, both ways together")
    lifetime_seconds: Amount = Field(3600, description="Keep a source's container this long after its last session")


class Limits(Frozen):
    """How many sessions a service takes."""

    max_sessions: Count = Field(500, description="Live sessions of this service; more wait in the backlog")
    max_sessions_per_source: Count = Field(
        32, description="Live sessions of one source address on this service; more wait, accepted and silent"
    )
    wait_limit_seconds: Count = Field(
        30, description="How long a connection may wait for its turn or its container before it is closed"
    )


class Pool(Frozen):
    """How many unused containers of the service's template stand ready."""

    minimum: Amount = Field(2, description="Containers ready even when nobody comes")
    maximum: Amount = Field(16, description="Containers ready at the most")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError("minimum is above maximum")
        return self


class ContainerLimits(Frozen):
    """What one container may use of the host."""

    memory_mib: Annotated[int, Field(strict=True, ge=32)] = Field(
        512, description="Memory, files in it included, in MiB"
    )
    cpu_percent: Count = Field(50, description="Processor time, in percent of one processor")
    pids: Annotated[int, Field(strict=True, ge=16)] = Field(256, description="Processes and threads")
    disk_mib: Annotated[int, Field(strict=True, ge=8)] = Field(
        256, description="What may be written to its disk, in MiB"
    )


class Service(Frozen):
    """`[[service]]`: one port and the template that answers on it."""

    name: Name = Field(description="The service's name in records and logs")
    port: Port = Field(description="The port attackers connect to")
    protocol: Literal["tcp"] = Field("tcp", description="The transport: tcp")
    container_template: Name = Field(description="The template whose containers answer")
    container_port: Port | None = Field(
        None, description="The port in the container (default: the same if it answers, else its first)"
    )
    capture: Capture = Field(Capture(), description="What is kept beside the streams")
    session: SessionLimits = Field(SessionLimits(), description="Limits of one session")
    limits: Limits = Field(Limits(), description="Admission limits")
    pool: Pool = Field(Pool(), description="Containers ready in advance")
    container: ContainerLimits = Field(ContainerLimits(), description="Limits of one container")


class StorageSettings(Frozen):
    """`[storage]`: where records are kept."""

    backend: Literal["sqlite"] = Field("sqlite", description="The document store: sqlite")
    url: str = Field("", description="Where it is (sqlite: a file; empty: under state_dir)")


class WebuiSettings(Frozen):
    """`[webui]`: the API and the page, for the local network only."""

    address: Annotated[tuple[Literal["lan"] | Address, ...], BeforeValidator(_listed)] = Field(
        ("lan",),
        min_length=1,
        description='"lan" (loopback and this host\'s private addresses) or a list of addresses',
    )
    port: Port = Field(8000, description="The page's port")
    allow: tuple[Network, ...] = Field(
        tuple(IPv6Network(n) if ":" in n else IPv4Network(n) for n in PRIVATE_NETWORKS),
        description="Networks whose clients are answered; all must be private",
    )
    host_names: tuple[str, ...] = Field(
        (), description="Names, beside addresses and localhost, that a browser may use for this host"
    )

    @model_validator(mode="after")
    def _private(self) -> Self:
        for network in self.allow:
            if not any(_within(network, private) for private in PRIVATE_NETWORKS):
                raise ValueError(f"allow: {network} is not private")
        return self


def _within(network: Network, private: str) -> bool:
    """Say whether a network lies in a private one, across address families."""
    if isinstance(network, IPv4Network):
        return ":" not in private and network.subnet_of(IPv4Network(private))
    return ":" in private and network.subnet_of(IPv6Network(private))


class Config(Frozen):
    """A whole configuration file."""

    global_: GlobalSettings = Field(GlobalSettings(), alias="global")
    service: tuple[Service, ...] = ()
    storage: StorageSettings = StorageSettings()
    webui: WebuiSettings = WebuiSettings()
