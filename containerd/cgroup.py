"""Control groups: limits, killing all at once, removal. Two backends: V1 hierarchies, or the one of V2.

Called by `container.py`, `launch.py` and `guards.py`. A container's group is
HIERARCHY/honeypot-INSTANCE/CONTAINER. In V1, an empty V2 group and one in the systemd hierarchy are made too:
the first can kill everything, and nspawn puts groups into both.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from containerd.errors import ContainerError
from containerd.procfs import mounts, read
from containerd.spec import Limits

_PERIOD_US = 100_000
_PASSABLE = 0o755  # whatever our umask
_RELEASE_TIMEOUT_S = 5.0
_RELEASE_POLL_MS = 2
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TRIES = 5
_LIMITED = ("memory", "pids", "cpu")


@dataclass(frozen=True)
class Setting:
    """One line in one file of a group. A `late` one is set once the services are up: they start unthrottled."""

    file: Path
    value: str
    late: bool = False

    def describe(self) -> str:
        """Say what it writes, as a shell would."""
        return f"echo {self.value} > {self.file}"


@dataclass(frozen=True)
class Hierarchies:
    """Where the host's hierarchies are mounted; `v1` is empty where V2 has all controllers."""

    unified: Path
    v1: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True)
class Group:
    """The group of one container, in all hierarchies that matter."""

    hierarchies: Hierarchies
    parent: str
    name: str

    @property
    def unified(self) -> Path:
        """Its directory in V2."""
        return self.hierarchies.unified / self.parent / self.name

    @property
    def directories(self) -> tuple[Path, ...]:
        """All its directories, the one that can kill first."""
        return (self.unified, *(mounted / self.parent / self.name for _, mounted in self.hierarchies.v1))

    def settings(self, limits: Limits) -> tuple[Setting, ...]:
        """Give what its limits are, as lines in files."""
        return _v1_settings(self, limits) if self.hierarchies.v1 else _v2_settings(self.unified, limits)

    def create(self, limits: Limits) -> None:
        """Make it with its limits, but for the late ones; `OSError` where a limit can't be set."""
        for directory in self.directories:
            _make(directory, delegated=not self.hierarchies.v1)
        for setting in self.settings(limits):
            if not setting.late:
                setting.file.write_text(setting.value)

    def confine(self, limits: Limits) -> None:
        """Set the late limits."""
        for setting in self.settings(limits):
            if setting.late:
                setting.file.write_text(setting.value)

    def unmet(self, limits: Limits) -> str | None:
        """Name the first limit that is not as asked."""
        for setting in self.settings(limits):
            found = read(setting.file)
            if found is None or found.strip() != setting.value:
                return f"{setting.file} is {(found or 'missing').strip()}, not {setting.value}"
        return None

    def strays(self, pid: int) -> str | None:
        """Name the first hierarchy in which a process is not in this group."""
        lines = [line.split(":", 2) for line in (read(f"/proc/{pid}/cgroup") or "").splitlines()]
        where = {controller: path for _, names, path in lines for controller in names.split(",")}
        wanted = f"/{self.parent}/{self.name}"
        for controller in ("", *(name for name, _ in self.hierarchies.v1)):
            path = where.get(controller, "nowhere")
            if path != wanted and not path.startswith(f"{wanted}/"):
                return f"{controller or 'v2'} group of {pid} is {path}"
        return None

    def kill(self) -> None:
        """Kill every process in it at once, see cgroup.kill in the kernel's cgroup-v2 document."""
        with contextlib.suppress(FileNotFoundError):
            (self.unified / "cgroup.kill").write_text("1")

    def members(self) -> list[int]:
        """List the living processes in it and below."""
        texts = [read(directory / "cgroup.procs") or "" for directory in _within(self.unified)]
        return [int(word) for text in texts for word in text.split()]

    def remove(self) -> None:
        """Remove it everywhere, with what nspawn put into it, and the parent when that is empty."""
        for directory in self.directories:
            for inner in _within(directory):
                _remove(inner)
            with contextlib.suppress(OSError):
                directory.parent.rmdir()


def group(instance: str, container: str) -> Group:
    """Give the group of a container, made or not."""
    return Group(detect(), f"honeypot-{instance}", container)


