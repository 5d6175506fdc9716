"""Ends an instance, in the order that loses nothing, however much of it is dead already. Idempotent.

Called by `cli_up.py` as root. Each step may fail by itself without keeping the next from being done; what could not be
done is said in one line. At the end nothing of the instance is left outside its state and log directories.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from bus import spool
from bus.catalogue import DestroyContainer, EndSession, Flush, ListLive
from bus.descriptors import readable
from bus.errors import HoneypotError, PeerDown, SpoolError
from bus.layout import MANAGERS, Layout
from bus.process import Mark, mark, open_pidfd
from bus.records import EndReason
from bus.rpc import call
from controller.supervisor import Supervisor

Say = Callable[[str], None]

_SESSIONS_S = 15.0
_CONTAINERS_S = 60.0
_FLUSH_S = 30.0
_SUPERVISORD_S = 40.0
_LEFTOVERS_S = 5.0
_SWEEP_S = 120.0
_EVERY_S = 0.1


async def down(layout: Layout, say: Say) -> None:
    """Do every step."""
    supervisor = Supervisor(layout.supervisor)
    if await _runs(supervisor):
        for step in (_stop_listening, _end_sessions, _destroy_containers, _flush, _shut_down):
            with _said(say):
                await step(layout, supervisor)
    await asyncio.to_thread(end_processes, layout)
    with _said(say):
        await asyncio.to_thread(_sweep, layout)
    for line in left_over(layout):
        say(line)
    with _said(say):
        clear_run_dir(layout)


@contextlib.contextmanager
def _said(say: Say) -> Iterator[None]:
    """Say a step's failure and go on."""
    try:
        yield
    except (HoneypotError, OSError, subprocess.SubprocessError) as error:
        say(f"{error}")


async def _runs(supervisor: Supervisor) -> bool:
    try:
        await asyncio.to_thread(supervisor.pid)
    except PeerDown:
        return False
    return True


async def _stop_listening(_: Layout, supervisor: Supervisor) -> None:
    await asyncio.to_thread(supervisor.stop, "listener")


async def _end_sessions(layout: Layout, _: Supervisor) -> None:
    await call(layout, "session", EndSession(reason=EndReason.SHUTDOWN))
    deadline_s = time.monotonic() + _SESSIONS_S
    while (await call(layout, "session", ListLive())).sessions:
        if time.monotonic() > deadline_s:
            raise HoneypotError(f"some sessions did not end within {_SESSIONS_S:g} s; their relays are killed")
        await asyncio.sleep(_EVERY_S)


async def _destroy_containers(layout: Layout, _: Supervisor) -> None:
    await call(layout, "containerd", DestroyContainer(), _CONTAINERS_S)


async def _flush(layout: Layout, _: Supervisor) -> None:
    deadline_s = time.monotonic() + _FLUSH_S
    waiting = -1
    while time.monotonic() < deadline_s:
        before, waiting = waiting, (await call(layout, "recorder", Flush(), _FLUSH_S)).waiting
        if waiting == 0:
            return
        if waiting == before:  # storage is away: waiting longer won't help
            deadline_s = min(deadline_s, time.monotonic() + _EVERY_S * 20)
        await asyncio.sleep(_EVERY_S)


async def _shut_down(_: Layout, supervisor: Supervisor) -> None:
    """Have supervisord stop the managers; kill it if it can't."""
    supervisord = mark(await asyncio.to_thread(supervisor.pid))
    await asyncio.to_thread(supervisor.shutdown)
    if not await _ended(supervisord, _SUPERVISORD_S):
        os.kill(supervisord.pid, signal.SIGKILL)
        await _ended(supervisord, _LEFTOVERS_S)


async def _ended(process: Mark, timeout_s: float) -> bool:
    pidfd = open_pidfd(process)
    if pidfd is None:
        return True
    try:
        async with asyncio.timeout(timeout_s):
            await readable(pidfd)
    except TimeoutError:
        return False
    finally:
        os.close(pidfd)
    return True


def end_processes(layout: Layout) -> None:
    """End supervisord first (it would restart the others), then every process of the instance that is left."""
    for found in (list(_supervisord(layout)), list({*_programs(layout), *_relays(layout)})):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, stubborn = psutil.wait_procs(found, timeout=_LEFTOVERS_S)
        for process in stubborn:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(stubborn, timeout=_LEFTOVERS_S)


def _supervisord(layout: Layout) -> Iterator[psutil.Process]:
    """Give this instance's supervisord, which its pid file and its environment name."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int((layout.run_dir / "supervisord.pid").read_text()))
        if process.environ().get("HONEYPOT_RUN_DIR") == str(layout.run_dir):
            yield process


def _programs(layout: Layout) -> Iterator[psutil.Process]:
    """Give our programs of this instance, relays included: `python -P -m MANAGER...` with a path of its directories."""
    roots = (layout.run_dir, layout.spool)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            flags, program, arguments = (command := process.cmdline())[1:3], command[3:4], command[4:]
            ours = flags == ["-P", "-m"] and program and program[0].partition(".")[0] in MANAGERS
            if ours and any(Path(argument).is_relative_to(root) for argument in arguments for root in roots):
                yield process


def _relays(layout: Layout) -> Iterator[psutil.Process]:
    """Give the relays that the spool names, in case one calls itself something else."""
    for path in layout.spool.iterdir() if layout.spool.is_dir() else ():
        with contextlib.suppress(SpoolError, psutil.Error):
            entry = spool.load(path)
            if entry and entry.ending is None and entry.opening.relay.alive:
                yield psutil.Process(entry.opening.relay.pid)


def _sweep(layout: Layout) -> None:
    """Remove what containers leave outside the state directory: processes, mounts, namespaces, cgroups."""
    command = [sys.executable, "-P", "-m", "containerd.sweep"]
    arguments = ["--state", str(layout.state_dir), "--instance", layout.instance, "--all"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=_SWEEP_S, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise HoneypotError(f"containers could not be swept: {' '.join(done.stderr.split())[-300:]}")


def left_over(layout: Layout) -> Iterator[str]:
    """Say what storage has not taken yet."""
    for place, what in ((layout.spool, "sessions"), (layout.harvest, "containers' files")):
        count = sum(1 for path in place.iterdir() if path.name[0] != ".") if place.is_dir() else 0
        if count:
            yield f"{count} {what} were not stored yet; they stay in {place} until the next honeypot up"


def clear_run_dir(layout: Layout) -> None:
    """Remove what we put into the run directory, and the directory itself if nothing else is in it."""
    for name in MANAGERS:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(layout.run_dir / name)
    for path in (layout.supervisor, layout.run_dir / "supervisord.pid", lock_path(layout)):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        layout.run_dir.rmdir()


def lock_path(layout: Layout) -> Path:
    """Give the file that is locked while an instance is being started."""
    return layout.run_dir / "up.lock"
