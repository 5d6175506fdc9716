"""Makes, adopts and ends containers. Blocking: called in worker threads by `service.py` and `pool.py`, several at a time.

A container is a directory CONTAINERS/ID; everything else of it (mounts, namespaces, control groups, processes, user ids) is
found from that, so that what a crash left half made or half ended can be ended by `erase` in another life.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from bus.model import now
from containerd import cgroup, guards, launch, network, procfs, syscalls, tree, uidrange
from containerd.bootroot import boot_root
from containerd.errors import ContainerError, NotReady, StillAlive
from containerd.harvest import Harvest, harvest
from containerd.launch import Process
from containerd.record import Record, read_record
from containerd.spec import Roots, Spec

START_TIMEOUT_S = 20.0
_KILL_TIMEOUT_S = 10.0
_POLL_S = 0.001
_OOM_SCORE = 500  # when the host itself is short of memory, attackers go first
_PROPAGATE = Path("/run/systemd/nspawn/propagate")


@dataclass(frozen=True)
class Container:
    """A running container with every guard in place. Close it when it is let go; that ends nothing."""

    record: Record
    pidfd: int  # nspawn's: readable when the container has ended
    steps: tuple[tuple[str, float], ...] = ()  # how long each step of making it took, in milliseconds

    @property
    def id(self) -> str:
        """Its id."""
        return self.record.spec.id

    @property
    def spec(self) -> Spec:
        """What was asked for."""
        return self.record.spec

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self.record.spec.directory

    @property
    def leader_pid(self) -> int:
        """The host's number of its PID 1."""
        if self.record.leader is None:
            raise AssertionError("a container has a leader")
        return self.record.leader.pid

    @property
    def is_alive(self) -> bool:
        """Say whether it still runs."""
        return not procfs.ended(self.pidfd, 0) and self.record.is_alive

    def connect(
        self, source: network.Endpoint, port: int, kind: Literal["tcp", "udp"] = "tcp", timeout_s: float = 5
    ) -> network.socket.socket:
        """Open a socket to one of its services that carries `source` as its own address and port; `Unreachable`."""
        destination = network.Endpoint(self.spec.addresses.facing(source.address), port)
        if ip_address(source.address) == ip_address(destination.address):
            raise ContainerError(f"{source.address} is the container's own address")
        return network.open_socket(self.directory / "netns", source, destination, kind, timeout_s)

    def close(self) -> None:
        """Give back the descriptor."""
        os.close(self.pidfd)


class _Watch:
    """Notes how long each step took."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.steps: list[tuple[str, float]] = []

    def lap(self, name: str) -> None:
        at = time.perf_counter()
        self.steps.append((name, (at - self._last) * 1000))
        self._last = at


def prepare(roots: Roots) -> None:
    """Make the instance's place for containers: a mount of its own, so that nothing mounted in it shows elsewhere."""
    roots.containers.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = str(roots.containers.resolve())
    if all(entry.point != place for entry in procfs.mounts()):
        syscalls.mount(place, place, "", syscalls.MS_BIND)
    syscalls.mount("none", place, "", syscalls.MS_PRIVATE)
    boot_root(roots.cache)


def create(spec: Spec, timeout_s: float = START_TIMEOUT_S) -> Container:
    """Make a container whose services answer and whose guards are all confirmed; a failure leaves nothing behind."""
    deadline_s, watch = time.monotonic() + timeout_s, _Watch()
    spec.directory.mkdir(mode=0o700)
    with ExitStack() as undo:
        undo.callback(erase, spec.roots, spec.id)
        record = Record(spec=spec, base=uidrange.claim(spec.roots.containers, spec.id), created_at=now())
        record.write()
        group = cgroup.group(spec.roots.instance, spec.id)
        group.create(spec.limits)
        watch.lap("group")
        tree.build(spec, record.base)
        watch.lap("tree")
        nspawn, pidfd = _start(record, group, undo)
        watch.lap("spawn")
        record = _boot(record, nspawn, pidfd, deadline_s, watch)
        group.confine(spec.limits)
        guards.check(record)
        watch.lap("guards")
        record = record.model_copy(update={"ready": True})
        record.write()
        undo.pop_all()
    return Container(record, pidfd, tuple(watch.steps))


def _start(record: Record, group: cgroup.Group, undo: ExitStack) -> tuple[Process, int]:
    """Start nspawn; its descriptor is closed and its exit collected when the making fails."""
    what = launch.command(record.spec, record.base, boot_root(record.spec.roots.cache), group)
    pid = launch.start(what, _log(record.spec))
    pidfd = os.pidfd_open(pid)

    def forget() -> None:  # runs before `erase`, so that it does not find a zombie
        group.kill()
        procfs.ended(pidfd, _KILL_TIMEOUT_S)
        launch.reap(pidfd)
        os.close(pidfd)

    undo.callback(forget)
    nspawn = Process.of(pid)
    if nspawn is None:
        raise NotReady("systemd-nspawn ended at once")
    record.model_copy(update={"nspawn": nspawn}).write()
    return nspawn, pidfd


