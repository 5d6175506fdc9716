"""One instance's directories, a stand-in for the controller, and real managers as real processes beside it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from bus import process
from bus.catalogue import Command, Configuration, FindSessions, Flush, GetConfiguration, Ping
from bus.errors import BusError
from bus.layout import MANAGERS, Layout
from bus.model import Frozen, instant, new_id
from bus.process import Mark
from bus.records import Endpoint, EndReason, Handoff, Identity, SessionRecord
from bus.rpc import Handler, Server, call_blocking
from bus.settings import Config, Service
from bus.spool import Direction, Ending, Kind, Opening, Writer

T = TypeVar("T")
R = TypeVar("R", bound=Frozen)
Handlers = dict[type[Command[Any]], Handler]


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = 30) -> T:
    """Give the condition's first truthy value."""
    deadline, waiter = time.monotonic() + timeout_s, threading.Event()
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        waiter.wait(0.02)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


class Beside:
    """Runs something in a thread with a loop of its own until it is stopped."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._work)
        self._ready.set()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()


class Instance:
    """Directories under one short root; `start` and `stop` managers at will."""

    def __init__(self, root: Path, controller: Handlers, **sections: dict[str, Any]) -> None:
        self.root = root
        paths = {"run_dir": root / "run", "state_dir": root / "state", "log_dir": root / "log"}
        self.config = Config.model_validate({**sections, "global": {"sensor": "test", **paths}})
        self.layout = Layout.of(self.config.global_)
        for name in MANAGERS:
            (root / "run" / name).mkdir(parents=True)
        self.layout.spool.mkdir(parents=True)
        self.layout.harvest.mkdir()
        self._peers: list[Beside] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.peer("controller", {GetConfiguration: self._configuration, **controller})

    async def _configuration(self, _: GetConfiguration) -> Configuration:
        return Configuration(config=self.config, configuration="digest")

    def peer(self, name: str, handlers: Handlers) -> Beside:
        peer = Beside(Server(self.layout.requests(name), handlers).serve())
        self._peers.append(peer)
        return peer

    def start(self, *names: str, wait: bool = True) -> None:
        for name in names:
            log = (self.root / f"{name}.log").open("ab")
            command = [sys.executable, "-P", "-m", name, "--run-dir", str(self.layout.run_dir)]
            with log:
                self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)
        for name in names if wait else ():
            wait_for(lambda name=name: self._up(name), f"{name} to be up\n{self.log(name)}")  # type: ignore[misc]

    def _up(self, name: str) -> bool:
        assert self.processes[name].poll() is None, self.log(name)
        try:
            return self.ask(name, Ping(), timeout_s=1).pid == self.processes[name].pid
        except BusError:
            return False

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        child = self.processes.pop(name)
        child.send_signal(number)
        return child.wait(20)

    def log(self, name: str) -> str:
        path = self.root / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def ask(self, manager: str, command: Command[R], timeout_s: float = 20) -> R:
        return call_blocking(self.layout, manager, command, timeout_s)

    def flush(self) -> int:
        return self.ask("recorder", Flush(), timeout_s=60).waiting

    def stored(self, **filters: Any) -> list[SessionRecord]:
        sessions: list[SessionRecord] = []
        cursor = None
        while True:
            page = self.ask("storage", FindSessions(limit=1000, cursor=cursor, **filters))
            sessions += page.sessions
            cursor = page.next
            if cursor is None:
                return sessions

    def blob(self, sha256: str) -> bytes:
        return (self.layout.state_dir / "blobs" / sha256[:2] / sha256).read_bytes()

    def session(self, content: bytes = b"hello", *, end: bool = True, relay: Mark | None = None) -> Writer:
        """Write a session into the spool as a relay does."""
        writer = Writer(self.layout.spool, opening(relay))
        now_ns = time.time_ns()
        writer.append(now_ns, Direction.IN, Kind.DATA, content)
        writer.append(now_ns + 1000, Direction.OUT, Kind.DATA, content[::-1] + b"!")
        if end:
            ended_at = instant(now_ns + 2000)
            reason = EndReason.CLOSED
            length = len(content)
            writer.end(Ending(ended_at=ended_at, end_reason=reason, bytes_in=length, bytes_out=length + 1))
        return writer

    def close(self) -> None:
        for name in list(self.processes):
            self.stop(name, signal.SIGKILL)
        for peer in self._peers:
            peer.stop()
        shutil.rmtree(self.root)


def opening(relay: Mark | None = None, address: str = "198.51.100.7") -> Opening:
    """What a relay knows at a session's start."""
    session = new_id()
    identity = Identity(
        id=session,
        sensor="test",
        service="ssh",
        protocol="tcp",
        source=Endpoint(address=address, port=4000),
        destination=Endpoint(address="203.0.113.1", port=22),
        started_at=instant(int(session[:16], 16)),
    )
    service = Service(name="ssh", port=22, container_template="t")
    handoff = Handoff(identity=identity, service=service, min_free_mib=0, configuration="c0ffee")
    return Opening(handoff=handoff, relay=relay or process.mark())


def dead_process() -> Mark:
    """Mark a process that has ended."""
    with subprocess.Popen(["sleep", "60"]) as child:
        mark = process.mark(child.pid)
        child.kill()
    return mark


def record(address: str = "198.51.100.7", service: str = "ssh", at_ns: int = 0, *, live: bool = False) -> SessionRecord:
    """Make a session's record."""
    at_ns = at_ns or time.time_ns()
    return SessionRecord(
        id=f"{at_ns:016x}{os.urandom(4).hex()}",
        sensor="test",
        service=service,
        protocol="tcp",
        source=Endpoint(address=address, port=4000),
        destination=Endpoint(address="203.0.113.1", port=22),
        started_at=instant(at_ns),
        ended_at=None if live else instant(at_ns) + timedelta(seconds=1),
        end_reason=None if live else EndReason.CLOSED,
    )


@contextmanager
def instance(controller: Handlers | None = None, **sections: dict[str, Any]) -> Iterator[Instance]:
    """Make an instance; nothing of it is left."""
    made = Instance(Path(tempfile.mkdtemp(prefix="hp-unit-")), controller or {}, **sections)
    try:
        yield made
    finally:
        made.close()
