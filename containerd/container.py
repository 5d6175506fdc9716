"""Makes and adopts containers. Blocking: called in worker threads by `service.py`, several at a time.

A container is a directory CONTAINERS/ID; everything else of it (mounts, namespaces, control groups,
processes, user ids) is found from that, so that what a crash left half made or half ended can be ended by
`ending.erase` in another life.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal

from bus.model import now
from containerd import cgroup, guards, launch, network, procfs, syscalls, tree, uidrange
from containerd.bootroot import boot_root
from containerd.ending import erase, list_ids, sweep
from containerd.errors import ContainerError, NotReady
from containerd.harvest import Harvest
from containerd.launch import Process
from containerd.record import Record, read_record
from containerd.spec import Roots, Spec

__all__ = ("Container", "create", "destroy", "erase", "list_ids", "load", "prepare", "release", "sweep")

START_TIMEOUT_S = 20.0
_KILL_TIMEOUT_S = 10.0
_POLL_S = 0.001
_LAST_WORDS_S = 0.2
_OOM_SCORE = 500  # when the host itself is short of memory, attackers go first


@dataclass(frozen=True)
class Container:
    """A running container with every guard in place. Close it when it is let go; that ends nothing."""

    record: Record
    pidfd: int  # becomes readable when the container ends
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
    def networks(self) -> tuple[IPv4Network, IPv6Network]:
        """The networks it believes to be in: no source from there can be shown to it."""
        return self.spec.addresses.v4.network, self.spec.addresses.v6.network

    @property
    def is_alive(self) -> bool:
        """Say whether it still runs."""
        return not procfs.ended(self.pidfd, 0) and self.record.is_alive

    def close(self) -> None:
        """Give back the descriptor."""
        os.close(self.pidfd)

    def connect(
        self, source: network.Endpoint, port: int, kind: Literal["tcp", "udp"] = "tcp", timeout_s: float = 5
    ) -> socket.socket:
        """Open a socket to one of its services that carries `source` as its own address and port.

        Blocking and non-inheritable; another source port is taken where that one is in use. `Unreachable` where
        nobody answers.
        """
        destination = network.Endpoint(self.spec.addresses.facing(source.address), port)
        return network.open_socket(self.directory / "netns", source, destination, kind, timeout_s)


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
    try:
        return _create(spec, time.monotonic() + timeout_s)
    except OSError as error:
        raise ContainerError(f"container {spec.id} can't be made: {error}") from error


def _create(spec: Spec, deadline_s: float) -> Container:
    watch = _Watch()
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
        try:
            record = _boot(record, nspawn, pidfd, deadline_s, watch)
        except (ContainerError, OSError) as error:
            if procfs.ended(pidfd, _LAST_WORDS_S):  # then that is the reason, whatever it was that failed for it
                raise launch.ended(_log(spec)) from error
            raise
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

    def forget() -> None:  # runs before `erase`, which so finds no zombie
        launch.kill(pidfd)
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
    """Wait until every port of the recipe is listened on. Seen from outside: a probe would show in a log."""
    leader = record.leader.pid if record.leader else 0
    wanted = {(answer.protocol, answer.port) for answer in record.spec.template.recipe.answers}
    while missing := {(kind, port) for kind, port in wanted if port not in procfs.listening(leader, kind)}:
        if procfs.ended(pidfd, _POLL_S):
            raise launch.ended(_log(record.spec))
        if time.monotonic() > deadline_s:
            shown = ", ".join(f"{kind} {port}" for kind, port in sorted(missing))
            raise NotReady(f"nothing answers on {shown} in the container")


def _log(spec: Spec) -> Path:
    return spec.directory / "nspawn.log"


def load(directory: Path) -> Container | None:
    """Adopt the container of a directory; None when it is not running, or was never ready."""
    record = read_record(directory)
    pidfd = launch.open_process(record.nspawn) if record is not None and record.ready else None
    if record is None or pidfd is None:
        return None
    if record.is_alive and not procfs.ended(pidfd, 0):
        return Container(record, pidfd)
    os.close(pidfd)
    return None


def destroy(container: Container, harvest_to: Path | None = None) -> Harvest | None:
    """End a container and leave nothing; harvest it first if told where to. Doing it twice is doing it once."""
    return erase(container.spec.roots, container.id, harvest_to)


def release(roots: Roots) -> None:
    """Undo `prepare` once no container is left."""
    place = str(roots.containers.resolve())
    if list_ids(roots):
        raise ContainerError(f"containers are left in {place}")
    while any(entry.point == place for entry in procfs.mounts()):
        syscalls.umount(place, syscalls.MNT_DETACH)
