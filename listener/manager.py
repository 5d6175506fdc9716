"""The listener on the bus: its configuration, its figures, and how it starts and stops.

Called by `__main__`. Owns the ports, the door and the conversation about parked sockets.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from bus.catalogue import Command, Configuration
from bus.errors import ConfigError
from bus.manager import Node
from bus.model import Frozen
from bus.parking import Parker
from listener import predecessors
from listener.admission import Admission
from listener.door import Door
from listener.ports import Ports, wanted

log = logging.getLogger(__name__)


class Listener:
    """What the listener offers."""

    handlers: Mapping[type[Command[Any]], Callable[[Any], Awaitable[Frozen]]] = {}

    def __init__(self, node: Node, ports: Ports, parker: Parker, configuration: Configuration) -> None:
        self._node = node
        self._ports = ports
        self._parker = parker
        self._config = configuration.config
        self._digest = configuration.configuration
        self.admission = Admission(self._config)
        self.door = Door(node, ports, self.admission)

    def open(self) -> None:
        """Begin to accept."""
        self.door.configure(self._config, self._digest)

    async def apply(self, configuration: Configuration, *, dry: bool) -> str | None:
        """Bind all new ports, then close the removed; or say which can't be bound and change nothing."""
        config = configuration.config
        then = wanted(config)
        try:
            if dry:
                self._ports.try_out(then)
                return None
            self.door.pause()
            self._ports.apply(then)
        except ConfigError as error:
            self.door.advance()
            return str(error)
        self._config, self._digest = config, configuration.configuration
        self._parker.want(self._ports.sockets)
        self.admission.configure(config)
        self.door.configure(config, self._digest)
        return None

    def health(self) -> tuple[str, dict[str, float]]:
        """Count connections by service."""
        figures: dict[str, float] = {}
        for service in self._config.service:
            label = f'{{service="{service.name}"}}'
            figures[f"connections_accepted_total{label}"] = float(self.door.accepted[service.name])
            figures[f"connections_refused_total{label}"] = float(self.door.refused[service.name])
            figures[f"connections_waiting{label}"] = float(self.admission.waiting(service.name))
            figures[f"connections_live{label}"] = float(self.admission.live(service.name))
        live = sum(self.admission.live(service.name) for service in self._config.service)
        waiting = sum(self.admission.waiting(service.name) for service in self._config.service)
        return f"{len(self._ports.sockets)} ports, {live} live, {waiting} waiting", figures


@asynccontextmanager
async def start(node: Node, configuration: Configuration) -> AsyncIterator[Listener]:
    """Take parked sockets back, bind the others, count what still lives, and open the door."""
    _raise_descriptor_limit()
    ports = Ports()
    parker = Parker(node.layout.park, "listener")
    ports.start(wanted(configuration.config), await parker.take())
    parker.want(ports.sockets)
    listener = Listener(node, ports, parker, configuration)
    try:
        node.spawn(parker.keep(), name="parking")
        asked = asyncio.Event()
        earlier = predecessors.count(node, listener.admission, listener.door.ids, asked, listener.door.advance)
        node.spawn(earlier, name="predecessors")
        await asked.wait()
        listener.open()
        yield listener
    finally:
        listener.door.close()
        ports.close()


def _raise_descriptor_limit() -> None:
    """Allow as many connections at once as the host does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
