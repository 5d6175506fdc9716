"""The life every manager leads: get the configuration, recover, serve, stop. Called by each `__main__.py`.

A manager is an async context manager that gives a `Service`; a task of it that fails ends the process (crash-only),
and supervisord starts it again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bus import logs
from bus.catalogue import (
    Applied,
    Apply,
    Command,
    Configuration,
    Event,
    GetConfiguration,
    Health,
    Ping,
)
from bus.errors import HoneypotError, PeerDown, PeerSlow
from bus.events import Publisher
from bus.layout import Layout
from bus.model import Frozen
from bus.rpc import Handler, Server, call
from bus.settings import GlobalSettings

R = TypeVar("R", bound=Frozen)
T = TypeVar("T")
log = logging.getLogger(__name__)


class Node:
    """This process on the bus: its name, paths, publisher and tasks."""

    def __init__(self, name: str, layout: Layout, tasks: asyncio.TaskGroup) -> None:
        self.name = name
        self.layout = layout
        self._tasks = tasks
        self._publisher = Publisher(layout, name)

    @property
    def boot(self) -> str:
        """This life's id."""
        return self._publisher.boot

    def emit(self, event: Event) -> None:
        """Publish an event."""
        self._publisher.emit(event)

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run a named task for the manager's life; its failure ends the manager."""
        return self._tasks.create_task(work, name=name)

    async def call(self, manager: str, command: Command[R], timeout_s: float = 5) -> R:
        """Ask another manager; errors as `bus.rpc.call`."""
        return await call(self.layout, manager, command, timeout_s)


class Service(Protocol):
    """What a manager offers once it runs."""

    @property
    def handlers(self) -> Mapping[type[Command[Any]], Callable[[Any], Awaitable[Frozen]]]:
        """Its own commands."""

    async def apply(self, configuration: Configuration, *, dry: bool) -> str | None:
        """Take a configuration, or say in one line why not and change nothing; with `dry` only say."""

    def health(self) -> tuple[str, dict[str, float]]:
        """One line for people, figures for metrics."""


Start = Callable[[Node, Configuration], AbstractAsyncContextManager[Service]]
Fetch = Callable[[Layout], Awaitable[Configuration]]


def main(name: str, start: Start, fetch: Fetch | None = None) -> None:
    """Run a manager until SIGTERM or SIGINT: the whole of a `__main__.py`. Exits 1 with one line on a failure."""
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("--run-dir", type=Path, required=True)
    layout = Layout.of(GlobalSettings(run_dir=parser.parse_args().run_dir))
    os.umask(0o007)
    logs.start(name)
    failed = False
    try:
        asyncio.run(_live(name, layout, start, fetch or _ask_controller))
    except* HoneypotError as group:
        failed = True
        for error in _leaves(group):
            log.error("%s", error)
    if failed:
        raise SystemExit(1)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Give the errors of a group and of the groups in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _live(name: str, layout: Layout, start: Start, fetch: Fetch) -> None:
    """Serve until a signal; every task of the manager lives in one group."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    life = asyncio.create_task(_serve(name, layout, start, fetch), name=name)
    stop = asyncio.create_task(stopping.wait(), name="stop")
    await asyncio.wait((life, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not life.done():
        life.cancel()
        await asyncio.wait((life,))
    if not life.cancelled():
        life.result()


async def _serve(name: str, layout: Layout, start: Start, fetch: Fetch) -> None:
    configuration = await fetch(layout)
    settings = configuration.config.global_
    logs.set_level(settings.log_level)
    async with asyncio.TaskGroup() as tasks:
        node = Node(name, Layout.of(settings), tasks)
        async with start(node, configuration) as service:
            common = _Common(node, service, configuration.configuration)
            server = Server(node.layout.requests(name), {**service.handlers, **common.handlers})
            log.info("%s is up", name)
            await server.serve()


async def _ask_controller(layout: Layout) -> Configuration:
    """Get the configuration, however long the controller takes to come up."""
    while True:
        try:
            return await call(layout, "controller", GetConfiguration(), timeout_s=10)
        except (PeerDown, PeerSlow) as error:
            log.warning("waiting for the configuration: %s", error)


class _Common:
    """What every manager answers: heartbeat and configuration."""

    def __init__(self, node: Node, service: Service, configuration: str) -> None:
        self._node = node
        self._service = service
        self._configuration = configuration
        self.handlers: dict[type[Command[Any]], Handler] = {Ping: self._ping, Apply: self._apply}

    async def _ping(self, _: Command[Frozen]) -> Health:
        detail, metrics = self._service.health()
        return Health(
            manager=self._node.name,
            boot=self._node.boot,
            pid=os.getpid(),
            detail=detail,
            configuration=self._configuration,
            metrics=metrics,
        )

    async def _apply(self, command: Any) -> Applied:
        configuration = Configuration(config=command.config, configuration=command.configuration)
        problem = await self._service.apply(configuration, dry=command.dry)
        if problem is None and not command.dry:
            logs.set_level(command.config.global_.log_level)
            self._configuration = command.configuration
        return Applied(problem=problem)
