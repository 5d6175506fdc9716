"""Containerd's service on the bus: containers by source address, their lifetimes, adoption, drain.

Owns every living container of this instance. Blocking work (mounts, nspawn, harvest) runs in worker threads; this
module only decides. Fail closed: a container whose guards can't be confirmed is destroyed, never handed out.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any, TypeVar

import psutil

from bus import descriptors
from bus.catalogue import (
    Command,
    Configuration,
    ContainerAssigned,
    ContainerCreated,
    ContainerDestroyed,
    ContainerRefused,
    ContainerStatus,
    ContainerStatuses,
    DestroyContainer,
    Done,
    ListContainers,
    SetPool,
)
from bus.errors import HoneypotError, Refused
from bus.manager import Node
from bus.records import AttachRequest, ContainerFacts
from bus.rpc import Handler
from containerd import container, guards
from containerd.appearance import Address, shown_source
from containerd.attach import Answer, converse
from containerd.errors import ContainerError, GuardMissing
from containerd.farewell import farewell
from containerd.maker import Maker
from containerd.members import Assignment, Member, read_assignment
from containerd.network import Endpoint
from containerd.pool import backoff_s
from containerd.templates import discard_unused
from containerd.wanted import Wanted

T = TypeVar("T")
Key = tuple[str, str]  # template, source address
log = logging.getLogger(__name__)

_NEVER_ENTERED_S = 60.0  # how long a container waits for an attacker who left before he got in
_COME_BACK_S = 30.0  # how long an adopted one at least waits for its relays to attach again
_TICK_S = 0.25


class Containers:
    """The service: attach, list, destroy, pool targets, configuration."""

    def __init__(self, node: Node, wanted: Wanted) -> None:
        self._node = node
        self._wanted = wanted
        self._members: dict[str, Member] = {}
        self._owned: dict[Key, asyncio.Task[Member]] = {}
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="container")
        slots = max(2, os.cpu_count() or 2)
        self._maker = Maker(self._make, self._leave, self._refused, slots)
        self._counts = {"created": 0, "refused": 0, "destroyed": 0, "assigned": 0}
        self._creation_ms = 0.0
        self._draining = asyncio.Event()

    # --- what the bus asks --------------------------------------------------------------------------------------------

    @property
    def handlers(self) -> dict[type[Command[Any]], Handler]:
        """Its commands."""
        return {ListContainers: self._list, SetPool: self._set_pool, DestroyContainer: self._destroy}

    async def apply(self, configuration: Configuration, *, dry: bool) -> str | None:
        """Take a configuration: new limits hold for containers made from now on; ready ones are replaced."""
        try:
            wanted = Wanted(self._node.layout, configuration.config)
        except HoneypotError as error:
            return str(error)
        if not dry:
            self._wanted = wanted
            for member in self._maker.ready:
                if not wanted.fits(member.container):
                    self._maker.remove(member)
                    self._leave(member)
            self._maker.set_targets(wanted.targets)
        return None

    def health(self) -> tuple[str, dict[str, float]]:
        """Counts by state, and how creation goes."""
        states = [member.state for member in self._members.values()]
        figures = {f"containers_{state}": float(states.count(state)) for state in set(states)}
        figures |= {f"containers_{name}_total": float(count) for name, count in self._counts.items()}
        figures |= {"containers_waited_for": float(self._maker.waiting), "container_creation_ms": self._creation_ms}
        return f"{len(states)} containers, {len(self._maker.ready)} ready", figures

    async def _list(self, _: ListContainers) -> ContainerStatuses:
        now = asyncio.get_running_loop().time()
        return ContainerStatuses(
            containers=tuple(
                ContainerStatus(
                    container=member.facts,
                    source=member.assignment.source if member.assignment else None,
                    sessions=tuple(sorted(member.live)),
                    state=member.state,
                    leader_pid=member.container.leader_pid,
                    expires_in_s=None if member.expires_at is None else max(0.0, member.expires_at - now),
                )
                for member in sorted(self._members.values(), key=lambda member: member.container.id)
            )
        )

    async def _set_pool(self, command: SetPool) -> Done:
        if not self._draining.is_set():
            self._maker.set_targets({**self._wanted.targets, **command.targets})
        return Done()

    async def _destroy(self, command: DestroyContainer) -> Done:
        if command.container:
            if command.container not in self._members:
                raise Refused("not_found", f"no container {command.container}")
            await asyncio.wait([self._leave(self._members[command.container])])
            return Done()
        self._draining.set()
        self._maker.set_targets({})
        await self._maker.stop()
        leaving = [self._leave(member) for member in list(self._members.values())]
        if leaving:
            await asyncio.wait(leaving)
        return Done()

    # --- what relays ask ----------------------------------------------------------------------------------------------

    async def attach(self, request: AttachRequest) -> Answer:
        """Let a session into its source's container and open a socket to the service there."""
        if request.container:
            return self._stay(request, request.container), None
        member = await self._owner_of(request)
        member.enter(request.identity.id, request.service.session.lifetime_seconds)
        identity, addresses = request.identity, member.container.spec.addresses
        shown = shown_source(identity.source.address, own_addresses(), (addresses.v4.network, addresses.v6.network))
        port = self._wanted.container_port(request.service)
        source = Endpoint(shown, identity.source.port)
        return member.facts, await self._run(member.container.connect, source, port, identity.protocol)

    def left(self, request: AttachRequest) -> None:
        """Note that a session is over."""
        now = asyncio.get_running_loop().time()
        for member in self._members.values():
            if request.identity.id in member.live:
                member.leave(request.identity.id, now)

    def _stay(self, request: AttachRequest, container_id: str) -> ContainerFacts:
        """Take note of a session that is in a container already: this process was restarted meanwhile."""
        member = self._members.get(container_id)
        if member is None or member.assignment is None:
            raise Refused("not_found", f"no container {container_id}")
        member.enter(request.identity.id, request.service.session.lifetime_seconds)
        return member.facts

    async def _owner_of(self, request: AttachRequest) -> Member:
        """Find or assign the container of a source; sessions of one source that come at once share the answer."""
        if self._draining.is_set():
            raise Refused("draining", "containers are being destroyed")
        key = (request.service.container_template, request.identity.source.address)
        if key not in self._owned:
            lifetime_s = request.service.session.lifetime_seconds
            self._owned[key] = asyncio.create_task(self._assign(key, lifetime_s), name=f"assign-{key}")
            self._owned[key].add_done_callback(functools.partial(self._forget_failure, key))
        return await asyncio.shield(self._owned[key])

    def _forget_failure(self, key: Key, task: asyncio.Task[Member]) -> None:
        """Let a source try again after its assignment failed."""
        if (task.cancelled() or task.exception()) and self._owned.get(key) is task:
            del self._owned[key]

    async def _assign(self, key: Key, lifetime_s: float) -> Member:
        """Take a ready container whose guards are all in place, and give it to a source."""
        template, source = key
        while True:
            member = await self._maker.take(template)
            try:
                await self._run(guards.check, member.container.record)
            except GuardMissing as error:
                self._refused(template, error)
                self._leave(member)
                continue
            try:
                member.assign(source, lifetime_s)
            except ContainerError:
                self._maker.add(member)
                raise
            member.expires_at = asyncio.get_running_loop().time() + _NEVER_ENTERED_S
            self._counts["assigned"] += 1
            self._node.emit(ContainerAssigned(container=member.facts, source=source))
            log.info("assigned", extra={"container": member.facts.id, "template": template, "source": source})
            return member

    # --- lives --------------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Adopt what lives, harvest what died in an attacker's hands, clear the rest."""
        now, roots = asyncio.get_running_loop().time(), self._wanted.roots
        await self._run(container.prepare, roots)
        buried: set[str] = set()
        for name in container.list_ids(roots):
            found = await self._run(container.load, roots.directory(name))
            assignment = read_assignment(roots.directory(name))
            if found is None:
                if assignment:
                    buried.add(name)
                    self._node.spawn(self._bury(name, assignment), f"bury-{name}")
                continue
            member = Member(found, assignment)
            self._watch(member)
            if member.assignment:
                self._owned[member.facts.template, member.assignment.source] = _known(member)
                member.touch(now, _COME_BACK_S)
            elif self._wanted.fits(found):
                self._maker.add(member)
            else:
                self._leave(member)
            log.info("adopted", extra={"container": name, "template": member.facts.template})
        await self._run(functools.partial(container.sweep, roots, keep=buried))
        images = {member.facts.image for member in self._members.values()}
        for old in await self._run(discard_unused, self._node.layout.templates, images):
            log.info("removed the replaced template %s", old)
        self._maker.set_targets(self._wanted.targets)

    async def reap(self) -> None:
        """Destroy containers whose lifetime has passed, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            for member in list(self._members.values()):
                if member.expires_at is not None and member.expires_at <= loop.time() and not member.live:
                    self._leave(member)
            await asyncio.sleep(_TICK_S)

    async def _make(self, template: str) -> Member:
        started = time.monotonic()
        made = await self._run(container.create, self._wanted.spec(template))
        member = Member(made)
        self._watch(member)
        self._creation_ms = (time.monotonic() - started) * 1e3
        self._counts["created"] += 1
        self._node.emit(ContainerCreated(container=member.facts, took_ms=self._creation_ms))
        log.debug("created in %.0f ms", self._creation_ms, extra={"container": made.id, "template": template})
        return member

    def _watch(self, member: Member) -> None:
        """Keep a member until its PID 1 ends, by us or by itself."""
        self._members[member.facts.id] = member
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(member.container.pidfd)
            self._maker.remove(member)
            self._leave(member)

        loop.add_reader(member.container.pidfd, ended)

    def _leave(self, member: Member) -> asyncio.Task[None]:
        """Begin a container's end, once; its source gets another one from here on."""
        if member.leaving is None:
            if member.assignment:
                self._owned.pop((member.facts.template, member.assignment.source), None)
            member.leaving = asyncio.create_task(self._end(member), name=f"end-{member.facts.id}")
        return member.leaving

    async def _end(self, member: Member) -> None:
        name = member.facts.id
        harvested = await self._bury(name, member.assignment)
        asyncio.get_running_loop().remove_reader(member.container.pidfd)
        member.container.close()
        self._members.pop(name, None)
        self._counts["destroyed"] += 1
        self._node.emit(ContainerDestroyed(container=member.facts, harvested=harvested))
        log.info("destroyed", extra={"container": name, "template": member.facts.template})

    async def _bury(self, name: str, assignment: Assignment | None) -> bool:
        """End a container however often it takes; say whether it was harvested. A drain is not patient."""
        layout, failures = self._node.layout, 0
        while True:
            last = self._draining.is_set()
            work = functools.partial(farewell, patient=not last)
            try:
                return await self._run(work, self._wanted.roots, name, layout.harvest, self._wanted.sensor, assignment)
            except (HoneypotError, OSError) as error:
                log.error("not destroyed yet: %s", error, extra={"container": name})
                if last:
                    return False
            failures += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff_s(failures)):
                    await self._draining.wait()

    def _refused(self, template: str, error: HoneypotError) -> None:
        self._counts["refused"] += 1
        self._node.emit(ContainerRefused(template=template, reason=str(error)))
        log.error("container refused: %s", error, extra={"template": template})

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run blocking work in a worker thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(work, *arguments))


def _known(member: Member) -> asyncio.Task[Member]:
    """Wrap an adopted owner as an assignment that is done."""

    async def known() -> Member:
        return member

    return asyncio.create_task(known(), name=f"adopted-{member.facts.id}")


def own_addresses() -> set[Address]:
    """List the addresses of this host's interfaces."""
    found = (entry.address.split("%")[0] for host in psutil.net_if_addrs().values() for entry in host if _is_ip(entry))
    return {ip_address(address) for address in found}


def _is_ip(entry: Any) -> bool:
    return entry.family in (socket.AF_INET, socket.AF_INET6)


@asynccontextmanager
async def start(node: Node, configuration: Configuration) -> AsyncIterator[Containers]:
    """Recover, open the attach door, serve. Containers outlive this process; only `DestroyContainer` ends them."""
    containers = Containers(node, Wanted(node.layout, configuration.config))
    await containers.recover()
    with descriptors.listen(node.layout.attach) as door:
        node.spawn(containers.reap(), "reap")
        node.spawn(descriptors.serve(door, functools.partial(converse, containers)), "attach-door")
        yield containers
