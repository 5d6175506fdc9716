"""Starts systemd-nspawn for a container, as data first, and finds the container's first process.

Called by `container.py`. nspawn runs in a session of its own and outlives us. A short shell line joins the
control groups, and util-linux's unshare makes the time namespace, before it becomes nspawn. Must never hand
nspawn a descriptor or variable of ours.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from bus.model import Frozen, now
from containerd import procfs, profile
from containerd.cgroup import Group
from containerd.errors import NotReady
from containerd.spec import Spec
from containerd.uidrange import SIZE

_DAY_S = 86400
# Process numbers of a freshly started Debian go on from about here.
_LAST_PID = 612
_POLL_S = 0.0005
_SAID_MOST = 500
_NOISE = "Attempted to remove disk file system"  # where the host's /run is not a tmpfs
# Python ignores some signals, which every process of the container would inherit.
_SIGNALS = (
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGCHLD,
)
_RLIMITS = ("NOFILE=1024:4096", "CORE=0")
_ENVIRON = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SYSTEMD_SECCOMP": "0",  # stage 1 loads a compiled filter: nspawn would spend 35 ms on compiling its own
    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
    "SYSTEMD_NSPAWN_TMPFS_TMP": "0",
    "SYSTEMD_NSPAWN_LOCK": "0",  # the throw-away root is shared and never written
}


class Process(Frozen):
    """A process for ever: its pid and when it started, in ticks since boot."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Name a living process; None when it is gone."""
        ticks = procfs.start_ticks(pid)
        return cls(pid=pid, start_ticks=ticks) if ticks is not None else None

    @property
    def is_alive(self) -> bool:
        """Say whether that very process still lives."""
        return procfs.start_ticks(self.pid) == self.start_ticks


@dataclass(frozen=True)
class Command:
    """What is executed: an argv and the whole environment."""

    argv: tuple[str, ...]
    environ: tuple[tuple[str, str], ...]


def command(spec: Spec, base: int, boot_root: Path, group: Group) -> Command:
    """Give the whole command of a container."""
    joins = " && ".join(f"echo 0 > {shlex.quote(str(d / 'cgroup.procs'))}" for d in group.directories)
    inner = shlex.join([*_time_argv(spec), *_nspawn_argv(spec, base, boot_root), *_stage1_argv(spec)])
    line = f"umask 022 && cd / && {joins} && exec {inner}"
    return Command(("/bin/sh", "-c", line), tuple(_ENVIRON.items()))


def _time_argv(spec: Spec) -> list[str]:
    """Shift the clocks since boot: the machine was up for days when the template was built."""
    age_s = (now() - spec.template.record.built_at).total_seconds()
    uptime_s = int(spec.template.recipe.uptime_days * _DAY_S + age_s)
    shift = str(uptime_s - int(float((procfs.read("/proc/uptime") or "0").split()[0])))
    return ["unshare", "--time", "--monotonic", shift, "--boottime", shift]


def _nspawn_argv(spec: Spec, base: int, boot_root: Path) -> list[str]:
    return [
        "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--settings=no", "--pipe",
        f"--machine={spec.id}", f"--hostname={spec.template.recipe.hostname}",
        f"--directory={boot_root}", "--read-only", f"--bind={spec.directory}/root:/mnt",
        f"--private-users={base}:{SIZE}", "--private-users-ownership=off", "--private-network",
        "--resolv-conf=off", "--timezone=off", "--link-journal=no",
        "--capability=all",  # stage 1 needs them to build the inside; it drops what the profile does not keep
        *(f"--rlimit={limit}" for limit in _RLIMITS),
    ]  # fmt: skip


def _stage1_argv(spec: Spec) -> list[str]:
    recipe = spec.template.recipe
    environ = [f"{name}={value}" for name, value in recipe.environ.items()]
    return ["/stage1", f"{profile.kept_capabilities():x}", str(_LAST_PID), *environ, "--", *recipe.init]


def start(what: Command, log: Path) -> int:
    """Start it in a session of its own, its errors into `log`; give the pid (our child: `reap` it)."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, str(log), flags, 0o600),
    ]
    return os.posix_spawn(
        what.argv[0],
        what.argv,
        dict(what.environ),
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=_SIGNALS,
    )


def open_process(process: Process | None) -> int | None:
    """Open a descriptor of that very process; None once it is gone for good."""
    if process is None:
        return None
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if process.is_alive:
        return descriptor
    os.close(descriptor)
    return None


def kill(pidfd: int) -> None:
    """Kill a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def reap(pidfd: int) -> None:
    """Collect the exit of an ended process where it is our child."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return


def first_process(nspawn: int, pidfd: int, log: Path, deadline_s: float) -> int:
    """Find the first process of the container's pid namespace, once it has its own network; `NotReady` if nspawn ends.

    nspawn makes the network namespace a little after the process: a cable laid before would end in the host's.
    """
    host = (None, procfs.namespace("self", "net"))
    while True:
        for pid in procfs.children(nspawn):
            found = procfs.status(pid)
            if found and found.depth > 1 and found.inner_pid == 1 and procfs.namespace(pid, "net") not in host:
                return pid
        _wait(pidfd, log, deadline_s)


def await_init(leader: int, pidfd: int, log: Path, deadline_s: float) -> None:
    """Wait until stage 1 has become the distribution's init."""
    kept = profile.kept_capabilities()
    while True:
        found = procfs.status(leader)
        if found and found.seccomp and found.effective == kept and found.name != "stage1":
            return
        _wait(pidfd, log, deadline_s)


def ended(log: Path) -> NotReady:
    """Give the error that says with what words nspawn ended, in one line: the cause stands before the last."""
    said = [line.strip() for line in (procfs.read(log) or "").splitlines() if line.strip() and _NOISE not in line]
    words = [line for line in said if line.startswith("stage1:")] or said
    return NotReady(f"the container ended: {'; '.join(words)[:_SAID_MOST] or 'it said nothing'}")


def _wait(pidfd: int, log: Path, deadline_s: float) -> None:
    if procfs.ended(pidfd, _POLL_S):
        raise ended(log)
    if time.monotonic() > deadline_s:
        raise NotReady("the container's init did not start in time")
