"""The file tree that a container sees, built by the host before the container starts.

A plan first, then carried out. Called by `container.py`. In CONTAINER/: `disk` is a size-capped tmpfs with `u`
(upper: all that the attacker changes), `w` (work) and `l` (the template, owners shifted into the container's
ids); `dev`, `shm` and `run` are small tmpfs; `root` is the overlay with those bound into it. What may hold files
of the attacker stays mounted for the host, to be harvested. All of it is mounted by the host, so the container
can't unmount or change any of it. Nothing here may follow a path the attacker made: the plan is carried out
before the first process of the container.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from containerd import syscalls
from containerd.procfs import mounts
from containerd.spec import Spec
from containerd.uidrange import user_namespace

# Groups of Debian's base-passwd.
_TTY, _DISK, _UTMP = 5, 6, 43
_PLAIN = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
# (name, type, mode, major, minor, group). The console is no terminal of the host's; nothing has major 250, so the
# disks are only there to be seen.
_NODES = (
    ("null", stat.S_IFCHR, 0o666, 1, 3, 0),
    ("zero", stat.S_IFCHR, 0o666, 1, 5, 0),
    ("full", stat.S_IFCHR, 0o666, 1, 7, 0),
    ("random", stat.S_IFCHR, 0o666, 1, 8, 0),
    ("urandom", stat.S_IFCHR, 0o666, 1, 9, 0),
    ("tty", stat.S_IFCHR, 0o666, 5, 0, _TTY),
    ("ptmx", stat.S_IFCHR, 0o666, 5, 2, _TTY),
    ("console", stat.S_IFCHR, 0o600, 1, 3, _TTY),
    ("vda", stat.S_IFBLK, 0o660, 250, 0, _DISK),
    ("vda1", stat.S_IFBLK, 0o660, 250, 1, _DISK),
)
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("initctl", "/run/initctl"),
)
ROOT_SOURCE = "/dev/vda1"  # what the container believes its root to be on
# What the container sees: (mount point, file system). The last four are mounted by stage 1.
VISIBLE = (
    ("/", "overlay"),
    ("/dev", "tmpfs"),
    ("/dev/shm", "tmpfs"),  # noqa: S108 - a mount point, not a file of ours
    ("/run", "tmpfs"),
    ("/run/lock", "tmpfs"),
    ("/proc", "proc"),
    ("/sys", "sysfs"),
    ("/dev/pts", "devpts"),
    ("/dev/mqueue", "mqueue"),
)


class Step(Protocol):
    """One thing to do. Paths are relative to CONTAINER/disk."""

    def describe(self) -> str:
        """Say it as a shell would."""

    def execute(self) -> None:
        """Do it in a thread whose working directory is CONTAINER/disk."""


@dataclass(frozen=True)
class Mount:
    """Mount a file system."""

    source: str
    target: str
    kind: str
    flags: int
    options: str

    def describe(self) -> str:
        """Say it as a shell would."""
        return f"mount -t {self.kind} -o {self.options} {self.source} {self.target}"

    def execute(self) -> None:
        """Do it."""
        syscalls.mount(self.source, self.target, self.kind, self.flags, self.options)


@dataclass(frozen=True)
class Bind:
    """Show a mounted tree at a second place."""

    source: str
    target: str

    def describe(self) -> str:
        """Say it as a shell would."""
        return f"mount --bind {self.source} {self.target}"

    def execute(self) -> None:
        """Do it."""
        syscalls.mount(self.source, self.target, "", syscalls.MS_BIND)


@dataclass(frozen=True)
class Shifted:
    """Bind the template, read-only, with its owners shifted to `base`."""

    source: Path
    target: str
    base: int

    def describe(self) -> str:
        """Say it as a newer mount(8) would."""
        return f"mount --bind -o ro,X-mount.idmap=0:{self.base}:65536 {self.source} {self.target}"

    def execute(self) -> None:
        """Do it."""
        with user_namespace(self.base) as descriptor:
            syscalls.idmapped_bind(self.source, Path(self.target), descriptor)


@dataclass(frozen=True)
class Entry:
    """Make a directory, a device node or an empty file, as `mode` says, or give an existing one this mode and owner."""

    path: str
    mode: int
    owner: int
    group: int
    device: int = 0

    def describe(self) -> str:
        """Say it like a line of ls."""
        return f"{stat.filemode(self.mode)} {self.owner}:{self.group} {self.device:#x} {self.path}"

    def execute(self) -> None:
        """Do it."""
        if not os.path.lexists(self.path):
            if stat.S_ISDIR(self.mode):
                Path(self.path).mkdir()
            else:
                os.mknod(self.path, self.mode, self.device)
        os.chown(self.path, self.owner, self.group)
        Path(self.path).chmod(stat.S_IMODE(self.mode))


@dataclass(frozen=True)
class Link:
    """Make a symbolic link."""

    path: str
    points_to: str
    owner: int

    def describe(self) -> str:
        """Say it as a shell would."""
        return f"ln -s {self.points_to} {self.path}"

    def execute(self) -> None:
        """Do it."""
        Path(self.path).symlink_to(self.points_to)
        os.chown(self.path, self.owner, self.owner, follow_symlinks=False)


def plan(spec: Spec, base: int) -> tuple[Step, ...]:
    """Give every step that makes the tree, in order."""
    return (*_disk_steps(spec, base), *_dev_steps(spec, base), *_run_steps(spec, base))


def _disk_steps(spec: Spec, base: int) -> Iterable[Step]:
    yield Entry("u", stat.S_IFDIR | 0o755, base, base)
    yield Entry("w", stat.S_IFDIR | 0o700, 0, 0)
    yield Entry("l", stat.S_IFDIR | 0o700, 0, 0)
    yield Shifted(spec.template.root, "l", base)
    options = "lowerdir=l,upperdir=u,workdir=w"
    yield Mount(ROOT_SOURCE, "../root", "overlay", syscalls.MS_RELATIME, options)


def _dev_steps(spec: Spec, base: int) -> Iterable[Step]:
    # Owners are set after mounting: as mount options, the shifted ids would show in the container's mountinfo.
    flags = syscalls.MS_NOSUID | syscalls.MS_NOEXEC | syscalls.MS_RELATIME
    yield Mount("udev", "../dev", "tmpfs", flags, f"size={_share(spec, 16)}k,nr_inodes=16384,mode=755")
    yield Entry("../dev", stat.S_IFDIR | 0o755, base, base)
    for name, kind, mode, major, minor, group in _NODES:
        yield Entry(f"../dev/{name}", kind | mode, base, base + group, os.makedev(major, minor))
    for name, points_to in _LINKS:
        yield Link(f"../dev/{name}", points_to, base)
    for name in ("pts", "shm", "mqueue"):
        yield Entry(f"../dev/{name}", stat.S_IFDIR | 0o755, base, base)
    yield Bind("../dev", "../root/dev")
    yield Mount("tmpfs", "../shm", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, f"size={_share(spec, 4)}k")
    yield Entry("../shm", stat.S_IFDIR | 0o1777, base, base)
    yield Bind("../shm", "../root/dev/shm")


def _run_steps(spec: Spec, base: int) -> Iterable[Step]:
    flags = _PLAIN | syscalls.MS_RELATIME
    yield Mount("tmpfs", "../run", "tmpfs", flags, f"size={_share(spec, 10)}k,mode=755")
    yield Entry("../run", stat.S_IFDIR | 0o755, base, base)
    yield Entry("../run/utmp", stat.S_IFREG | 0o664, base, base + _UTMP)
    yield Entry("../run/lock", stat.S_IFDIR | 0o755, base, base)
    yield Bind("../run", "../root/run")
    yield Mount("tmpfs", "../root/run/lock", "tmpfs", flags, "size=5120k")
    yield Entry("../root/run/lock", stat.S_IFDIR | 0o1777, base, base)


def _share(spec: Spec, parts: int) -> int:
    """Give a share of the container's memory, in KiB: all tmpfs together fill less than that memory."""
    return spec.limits.memory_bytes // 1024 // parts


