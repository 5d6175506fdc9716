"""Reads /proc: what processes, mounts and listening ports there are. Changes nothing.

Called by `launch.py`, `guards.py`, `container.py` and `tree.py`. A process that is gone is an answer (None,
empty), not an error.
"""

from __future__ import annotations

import re
import select
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_LISTEN = "0A"  # TCP_LISTEN, include/net/tcp_states.h
_PORT = re.compile(r"^\s*\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} ([0-9A-F]{2}) ")


@dataclass(frozen=True)
class Status:
    """What /proc/PID/status says that we need; `depth` is in how many nested pid namespaces the process lives."""

    name: str
    depth: int
    inner_pid: int
    effective: int
    bounding: int
    ambient: int
    seccomp: int


class MountEntry(NamedTuple):
    """A line of mountinfo, see proc(5)."""

    point: str
    kind: str
    source: str
    device: str


def read(path: str | Path) -> str | None:
    """Read a file of /proc; None when the process is gone."""
    try:
        return Path(path).read_text(errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return None


def start_ticks(pid: int) -> int | None:
    """Give when a process started, in clock ticks since boot: with the pid it names a process for ever."""
    text = read(f"/proc/{pid}/stat")
    return int(text.rpartition(")")[2].split()[19]) if text else None


def children(pid: int) -> list[int]:
    """List the children of a single-threaded process."""
    return [int(word) for word in (read(f"/proc/{pid}/task/{pid}/children") or "").split()]


def status(pid: int) -> Status | None:
    """Read a process's status."""
    text = read(f"/proc/{pid}/status")
    if not text:
        return None
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    pids = fields["NSpid"].split()
    return Status(
        name=fields["Name"], depth=len(pids), inner_pid=int(pids[-1]), effective=int(fields["CapEff"], 16),
        bounding=int(fields["CapBnd"], 16), ambient=int(fields["CapAmb"], 16), seccomp=int(fields["Seccomp"]),
    )  # fmt: skip


def listening(pid: int, protocol: str) -> set[int]:
    """List the ports that are listened on (TCP) or bound (UDP) in a process's network namespace."""
    texts = (read(f"/proc/{pid}/net/{protocol}{family}") or "" for family in ("", "6"))
    found = (_PORT.match(line) for text in texts for line in text.splitlines())
    return {int(line[1], 16) for line in found if line and (protocol == "udp" or line[2] == _LISTEN)}


def interfaces(pid: int) -> list[str]:
    """List the network interfaces in a process's network namespace."""
    lines = (read(f"/proc/{pid}/net/dev") or "").splitlines()[2:]
    return sorted(line.split(":")[0].strip() for line in lines)


def namespace(pid: int | str, kind: str) -> str | None:
    """Name a namespace of a process, such as net:[4026531840]."""
    try:
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    except (FileNotFoundError, ProcessLookupError):
        return None


def mounts(pid: int | str = "self") -> list[MountEntry]:
    """List the mounts a process sees, in the order they were made."""
    entries = []
    for line in (read(f"/proc/{pid}/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        entries.append(MountEntry(_unescape(left[4]), right[0], _unescape(right[1]), left[2]))
    return entries


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def ended(pidfd: int, timeout_s: float) -> bool:
    """Wait until a process ends, at most so long; say whether it did."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))
