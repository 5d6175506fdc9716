"""The recorder manager: sweeps the spool and the harvest, a few directories at a time, oldest first.

Started by `__main__` through `bus.manager`. Events only ring its doorbell; what is on disk is what there is to do, so
nothing is lost with this process. Never removes what storage has not answered for.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from bus.catalogue import (
    Command,
    Configuration,
    ContainerDestroyed,
    ContainerStored,
    Flush,
    SessionEnded,
    SessionStarted,
    SessionStored,
    StorageAway,
    Waiting,
)
from bus.errors import BusError, SpoolError
from bus.events import subscribe
from bus.manager import Node
from bus.model import Frozen
from recorder.captures import clear, hand_container, hand_session, set_aside, tell
from recorder.outage import Outage, is_bad_capture, is_outage
from recorder.record import build_record
from recorder.survey import COMPLETE, Found, Seen, State, survey

log = logging.getLogger(__name__)

_AT_ONCE = 4
_SWEEP_EVERY_S = 1.0
_POSTPONE_S = 30.0
_IDLE = frozenset({State.FORMING, State.LIVE})


class Recorder:
    """Owns what was told to storage, what is postponed, and the outage if there is one."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._spool, self._harvest = node.layout.spool, node.layout.harvest
        self._damaged = node.layout.damaged
        self._told: dict[str, Seen] = {}
        self._postponed: dict[Path, float] = {}
        self._outage = Outage()
        self._bell = asyncio.Event()
        self._askers: list[asyncio.Future[int]] = []
        self._waiting = self._stored = self._set_aside = 0
        self._last_error = ""
        self.handlers: Mapping[type[Command[Any]], Callable[[Any], Awaitable[Frozen]]] = {Flush: self._flush}

    async def open(self) -> None:
        """Finish what an earlier life was removing."""
        for root in (self._spool, self._harvest):
            await asyncio.to_thread(clear, root)

    async def apply(self, configuration: Configuration, *, dry: bool) -> str | None:  # noqa: ARG002 - it has no settings of its own
        """Take any configuration."""
        return None

    def health(self) -> tuple[str, dict[str, float]]:
        """What is followed, what waits, and the last thing that went wrong."""
        trouble = f"; storage is away: {self._outage.reason}" if self._outage.lasts else ""
        last = f"; last error: {self._last_error}" if self._last_error and not trouble else ""
        return f"following {len(self._told)} sessions, {self._waiting} captures wait{trouble}{last}", {
            "following": len(self._told),
            "waiting": self._waiting,
            "stored_total": self._stored,
            "damaged_total": self._set_aside,
        }

    async def listen(self) -> None:
        """Let events ring the bell, for ever."""
        events = subscribe(
            self._node.layout, ["session", "containerd"], SessionStarted, SessionEnded, ContainerDestroyed
        )
        async for _ in events:
            self._bell.set()

    async def follow(self) -> None:
        """Sweep, rest, sweep, for ever."""
        while True:
            askers, self._askers = self._askers, []
            await self._sweep()
            for asker in askers:
                if not asker.done():
                    asker.set_result(self._waiting)
            await self._rest()

    async def _rest(self) -> None:
        """Wait for the bell or the next sweep's time; in an outage only somebody who asks cuts the wait short."""
        pause_s = max(_SWEEP_EVERY_S, self._outage.pause_s(time.monotonic()))
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                while not self._askers:
                    await self._bell.wait()
                    self._bell.clear()
                    if not self._outage.lasts:
                        return

    async def _flush(self, _: Flush) -> Waiting:
        asker: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._askers.append(asker)
        self._postponed.clear()
        self._bell.set()
        return Waiting(waiting=await asker)

    async def _sweep(self) -> None:
        found = await asyncio.to_thread(survey, self._spool, self._harvest, dict(self._told))
        there = {each.path.name for each in found}
        self._told = {name: seen for name, seen in self._told.items() if name in there}
        now_s = time.monotonic()
        self._postponed = {path: until for path, until in self._postponed.items() if until > now_s}
        self._waiting = sum(each.state in COMPLETE for each in found)
        work = iter([each for each in found if each.state not in _IDLE and each.path not in self._postponed])
        failure: list[str] = []
        async with asyncio.TaskGroup() as workers:
            for number in range(_AT_ONCE):
                workers.create_task(self._work(work, failure), name=f"hand-over-{number}")
        if failure:
            self._away(failure[0])

    async def _work(self, work: Iterator[Found], failure: list[str]) -> None:
        """Take directories from the shared iterator until it is empty or storage is found to be away."""
        for found in work:
            if failure:
                return
            try:
                await self._handle(found)
            except BusError as error:
                if is_outage(error):
                    failure.append(str(error))
                elif is_bad_capture(error):
                    self._put_aside(found.path, str(error))
                else:
                    self._postpone(found.path, str(error))
            except SpoolError as error:
                self._put_aside(found.path, str(error))
            except OSError as error:
                self._postpone(found.path, f"{error.filename or found.path}: {error.strerror}")
            except Exception as error:  # one directory must not keep the others from storage
                log.exception("%s could not be handled", found.path)
                self._postpone(found.path, f"{type(error).__name__}: {error}")

    async def _handle(self, found: Found) -> None:
        path, state, door = found.path, found.state, self._node.layout.door
        if state is State.NEWS and found.entry and found.seen:
            await tell(door, build_record(found.entry))
            self._told[path.name] = found.seen
        elif state in (State.ENDED, State.TORN):
            record = await hand_session(door, path)
            self._told.pop(path.name, None)
            self._node.emit(SessionStored(session=record.id))
            log.info("stored, %s", record.end_reason, extra={"session": record.id, "service": record.service})
        elif state is State.HARVESTED:
            container = await hand_container(door, path)
            self._node.emit(ContainerStored(container=container.id))
            log.info("stored", extra={"container": container.id, "template": container.template})
        elif state is State.ABANDONED:
            log.warning("%s was begun by a relay that is gone; removed, it held nothing", path)
            await asyncio.to_thread(shutil.rmtree, path)
        elif state is State.DAMAGED:
            self._put_aside(path, found.problem)
        else:
            self._postpone(path, found.problem)
        self._count(state)

    def _count(self, state: State) -> None:
        if state in COMPLETE:
            self._stored += 1
            self._waiting -= 1
        if (state in COMPLETE or state is State.NEWS) and self._outage.succeed():
            log.info("storage takes captures again; %d wait", self._waiting)

    def _away(self, reason: str) -> None:
        """Note a failed sweep; say so once an outage."""
        self._last_error = reason
        if self._outage.fail(reason, time.monotonic()):
            log.error("storage takes no captures, %d wait in the spool: %s", self._waiting, reason)
            self._node.emit(StorageAway(waiting=self._waiting, reason=reason))

    def _postpone(self, path: Path, problem: str) -> None:
        """Leave one directory for later, and go on with the others."""
        self._last_error = problem
        self._postponed[path] = time.monotonic() + _POSTPONE_S
        log.error("%s is tried again in %d s: %s", path, _POSTPONE_S, problem)

    def _put_aside(self, path: Path, problem: str) -> None:
        try:
            moved = set_aside(path, self._damaged)
        except OSError as error:
            self._postpone(path, f"{problem}; and it can't be moved to {self._damaged}: {error.strerror}")
            return
        self._last_error = problem
        self._set_aside += 1
        log.error("%s; kept as %s", problem, moved)


@asynccontextmanager
async def start(node: Node, configuration: Configuration) -> AsyncIterator[Recorder]:  # noqa: ARG001 - bus.manager's shape
    """Start following."""
    recorder = Recorder(node)
    await recorder.open()
    tasks = [node.spawn(recorder.listen(), "doorbell"), node.spawn(recorder.follow(), "follow")]
    try:
        yield recorder
    finally:
        for task in tasks:
            task.cancel()