def _boot(record: Record, nspawn: Process, pidfd: int, deadline_s: float, watch: _Watch) -> Record:
    """Bring the network up while the system starts, and wait until its services listen."""
    spec, gateway = record.spec, record.spec.directory / "netns"
    network.hold_gateway(gateway)
    watch.lap("gateway")
    pid = launch.first_process(nspawn.pid, pidfd, _log(spec), deadline_s)
    Path(f"/proc/{pid}/oom_score_adj").write_text(str(_OOM_SCORE))
    leader = Process.of(pid)
    record = record.model_copy(update={"nspawn": nspawn, "leader": leader})
    record.write()
    watch.lap("first process")
    network.join(gateway, pid, spec.addresses)
    watch.lap("cable")
    launch.await_init(pid, pidfd, _log(spec), deadline_s)
    tree.leave_to_container(spec.directory)
    watch.lap("init")
    _await_answers(record, pidfd, deadline_s)
    watch.lap("services")
    return record


def _await_answers(record: Record, pidfd: int, deadline_s: float) -> None:
    """Wait until every port of the recipe is listened on. Seen from outside: a probe would show in the service's log."""
    leader = record.leader.pid if record.leader else 0
    wanted = {(answer.protocol, answer.port) for answer in record.spec.template.recipe.answers}
    while missing := {(kind, port) for kind, port in wanted if port not in procfs.listening(leader, kind)}:
        if procfs.ended(pidfd, _POLL_S):
            raise NotReady("the container ended while it started")
        if time.monotonic() > deadline_s:
            shown = ", ".join(f"{kind} {port}" for kind, port in sorted(missing))
            raise NotReady(f"nothing answers on {shown} in the container")


def _log(spec: Spec) -> Path:
    return spec.directory / "nspawn.log"


def load(directory: Path) -> Container | None:
    """Adopt the container of a directory; None when it is not running, or was never ready."""
    record = read_record(directory)
    if record is None or record.nspawn is None or not record.ready:
        return None
    try:
        pidfd = os.pidfd_open(record.nspawn.pid)
    except ProcessLookupError:
        return None
    if record.is_alive:  # asked after the descriptor was had: it is that very process
        return Container(record, pidfd)
    os.close(pidfd)
    return None


def destroy(container: Container, harvest_to: Path | None = None) -> Harvest | None:
    """End a container and leave nothing; harvest it first if told where to. Done twice, the second does nothing."""
    return erase(container.spec.roots, container.id, harvest_to)


def erase(roots: Roots, container: str, harvest_to: Path | None = None) -> Harvest | None:
    """End whatever is left of a container, whole or half made or half ended; `StillAlive` if it would not die."""
    directory = roots.directory(container)
    record, group = read_record(directory), cgroup.group(roots.instance, container)
    _kill(record, group)
    done = None
    if harvest_to is not None and record is not None and (directory / "disk/u").is_dir():
        done = harvest(directory, record.base, harvest_to)
    tree.remove(directory.resolve())
    group.remove()
    with contextlib.suppress(FileNotFoundError):
        (_PROPAGATE / container).rmdir()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)
    uidrange.release(roots.containers, container)
    return done


def _kill(record: Record | None, group: cgroup.Group) -> None:
    """Kill every process and wait until none is left."""
    deadline_s = time.monotonic() + _KILL_TIMEOUT_S
    nspawn = _pidfd(record.nspawn) if record else None
    try:
        while True:
            group.kill()
            if nspawn is not None and procfs.ended(nspawn, _POLL_S):
                launch.reap(nspawn)
            members = group.members()
            if not members:
                return
            if time.monotonic() > deadline_s:
                raise StillAlive(f"processes {members} of container {group.name} don't die")
            _await_end(members[0])
    finally:
        if nspawn is not None:
            os.close(nspawn)


def _await_end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            procfs.ended(descriptor, 10 * _POLL_S)
        finally:
            os.close(descriptor)


def _pidfd(process: Process | None) -> int | None:
    """Open a descriptor of that very process, if it has not been collected."""
    if process is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process.pid)
        if process.is_alive:
            return descriptor
        os.close(descriptor)
    return None


def list_ids(roots: Roots) -> list[str]:
    """List the containers that have a directory."""
    if not roots.containers.is_dir():
        return []
    return sorted(e.name for e in os.scandir(roots.containers) if e.is_dir() and not e.name.startswith("."))


def sweep(roots: Roots, *, everything: bool = False) -> list[str]:
    """Erase all that is dead or half made (or everything) of an instance, even without a directory; give the ids."""
    swept = []
    for container in sorted({*list_ids(roots), *cgroup.list_groups(roots.instance)}):
        living = None if everything else load(roots.directory(container))
        if living is not None:
            living.close()
            continue
        erase(roots, container)
        swept.append(container)
    for link in (roots.containers / ".ranges").glob("*"):
        if not roots.directory(os.readlink(link)).is_dir():
            link.unlink(missing_ok=True)
    return swept


def release(roots: Roots) -> None:
    """Undo `prepare` once no container is left."""
    place = str(roots.containers.resolve())
    if list_ids(roots):
        raise ContainerError(f"containers are left in {place}")
    while any(entry.point == place for entry in procfs.mounts()):
        syscalls.umount(place, syscalls.MNT_DETACH)
