"""Ends containers and clears what crashes left. Blocking: called in worker threads.

Called by `container.py`, `service.py` and `sweep.py`. Goes by what is on disk and in the kernel alone, so it can
finish what another life half made or half ended. Doing it twice is doing it once.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from pathlib import Path

from containerd import cgroup, launch, procfs, tree, uidrange
from containerd.errors import StillAlive
from containerd.harvest import Harvest, harvest
from containerd.record import Record, read_record
from containerd.spec import Roots

_KILL_TIMEOUT_S = 10.0
_POLL_S = 0.001
_PROPAGATE = Path("/run/systemd/nspawn/propagate")


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
    _discard(directory)
    uidrange.release(roots.containers, container)
    return done


def _kill(record: Record | None, group: cgroup.Group) -> None:
    """Kill every process and wait until none is left."""
    deadline_s = time.monotonic() + _KILL_TIMEOUT_S
    nspawn = launch.open_process(record.nspawn) if record else None
    try:
        while True:
            group.kill()
            if nspawn is not None:  # it may not have joined its group yet
                launch.kill(nspawn)
                if procfs.ended(nspawn, _POLL_S):
                    launch.reap(nspawn)
            members = group.members()
            if not members and (nspawn is None or procfs.ended(nspawn, 0)):
                return
            if time.monotonic() > deadline_s:
                raise StillAlive(f"processes {members} of container {group.name} don't die")
            for pid in members[:1]:
                _await_end(pid)
    finally:
        if nspawn is not None:
            os.close(nspawn)


def _discard(directory: Path) -> None:
    """Remove a container's directory. Never recursive: were a mount still there, its contents must survive."""
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(directory)):
            if entry.is_dir(follow_symlinks=False):
                Path(entry.path).rmdir()
            else:
                Path(entry.path).unlink()
        directory.rmdir()


def _await_end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            procfs.ended(descriptor, 10 * _POLL_S)
        finally:
            os.close(descriptor)


def list_ids(roots: Roots) -> list[str]:
    """List the containers that have a directory."""
    if not roots.containers.is_dir():
        return []
    return sorted(e.name for e in os.scandir(roots.containers) if e.is_dir() and not e.name.startswith("."))


def sweep(roots: Roots, *, everything: bool = False, keep: Collection[str] = ()) -> list[str]:
    """Erase all of an instance that is dead or half made (or everything), even without a directory; give the ids.

    Those in `keep` are left for who still has to harvest them.
    """
    swept = []
    for container in sorted({*list_ids(roots), *cgroup.list_groups(roots.instance)} - set(keep)):
        record = None if everything else read_record(roots.directory(container))
        if record is not None and record.ready and record.is_alive:
            continue
        erase(roots, container)
        swept.append(container)
    for link, owner in uidrange.claims(roots.containers):
        if not roots.directory(owner).is_dir():
            link.unlink(missing_ok=True)
    return swept
