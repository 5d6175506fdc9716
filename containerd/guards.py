"""Checks from outside that every guard of a container is in place. Fail closed.

Called by `container.py` before a container is handed out, and by whoever wants to know again. Changes
nothing; asks the kernel, never the container. A guard is a function that gives what it found wrong, or None; one
that can't be confirmed is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from containerd import cgroup, network, procfs, profile, tree
from containerd.errors import ContainerError, GuardMissing
from containerd.record import Record
from containerd.uidrange import SIZE

_NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time")
_FILTERED = 2  # SECCOMP_MODE_FILTER
_GATEWAY_ACCEPTS = network.RULESET.count("accept")


@dataclass(frozen=True)
class Subject:
    """The container that is looked at."""

    record: Record
    leader: int
    nspawn: int

    @property
    def group(self) -> cgroup.Group:
        """Its control group."""
        return cgroup.group(self.record.spec.roots.instance, self.record.spec.id)


def check(record: Record) -> None:
    """Confirm every guard; `GuardMissing` names the first one that is not in place."""
    if record.leader is None or record.nspawn is None or not record.is_alive:
        raise GuardMissing("processes", "the container is not running")
    subject = Subject(record, record.leader.pid, record.nspawn.pid)
    for name, guard in GUARDS:
        try:
            wrong = guard(subject)
        except (OSError, ContainerError, KeyError, ValueError) as error:
            wrong = f"can't be confirmed: {error}"
        if wrong:
            raise GuardMissing(name, wrong)
    if not record.is_alive:  # else the pids above may have been somebody else's
        raise GuardMissing("processes", "the container ended meanwhile")


def _user_ids(subject: Subject) -> str | None:
    wanted = ["0", str(subject.record.base), str(SIZE)]
    for kind in ("uid_map", "gid_map"):
        found = (procfs.read(f"/proc/{subject.leader}/{kind}") or "").split()
        if found != wanted:
            return f"{kind} is {' '.join(found)}"
    return None


def _namespaces(subject: Subject) -> str | None:
    shared = [
        kind for kind in _NAMESPACES
        if procfs.namespace(subject.leader, kind) in (None, procfs.namespace("self", kind))
    ]  # fmt: skip
    return f"{', '.join(shared)} shared with the host" if shared else None


def _capabilities(subject: Subject) -> str | None:
    found, kept = procfs.status(subject.leader), profile.kept_capabilities()
    if found is None or (found.bounding, found.effective, found.ambient) != (kept, kept, 0):
        return f"{found} instead of {kept:#x}"
    return None


def _system_calls(subject: Subject) -> str | None:
    found = procfs.status(subject.leader)
    return None if found and found.seccomp == _FILTERED else "no filter is loaded"


def _group(subject: Subject) -> str | None:
    return subject.group.strays(subject.leader) or subject.group.strays(subject.nspawn)


def _limits(subject: Subject) -> str | None:
    return subject.group.unmet(subject.record.spec.limits)


def _disk(subject: Subject) -> str | None:
    found = os.statvfs(subject.record.spec.directory / "disk")
    size_bytes, page = found.f_blocks * found.f_frsize, found.f_frsize
    wanted = subject.record.spec.limits.disk_bytes
    return None if size_bytes == -(-wanted // page) * page else f"{size_bytes} bytes instead of {wanted}"


def _mounts(subject: Subject) -> str | None:
    found = sorted((entry.point, entry.kind) for entry in procfs.mounts(subject.leader))
    odd = set(found).symmetric_difference(tree.VISIBLE) or (set() if len(found) == len(tree.VISIBLE) else set(found))
    return f"not as planned: {', '.join(' '.join(pair) for pair in sorted(odd))}" if odd else None


def _root(subject: Subject) -> str | None:
    entry = next(entry for entry in procfs.mounts(subject.leader) if entry.point == "/")
    if (entry.kind, entry.source) != ("overlay", tree.ROOT_SOURCE):
        return f"the root is {entry.kind} of {entry.source}"
    number = Path(f"/proc/{subject.leader}/root").stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    return None if device == entry.device else f"the root is on {device}, the overlay is {entry.device}"


def _interfaces(subject: Subject) -> str | None:
    found = procfs.interfaces(subject.leader)
    return None if found == ["eth0", "lo"] else f"the container has {', '.join(found) or 'none'}"


def _gateway(subject: Subject) -> str | None:
    found = network.inspect(subject.record.spec.directory / "netns")
    if found.interfaces != ("lo", "v0"):
        return f"the gateway has {', '.join(found.interfaces)}"
    if found.policy != "drop":
        return f"the gateway's policy is {found.policy}"
    return None if found.accepts == _GATEWAY_ACCEPTS else f"the gateway has {found.accepts} accepting rules"


GUARDS: tuple[tuple[str, Callable[[Subject], str | None]], ...] = (
    ("user ids", _user_ids),
    ("namespaces", _namespaces),
    ("capabilities", _capabilities),
    ("system calls", _system_calls),
    ("control group", _group),
    ("limits", _limits),
    ("disk size", _disk),
    ("mounts", _mounts),
    ("root", _root),
    ("interfaces", _interfaces),
    ("gateway", _gateway),
)


def names() -> Iterable[str]:
    """Name the guards."""
    return (name for name, _ in GUARDS)
