"""The controller's place on the bus, for tests of one manager: hands out a configuration, parks sockets, hears events.

Runs in a thread with a loop of its own; the manager under test is a real process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from bus import descriptors
from bus.catalogue import Apply, Command, Configuration, Event, GetConfiguration, Health, Ping
from bus.errors import BusError
from bus.events import subscribe
from bus.layout import Layout
from bus.model import Frozen
from bus.parking import Lot
from bus.rpc import Server, call_blocking
from bus.settings import Config
from tests.unit.session.field import wait_for

R = TypeVar("R", bound=Frozen)


class StandIn:
    """Answers where the controller would."""

    def __init__(self, layout: Layout, config: Config) -> None:
        self.layout = layout
        self.config = config
        self.lot = Lot()
        self.events: list[Event] = []
        self._loop = asyncio.new_event_loop()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="stand-in")
        self._thread.start()

    def serve(self, manager: str, handlers: Mapping[type[Command[Any]], Callable[[Any], Awaitable[Frozen]]]) -> None:
        """Answer commands in a manager's name."""
        self._start(f"{manager}-requests", Server(self.layout.requests(manager), handlers).serve)

    def start(self) -> None:
        """Begin to answer for the configuration and parking."""
        self.serve("controller", {GetConfiguration: self._configuration})
        self.open_parking()

    def open_parking(self) -> None:
        self._start("parking", self._park)

    def close_parking(self) -> None:
        """End as a dying controller does: every parked copy is gone."""
        self._stop("parking")
        self.lot.close()
        self.lot = Lot()

    def hear(self, manager: str) -> None:
        """Collect a manager's events."""
        self._start(f"{manager}-events", lambda: self._collect(manager))

    def close(self) -> None:
        for name in list(self._tasks):
            self._stop(name)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.lot.close()

    def ask(self, manager: str, command: Command[R]) -> R:
        return call_blocking(self.layout, manager, command)

    def apply(self, manager: str, config: Config, *, dry: bool = False) -> str | None:
        """Have a manager take a configuration, as a reload does."""
        if not dry:
            self.config = config
        return self.ask(manager, Apply(config=config, configuration="d2", dry=dry)).problem

    def health(self, manager: str) -> Health | None:
        """Ask once; None while nobody answers."""
        with suppress(BusError):
            return call_blocking(self.layout, manager, Ping(), timeout_s=1)
        return None

    async def _configuration(self, _: GetConfiguration) -> Configuration:
        return Configuration(config=self.config, configuration="d1")

    async def _park(self) -> None:
        with descriptors.listen(self.layout.park) as server:
            await descriptors.serve(server, self.lot.converse)

    async def _collect(self, manager: str) -> None:
        async for received in subscribe(self.layout, [manager]):
            self.events.append(received.event)

    def _start(self, name: str, work: Callable[[], Any]) -> None:
        async def create() -> None:
            self._tasks[name] = asyncio.create_task(work(), name=name)

        asyncio.run_coroutine_threadsafe(create(), self._loop).result()

    def _stop(self, name: str) -> None:
        async def end() -> None:
            task = self._tasks.pop(name)
            task.cancel()
            await asyncio.wait([task])

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()


def layout(root: Path) -> Layout:
    """Make an instance's directories."""
    made = Layout(root / "run", root / "state", root / "log")
    for manager in ("controller", "listener", "session", "containerd"):
        (made.run_dir / manager).mkdir(parents=True)
    made.spool.mkdir(parents=True)
    return made


@contextmanager
def stand_in(made: Layout, config: Config) -> Iterator[StandIn]:
    """Run a stand-in."""
    controller = StandIn(made, config)
    try:
        controller.start()
        yield controller
    finally:
        controller.close()


class Process:
    """A manager as supervisord would start it."""

    def __init__(self, name: str, controller: StandIn, log: Path) -> None:
        self.name = name
        self._controller = controller
        self._log = log
        self._popen = self._start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ready(self) -> Health:
        """Await its first answer."""

        def health() -> Health | None:
            assert self._popen.poll() is None, self.log
            return self._controller.health(self.name)

        found: Health = wait_for(health, f"{self.name} to answer")
        return found

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def again(self) -> None:
        """Start it again."""
        self._popen = self._start()

    def wait(self) -> int:
        """Await its end; give the exit status."""
        return self._popen.wait(20)

    def stop(self) -> int:
        """End it as supervisord would; give the exit status."""
        with suppress(ProcessLookupError):
            os.kill(self._popen.pid, signal.SIGTERM)
        try:
            return self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            run_dir = str(self._controller.layout.run_dir)
            return subprocess.Popen(
                [sys.executable, "-P", "-m", self.name, "--run-dir", run_dir], stdout=log, stderr=subprocess.STDOUT
            )
