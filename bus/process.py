"""Adoption's whole truth about a process: pid and start time name it for good, a pidfd says when it ends."""

from __future__ import annotations

import os
from pathlib import Path

from bus.model import Frozen

_STARTTIME = 21 - 2  # field 22 of proc_pid_stat(5), counted after "pid (comm)"


class Mark(Frozen):
    """A process that can't be mistaken for a later one of the same pid; the start is in clock ticks since boot."""

    pid: int
    start_ticks: int

    @property
    def alive(self) -> bool:
        """Say whether that very process runs (a zombie does not)."""
        return _stat(self.pid) == self.start_ticks


def mark(pid: int | None = None) -> Mark:
    """Mark a process (by default this one); `ProcessLookupError` if it does not run."""
    pid = os.getpid() if pid is None else pid
    start = _stat(pid)
    if start is None:
        raise ProcessLookupError(f"process {pid} does not run")
    return Mark(pid=pid, start_ticks=start)


def open_pidfd(process: Mark) -> int | None:
    """Open a descriptor that turns readable when the process ends; None if it has ended."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if process.alive:
        return descriptor
    os.close(descriptor)
    return None


def _stat(pid: int) -> int | None:
    """Read a live process's start time in ticks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if not fields or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[_STARTTIME])