def build(spec: Spec, base: int) -> None:
    """Make the whole tree; `OSError` with the path where a step can't be done. `remove` undoes it, whole or half."""
    disk = spec.directory / "disk"
    for name in ("disk", "dev", "shm", "run", "root"):
        (spec.directory / name).mkdir(mode=0o700)
    size = f"size={spec.limits.disk_bytes},nr_inodes={max(4096, spec.limits.disk_bytes // 1024)},mode=755"
    syscalls.mount("tmpfs", disk, "tmpfs", _PLAIN, size)
    syscalls.in_directory(disk, lambda: _execute(plan(spec, base)))
    as_installed = spec.template.root.stat().st_mtime
    os.utime(disk / "u", (as_installed, as_installed))


def _execute(steps: Iterable[Step]) -> None:
    for step in steps:
        step.execute()


def leave_to_container(directory: Path) -> None:
    """Detach the host's own view of a tree that a container has now: fewer mounts, no way in by accident."""
    for name in ("root", "disk/l"):
        syscalls.umount(directory / name, syscalls.MNT_DETACH)


def remove(directory: Path) -> None:
    """Unmount everything below a container's directory, the last made first."""
    below = f"{directory}/"
    for entry in reversed(mounts()):
        if entry.point.startswith(below):
            _unmount(entry.point)


def _unmount(point: str) -> None:
    try:
        syscalls.umount(point)
    except OSError:
        syscalls.umount(point, syscalls.MNT_DETACH)


def device_names() -> frozenset[str]:
    """Name what is in a fresh /dev."""
    return frozenset((*(name for name, *_ in _NODES), *(name for name, _ in _LINKS), "pts", "shm", "mqueue"))
