"""The controller at work: heartbeats, configuration, pool targets, parking, and what the service manager is told.

Called by `__main__.py` through `bus.manager.main`. Everything here is rebuilt from the others after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from bus import descriptors
from bus.catalogue import (
    Applied,
    Command,
    Configuration,
    ConfigurationApplied,
    ContainerAssigned,
    GetConfiguration,
    GetStatus,
    Reload,
    SetPool,
    Status,
)
from bus.errors import ConfigError, HoneypotError
from bus.events import subscribe
from bus.layout import MANAGERS
from bus.manager import Node
from bus.model import Frozen
from bus.parking import Lot
from controller import desired, pool
from controller.journal import Journal
from controller.monitor import Monitor
from controller.notify import Notifier

log = logging.getLogger(__name__)

_TICK_S = 1.0


class Controller:
    """The service; owns the configuration in force, the rates of arrival and the journal."""

    def __init__(self, node: Node, configuration: Configuration, journal: Journal) -> None:
        self._node = node
        self._journal = journal
        self._reloading = asyncio.Lock()
        self._monitor = Monitor(node, configuration, self._reloading)
        self._rates = pool.NONE
        self._told: tuple[str, dict[str, int]] | None = None  # containerd's life, and the targets it has
        self.notifier = Notifier()
        self.handlers: Mapping[type[Command[Any]], Callable[[Any], Awaitable[Frozen]]] = {
            GetConfiguration: self._configuration,
            GetStatus: self._status,
            Reload: self._reload,
        }

    async def apply(self, configuration: Configuration, *, dry: bool) -> str | None:
        """Take what `reload` has put in force; never objects."""
        log.debug("%d services are configured (dry: %s)", len(configuration.config.service), dry)
        return None

    def health(self) -> tuple[str, dict[str, float]]:
        """Say what is in force, and how many are healthy."""
        statuses = self._monitor.statuses()
        return f"configuration {self._monitor.in_force.configuration}", {
            "managers_healthy": sum(status.healthy for status in statuses),
            "managers_restarts": sum(status.restarts for status in statuses),
        }

    async def follow(self) -> None:
        """Note every event, and count who takes containers."""
        async for received in subscribe(self._node.layout, MANAGERS):
            self._journal.note(received)
            if isinstance(received.event, ContainerAssigned):
                template = received.event.container.template
                self._rates = pool.arrived(self._rates, template, time.monotonic())

    async def tick(self) -> None:
        """Keep containerd's targets and the service manager's knowledge up to date."""
        while True:
            self.notifier.tell(self._monitor.statuses())
            await self._set_pool()
            await asyncio.sleep(_TICK_S)

    async def hang_up(self) -> None:
        """Reload because of a SIGHUP; the answer goes to the log."""
        with contextlib.suppress(HoneypotError):
            await self._reload(Reload())

    async def _set_pool(self) -> None:
        boot = self._monitor.boot("containerd")
        targets = pool.targets(self._monitor.in_force.config, self._rates, time.monotonic())
        if boot is None or (boot, targets) == self._told:
            return
        try:
            await self._node.call("containerd", SetPool(targets=targets))
        except HoneypotError as error:
            log.warning("the pool's targets could not be set: %s", error)
            return
        self._told = (boot, targets)

    async def _configuration(self, _: GetConfiguration) -> Configuration:
        return self._monitor.in_force

    async def _status(self, _: GetStatus) -> Status:
        now = self._monitor.in_force
        return Status(
            sensor=now.config.global_.sensor, configuration=now.configuration, managers=self._monitor.statuses()
        )

    async def _reload(self, _: Reload) -> Applied:
        async with self._reloading:
            try:
                new = await desired.reload(self._node, self._monitor.in_force)
            except ConfigError as error:
                log.error("nothing was changed: %s", error)
                return Applied(problem=str(error))
            self._monitor.in_force = new
        log.info("configuration %s is in force", new.configuration)
        self._node.emit(ConfigurationApplied(configuration=new.configuration))
        return Applied()


@asynccontextmanager
async def start(node: Node, configuration: Configuration) -> AsyncIterator[Controller]:
    """Serve parking and heartbeats for the controller's life."""
    lot = Lot()
    journal = Journal(node.layout.run_dir / "controller")
    door = descriptors.listen(node.layout.park)
    controller = Controller(node, configuration, journal)
    node.spawn(descriptors.serve(door, lot.converse), "parking")
    node.spawn(controller.follow(), "follow-events")
    node.spawn(controller.tick(), "tick")
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: node.spawn(controller.hang_up(), "reload"))
    node.emit(ConfigurationApplied(configuration=configuration.configuration))
    try:
        yield controller
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        door.close()
        lot.close()
        journal.close()
