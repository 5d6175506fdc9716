"""Starts supervisord and waits until every manager is healthy. Called by `cli_up.py` as root."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from bus.catalogue import GetStatus, Status
from bus.errors import HoneypotError
from bus.layout import MANAGERS, Layout
from bus.logs import render
from bus.rpc import call
from controller.desired import FILE_VARIABLE
from controller.prepare import DEPLOY
from controller.supervisor import State, Supervisor

_DEADLINE_S = 60.0
_BACKOFF_S = 6.0  # a manager that supervisord finds ending at once for so long won't come up
_EVERY_S = 0.2
_FILES = 65536
_UMASK = 0o027  # logs are for root and the group honeypot
_LAST_LINES = 8
_KEPT = ("LANG", "NOTIFY_SOCKET", "WATCHDOG_USEC", "TZ")


class NotHealthyError(HoneypotError):
    """The instance did not come up; the message names the manager and what it said last."""

    code = "not_healthy"


def argv() -> list[str]:
    """Give supervisord's command line."""
    return [sys.executable, "-P", "-m", "supervisor.supervisord", "-n", "-s", "-c", str(DEPLOY / "supervisord.conf")]


def environment(file: Path, layout: Layout, given: Mapping[str, str]) -> dict[str, str]:
    """Give supervisord's whole environment; nothing else of the person's own gets to managers and containers."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _FILES if most_files == resource.RLIM_INFINITY else min(_FILES, most_files)
    return {name: given[name] for name in _KEPT if name in given} | {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HONEYPOT_RUN_DIR": str(layout.run_dir),
        "HONEYPOT_LOG_DIR": str(layout.log_dir),
        "HONEYPOT_PYTHON": sys.executable,
        "HONEYPOT_FILES": str(files),
        FILE_VARIABLE: str(file),
    }


def spawn(environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start supervisord in a session of its own, so that a terminal's Ctrl-C does not reach it."""
    null = subprocess.DEVNULL
    return subprocess.Popen(
        argv(), env=environment, stdin=null, stdout=null, stderr=null, cwd="/", start_new_session=True, umask=_UMASK
    )


def become(environment: Mapping[str, str]) -> None:
    """Become supervisord: how a service manager runs an instance."""
    os.chdir("/")
    os.umask(_UMASK)
    os.execve(sys.executable, argv(), dict(environment))  # noqa: S606 - no shell is wanted


async def healthy(layout: Layout, supervisord: subprocess.Popen[bytes]) -> Status:
    """Wait until every manager is; `NotHealthyError` by the deadline, or once it is plain that one won't be."""
    deadline_s = time.monotonic() + _DEADLINE_S
    failing_since_s: dict[str, float] = {}
    status: Status | None = None
    while time.monotonic() < deadline_s:
        if supervisord.poll() is not None:
            raise NotHealthyError(f"supervisord ended{_last_words(layout, 'supervisord')}")
        status = await _status(layout)
        if status and all(manager.healthy for manager in status.managers):
            return status
        hopeless = await asyncio.to_thread(_failing, layout, failing_since_s)
        if hopeless:
            raise NotHealthyError(f"{hopeless} does not start{_last_words(layout, hopeless)}")
        await asyncio.sleep(_EVERY_S)
    ill = [manager.manager for manager in status.managers if not manager.healthy] if status else ["controller"]
    raise NotHealthyError(f"{', '.join(ill)}: not up within {_DEADLINE_S:g} s{_last_words(layout, ill[0])}")


async def _status(layout: Layout) -> Status | None:
    try:
        return await call(layout, "controller", GetStatus(), timeout_s=1)
    except HoneypotError:
        return None


def _failing(layout: Layout, since_s: dict[str, float]) -> str | None:
    """Name a manager that supervisord has been seeing fail for too long; `since_s` remembers between looks."""
    try:
        programs = Supervisor(layout.supervisor).programs()
    except HoneypotError:
        return None
    now_s = time.monotonic()
    for program in programs:
        if program.state in (State.BACKOFF, State.FATAL):
            since_s.setdefault(program.name, now_s)
        elif program.state == State.RUNNING:
            since_s.pop(program.name, None)
        if now_s - since_s.get(program.name, now_s) > _BACKOFF_S:
            return program.name
    return None


def _last_words(layout: Layout, manager: str) -> str:
    """Give the end of a manager's log, indented."""
    try:
        lines = (layout.log_dir / f"{manager}.log").read_text(errors="replace").splitlines()[-_LAST_LINES:]
    except OSError:
        return ""
    return "".join(f"\n  {render(line)}" for line in lines)


def logs(layout: Layout) -> list[Path]:
    """Give the managers' log files."""
    return [layout.log_dir / f"{manager}.log" for manager in MANAGERS]
