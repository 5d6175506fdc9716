"""What the configuration wants of containers: a spec for each template, pool targets, ports. Called by `service.py`.

Reads the built templates; changes nothing.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from bus.errors import ConfigError
from bus.layout import Layout
from bus.model import new_id
from bus.settings import Config, ContainerLimits, Service
from containerd.container import Container
from containerd.errors import TemplateError
from containerd.spec import Addresses, Limits, Roots, Spec
from containerd.templates import find_template


class Wanted:
    """A configuration as this package reads it; `ConfigError` names the service whose template can't be used."""

    def __init__(self, layout: Layout, config: Config) -> None:
        self.sensor = config.global_.sensor
        self.roots = Roots(containers=layout.containers, cache=layout.boot, instance=layout.instance)
        self.targets: dict[str, int] = {}
        self._specs: dict[str, Spec] = {}
        for service in config.service:
            name = service.container_template
            self.targets[name] = max(self.targets.get(name, 0), service.pool.minimum)
            if name not in self._specs:
                self._specs[name] = self._spec_of(layout, service)

    def spec(self, template: str) -> Spec:
        """Give a new container's spec; `ConfigError` if no service uses the template any more."""
        if template not in self._specs:
            raise ConfigError(f"no service uses the template {template}")
        return self._specs[template].model_copy(update={"id": new_id()})

    def fits(self, container: Container) -> bool:
        """Say whether a container is what would be made now."""
        wanted = self._specs.get(container.spec.template.name)
        return wanted is not None and wanted.model_copy(update={"id": container.id}) == container.spec

    def container_port(self, service: Service) -> int:
        """Give the port that answers in the container; `ConfigError` if no service uses the template any more."""
        if service.container_template not in self._specs:
            raise ConfigError(f"no service uses the template {service.container_template}")
        recipe = self._specs[service.container_template].template.recipe
        return service.container_port or recipe.container_port(service.port)

    def _spec_of(self, layout: Layout, service: Service) -> Spec:
        try:
            template = find_template(layout.templates, service.container_template)
        except TemplateError as error:
            raise ConfigError(f"service {service.name}: {error}") from error
        return Spec(
            id=new_id(),
            template=template,
            roots=self.roots,
            limits=_limits(service.container),
            addresses=addresses(self.sensor, template.name),
        )


def _limits(limits: ContainerLimits) -> Limits:
    return Limits(
        memory_bytes=limits.memory_mib << 20,
        pids=limits.pids,
        cpu_percent=limits.cpu_percent,
        disk_bytes=limits.disk_mib << 20,
    )


def addresses(sensor: str, template: str) -> Addresses:
    """Derive a container's private addresses from the sensor and template: one server always has the same ones."""
    d = hashlib.sha256(f"{sensor}\0{template}".encode()).digest()
    v4 = IPv4Address(bytes((10, d[0], d[1], 0)))
    v6 = IPv6Address(b"\xfd" + d[2:9] + bytes(8))
    host = 10 + d[9] % 200
    return Addresses(
        v4=IPv4Interface((v4 + host, 24)),
        v4_gateway=v4 + 1,
        v6=IPv6Interface((v6 + host, 64)),
        v6_gateway=v6 + 1,
        mac=f"52:54:00:{d[10]:02x}:{d[11]:02x}:{d[12]:02x}",
        gateway_mac=f"52:54:00:{d[13]:02x}:{d[14]:02x}:{d[15]:02x}",
    )
