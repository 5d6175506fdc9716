"""What a container shall be: where it lives, how it is addressed, what it may use. Pure values.

Called by everything in this package; a `Spec` is all that `container.create` needs and all that is written on
disk of it.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bus.model import Frozen
from containerd.templates import Template

Mac = Annotated[str, Field(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")]


class Roots(Frozen):
    """Where an instance keeps its containers and what it compiled; `instance` names what lies outside (cgroups)."""

    containers: Path
    cache: Path
    instance: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]

    def directory(self, container: str) -> Path:
        """Give the directory of a container."""
        return self.containers / container


class Limits(Frozen):
    """What one container may use of the host."""

    memory_bytes: Annotated[int, Field(ge=16 << 20)] = 512 << 20
    swap_bytes: Annotated[int, Field(ge=0)] = 0
    pids: Annotated[int, Field(ge=16)] = 256
    cpu_percent: Annotated[int, Field(ge=1)] = 50
    disk_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20


class Addresses(Frozen):
    """The container's own network: `gateway` is what it believes to be its router."""

    v4: IPv4Interface = IPv4Interface("10.20.0.15/24")
    v4_gateway: IPv4Address = IPv4Address("10.20.0.1")
    v6: IPv6Interface = IPv6Interface("fd3c:91d2:7f10:20::15/64")
    v6_gateway: IPv6Address = IPv6Address("fd3c:91d2:7f10:20::1")
    mac: Mac = "52:54:00:6b:3c:58"
    gateway_mac: Mac = "52:54:00:12:35:02"

    def facing(self, source: str) -> str:
        """Give the container's address of the same family as a source."""
        return str(self.v6.ip if ":" in source else self.v4.ip)


class Spec(Frozen):
    """One container to be made. `id` is unique in the instance and safe as a file name."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]
    template: Template
    roots: Roots
    limits: Limits = Limits()
    addresses: Addresses = Addresses()

    @property
    def directory(self) -> Path:
        """Where everything of it is."""
        return self.roots.directory(self.id)
