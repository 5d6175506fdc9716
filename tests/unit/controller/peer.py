"""A tiny manager for the controller's tests: really on the bus, run as a process: python -P peer.py NAME RUN_DIR.

Answers heartbeats and configurations (it objects to a service named "poison-NAME"), notes what it is told under
RUN_DIR/NAME, and, as containerd, tells of 40 containers taken when told to destroy "demand".
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from bus.catalogue import Applied, Apply, ContainerAssigned, DestroyContainer, Done, Health, Ping, SetPool
from bus.events import Publisher
from bus.layout import Layout
from bus.model import new_id
from bus.records import ContainerFacts
from bus.rpc import Handler, Server


class Peer:
    """Its answers, and its memory of them."""

    def __init__(self, name: str, layout: Layout) -> None:
        self._name = name
        self._boot = new_id()
        self._publisher = Publisher(layout, name)
        self._place = layout.run_dir / name
        self._configuration = ""

    def handlers(self) -> dict[type, Handler]:
        """Give all of them."""
        return {Ping: self.ping, Apply: self.apply, SetPool: self.set_pool, DestroyContainer: self.demand}

    async def ping(self, _: Ping) -> Health:
        """Be healthy."""
        return Health(
            manager=self._name, boot=self._boot, pid=os.getpid(), detail="fine", configuration=self._configuration
        )

    async def apply(self, command: Apply) -> Applied:
        """Note it, and object to poison."""
        self.note("applies", f"{'dry' if command.dry else 'real'} {command.configuration}")
        if any(service.name == f"poison-{self._name}" for service in command.config.service):
            return Applied(problem="this is poison")
        if any(service.name == f"late-{self._name}" for service in command.config.service) and not command.dry:
            return Applied(problem="it did not work after all")
        if not command.dry:
            self._configuration = command.configuration
        return Applied()

    async def set_pool(self, command: SetPool) -> Done:
        """Note it."""
        self.note("pools", f"{self._boot} {sorted(command.targets.items())}")
        return Done()

    async def demand(self, _: DestroyContainer) -> Done:
        """Tell of many containers taken at once."""
        facts = ContainerFacts(id="c", template="one", image="i")
        for number in range(40):
            self._publisher.emit(ContainerAssigned(container=facts, source=f"198.51.100.{number}"))
        return Done()

    def note(self, file: str, line: str) -> None:
        """Append a line."""
        with (self._place / file).open("a") as notes:
            notes.write(line + "\n")


def main() -> None:
    """Serve until killed."""
    name, run_dir = sys.argv[1], Path(sys.argv[2])
    layout = Layout(run_dir, run_dir, run_dir)
    asyncio.run(Server(layout.requests(name), Peer(name, layout).handlers()).serve())


if __name__ == "__main__":
    main()
