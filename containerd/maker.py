"""Keeps the pool filled and serves who waits for a container first, a few creations at a time. Called by `service.py`.

Owns the ready containers. A template whose containers fail is tried again with a growing pause, never in a spin.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping

from bus.errors import HoneypotError
from containerd.members import Member
from containerd.pool import Stock, backoff_s, next_to_make

log = logging.getLogger(__name__)


class Maker:
    """The pool: `make` creates one container of a template, `discard` ends one that is not wanted any more."""

    def __init__(
        self,
        make: Callable[[str], Awaitable[Member]],
        discard: Callable[[Member], object],
        refused: Callable[[str, HoneypotError], None],
        slots: int,
    ) -> None:
        self._make = make
        self._discard = discard
        self._refused = refused
        self._slots = slots
        self._targets: dict[str, int] = {}
        self._ready: defaultdict[str, deque[Member]] = defaultdict(deque)
        self._waiting: defaultdict[str, deque[asyncio.Future[Member]]] = defaultdict(deque)
        self._making: dict[asyncio.Task[None], str] = {}
        self._failures: defaultdict[str, int] = defaultdict(int)
        self._resting: set[str] = set()
        self._stopped = False

    @property
    def ready(self) -> list[Member]:
        """Every container that stands ready."""
        return [member for members in self._ready.values() for member in members]

    @property
    def waiting(self) -> int:
        """How many attackers wait for a container."""
        return sum(map(len, self._waiting.values()))

    def set_targets(self, targets: Mapping[str, int]) -> None:
        """Keep so many of each template ready from now on; a template not named is kept no more."""
        self._targets = dict(targets)
        for name, members in self._ready.items():
            for _ in range(Stock(len(members), 0, 0, self._targets.get(name, 0)).surplus):
                self._discard(members.popleft())
        self._fill()

    def add(self, member: Member) -> None:
        """Put a container into the pool, or into the hands of who waits for one."""
        waiting = self._waiting[member.facts.template]
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(member)
                return
        self._ready[member.facts.template].append(member)

    def remove(self, member: Member) -> bool:
        """Take a certain container out of the pool; say whether it was in it."""
        members = self._ready[member.facts.template]
        if member not in members:
            return False
        members.remove(member)
        self._fill()
        return True

    async def take(self, template: str) -> Member:
        """Give a ready container, or the next that is made; cancelling gives up the place in the line."""
        if self._ready[template]:
            member = self._ready[template].popleft()
            self._fill()
            return member
        future: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        self._waiting[template].append(future)
        self._fill()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.add(future.result())
            raise

    async def stop(self) -> None:
        """Make no more; wait until what is being made is done."""
        self._stopped = True
        if self._making:
            await asyncio.wait(list(self._making))

    def _fill(self) -> None:
        """Start as many creations as there are slots and needs."""
        if self._stopped:
            return
        names = {*self._targets, *self._waiting} - self._resting
        for name in next_to_make({name: self._stock(name) for name in names}, self._slots - len(self._making)):
            task = asyncio.create_task(self._make_one(name), name=f"make-{name}")
            self._making[task] = name
            task.add_done_callback(self._made)

    def _stock(self, name: str) -> Stock:
        waited_for = sum(not future.done() for future in self._waiting[name])
        making = sum(made == name for made in self._making.values())
        return Stock(len(self._ready[name]), making, waited_for, self._targets.get(name, 0))

    def _made(self, task: asyncio.Task[None]) -> None:
        del self._making[task]
        self._fill()

    async def _make_one(self, name: str) -> None:
        try:
            self.add(await self._make(name))
            self._failures[name] = 0
        except HoneypotError as error:
            self._failures[name] += 1
            self._refused(name, error)
            self._rest(name)

    def _rest(self, name: str) -> None:
        """Leave a failing template alone for a while."""
        self._resting.add(name)

        def wake() -> None:
            self._resting.discard(name)
            self._fill()

        asyncio.get_running_loop().call_later(backoff_s(self._failures[name]), wake)