def list_groups(instance: str) -> list[str]:
    """List the containers that have a group, in any hierarchy."""
    hierarchies = detect()
    roots = (hierarchies.unified, *(mounted for _, mounted in hierarchies.v1))
    parents = [root / f"honeypot-{instance}" for root in roots]
    return sorted({entry.name for parent in parents if parent.is_dir() for entry in parent.iterdir() if entry.is_dir()})


@functools.cache
def detect() -> Hierarchies:
    """Find the host's hierarchies; `ContainerError` where limits can't be had."""
    found = mounts()
    unified = next((Path(entry.point) for entry in found if entry.kind == "cgroup2"), None)
    if unified is None:
        raise ContainerError("the host has no cgroup2 mounted; mount it at /sys/fs/cgroup or /sys/fs/cgroup/unified")
    if set(_LIMITED) <= set((unified / "cgroup.controllers").read_text().split()):
        return Hierarchies(unified)
    old = {Path(entry.point).name: Path(entry.point) for entry in found if entry.kind == "cgroup"}
    split = {part: place for name, place in old.items() for part in name.split(",")}
    if missing := [controller for controller in _LIMITED if controller not in split]:
        raise ContainerError(f"the host has no cgroup controller {', '.join(missing)}")
    systemd = [("name=systemd", split["systemd"])] if "systemd" in split else []
    return Hierarchies(unified, (*((name, split[name]) for name in _LIMITED), *systemd))


def _v1_settings(own: Group, limits: Limits) -> tuple[Setting, ...]:
    at = {name: mounted / own.parent / own.name for name, mounted in own.hierarchies.v1}
    memory = _pages(limits.memory_bytes)
    both = Setting(at["memory"] / "memory.memsw.limit_in_bytes", str(memory + _pages(limits.swap_bytes)))
    counts_swap = (own.hierarchies.v1[0][1] / both.file.name).exists()
    return (
        Setting(at["memory"] / "memory.limit_in_bytes", str(memory)),
        # Without swap accounting nothing of the container is to be swapped at all.
        both if counts_swap else Setting(at["memory"] / "memory.swappiness", "0"),
        Setting(at["pids"] / "pids.max", str(limits.pids)),
        Setting(at["cpu"] / "cpu.cfs_period_us", str(_PERIOD_US)),
        Setting(at["cpu"] / "cpu.cfs_quota_us", str(limits.cpu_percent * _PERIOD_US // 100), late=True),
    )


def _v2_settings(directory: Path, limits: Limits) -> tuple[Setting, ...]:
    swap = directory / "memory.swap.max"
    return (
        Setting(directory / "memory.max", str(_pages(limits.memory_bytes))),
        *([Setting(swap, str(_pages(limits.swap_bytes)))] if _has_swap() else []),
        Setting(directory / "pids.max", str(limits.pids)),
        Setting(directory / "cpu.max", f"{limits.cpu_percent * _PERIOD_US // 100} {_PERIOD_US}", late=True),
    )


def _has_swap() -> bool:
    return len((read("/proc/swaps") or "").splitlines()) > 1


def _make(directory: Path, *, delegated: bool) -> None:
    """Make a group and its parent, which another thread may be removing because it was empty."""
    for _ in range(_TRIES):
        try:
            directory.parent.mkdir(exist_ok=True)
            if delegated:
                _delegate(directory.parent)
            directory.mkdir()
            # Kernels before 6.15 walk here with the container's rights when nspawn mounts its view of the hierarchy.
            for place in (directory.parent, directory):
                place.chmod(_PASSABLE)
        except FileNotFoundError:
            continue
        return
    raise ContainerError(f"{directory} can't be made")


def _delegate(parent: Path) -> None:
    """Let groups below the parent have the controllers."""
    for directory in (parent.parent, parent):
        (directory / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in _LIMITED))


def _pages(size_bytes: int) -> int:
    """Round down as the kernel does, so that what is read back is what was asked."""
    return size_bytes // _PAGE * _PAGE


def _within(directory: Path) -> Iterator[Path]:
    """Walk a group and the groups in it, inner ones first."""
    for place, _, _ in os.walk(directory, topdown=False):
        yield Path(place)


def _remove(directory: Path) -> None:
    """Remove a group; its last dead process may hold it some milliseconds more, and V1 can't tell when not."""
    deadline_s = time.monotonic() + _RELEASE_TIMEOUT_S
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline_s:
                raise
        else:
            return
        select.poll().poll(_RELEASE_POLL_MS)
