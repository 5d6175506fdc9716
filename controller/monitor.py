"""Asks every manager for a heartbeat, tells of changes, and has supervisord restart one that hangs.

Called by `service.py`. Never restarts the controller itself.
"""

from __future__ import annotations

import asyncio
import logging
import time

from bus.catalogue import Apply, Configuration, ManagerChanged, ManagerStatus, Ping
from bus.errors import HoneypotError
from bus.layout import MANAGERS
from bus.manager import Node
from controller import health
from controller.health import Condition
from controller.supervisor import State, Supervisor

log = logging.getLogger(__name__)

EVERY_S = 2.0
DEADLINE_S = 5.0


class Monitor:
    """Owns what is known of every manager; one task a manager keeps it up to date."""

    def __init__(self, node: Node, in_force: Configuration, reloading: asyncio.Lock) -> None:
        self._node = node
        self._reloading = reloading
        self._supervisor = Supervisor(node.layout.supervisor)
        self.in_force = in_force
        now_s = time.monotonic()
        self._known = {manager: Condition(manager, now_s) for manager in MANAGERS}
        for manager in MANAGERS:
            node.spawn(self._watch(manager), f"heartbeat-{manager}")

    def statuses(self) -> tuple[ManagerStatus, ...]:
        """Tell how everybody is."""
        return tuple(self._known[manager].status() for manager in MANAGERS)

    def boot(self, manager: str) -> str | None:
        """Tell which life of a manager answers at present; None if none does."""
        known = self._known[manager]
        return known.health.boot if known.healthy and known.health else None

    async def _watch(self, manager: str) -> None:
        while True:
            await self._beat(manager)
            await asyncio.sleep(EVERY_S if self._known[manager].healthy else EVERY_S / 4)

    async def _beat(self, manager: str) -> None:
        before = self._known[manager]
        try:
            heard = await self._node.call(manager, Ping(), timeout_s=DEADLINE_S)
            after = health.answered(before, heard, time.monotonic())
        except HoneypotError as error:
            after = health.missed(before, str(error), time.monotonic())
        self._known[manager] = after
        self._tell(before, after)
        if after.healthy and not after.misses:
            await self._align(after)
        elif manager != "controller" and health.restart_due(after, time.monotonic()):
            await self._restart(after)

    def _tell(self, before: Condition, after: Condition) -> None:
        """Log and publish a change of health, or a new life."""
        reborn = after.restarts > before.restarts
        if after.healthy == before.healthy and not reborn:
            return
        detail = after.problem or (after.health.detail if after.health else "")
        if reborn:
            log.warning("%s was restarted and is healthy", after.manager)
        elif after.healthy:
            log.info("%s is healthy", after.manager)
        else:
            log.error("%s is not healthy: %s", after.manager, detail)
        self._node.emit(ManagerChanged(manager=after.manager, healthy=after.healthy, detail=detail))

    async def _align(self, condition: Condition) -> None:
        """Give the configuration in force to a manager that came up with the one before."""
        wanted = self.in_force
        if condition.health is None or condition.health.configuration == wanted.configuration:
            return
        if self._reloading.locked():
            return
        try:
            command = Apply(config=wanted.config, configuration=wanted.configuration)
            applied = await self._node.call(condition.manager, command, timeout_s=DEADLINE_S)
        except HoneypotError as error:
            log.warning("%s has another configuration than the one in force: %s", condition.manager, error)
            return
        if applied.problem:
            log.error("%s can't take the configuration in force: %s", condition.manager, applied.problem)

    async def _restart(self, condition: Condition) -> None:
        """Have supervisord end it and start it; one that was stopped on purpose stays stopped."""
        name = condition.manager
        try:
            program = await asyncio.to_thread(self._supervisor.program, name)
            if program.state == State.STOPPED:
                return
            log.error("%s does not answer: restarting it", name)
            await asyncio.to_thread(self._supervisor.kill, name)
            if program.state in (State.FATAL, State.EXITED):
                await asyncio.to_thread(self._supervisor.start, name)
        except HoneypotError as error:
            log.error("%s can't be restarted: %s", name, error)
        self._known[name] = health.restarted(condition, time.monotonic())
