"""`honeypot up` and `honeypot down`: the instance's begin and end. Needs root; everything else only asks.

`up` prepares, starts supervisord and waits for health; in the foreground it then follows the logs, and Ctrl-C or
SIGTERM is `down`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from bus.errors import ConfigError, HoneypotError
from bus.layout import Layout
from bus.settings import Config
from controller import addresses, desired, launch, prepare, teardown
from controller.config import load
from controller.doctor import Check, checks
from controller.follow import Tail, follow
from controller.instance import Trouble, config_option, find, find_file
from controller.supervisor import Supervisor


@click.command()
@config_option
@click.option("--detach", is_flag=True, help="Return once everything is healthy; it goes on in the background.")
@click.option("--supervised", is_flag=True, help="Become supervisord, for a service manager such as systemd.")
def up(file: Path | None, detach: bool, supervised: bool) -> None:
    """Start everything, and follow the logs until Ctrl-C, which stops everything."""
    _need_root("up")
    path = find_file(file)
    config = _loaded(path)
    layout = Layout.of(config.global_)
    _refuse_if_running(layout)
    _refuse_if_lacking(config)
    _prepared(path, layout)
    with _only_one(layout):
        desired.forget(layout)
        if supervised:
            launch.become(launch.environment(path, layout, os.environ))
        code = asyncio.run(_up(path, config, layout, detach=detach))
    raise SystemExit(code)


@click.command()
@config_option
def down(file: Path | None) -> None:
    """Stop everything and leave nothing behind; safe to repeat."""
    _need_root("down")
    layout = find(file).layout
    asyncio.run(teardown.down(layout, click.echo))
    click.echo("the honeypot is down")


def _need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise Trouble(f"honeypot {what} needs root", f"run it with sudo: sudo honeypot {what}")


def _loaded(path: Path) -> Config:
    try:
        return load(path)
    except ConfigError as error:
        raise Trouble(str(error), "nothing was started") from error


def _refuse_if_running(layout: Layout) -> None:
    with suppress(HoneypotError):
        pid = Supervisor(layout.supervisor).pid()
        raise Trouble(f"this honeypot is running already (supervisord is process {pid})", "stop it: honeypot down")


def _refuse_if_lacking(config: Config) -> None:
    lacking: list[Check] = [check for check in checks(config) if check.hard and not check.ok]
    for check in lacking:
        raise Trouble(f"this host lacks {check.name}: {check.detail}", f"{check.how} (all of it: honeypot doctor)")


def _prepared(path: Path, layout: Layout) -> None:
    try:
        prepare.check_reachable(path, layout)
        prepare.make_users()
        prepare.make(prepare.directories(layout))
    except ConfigError as error:
        raise Trouble(str(error), "move it where every user may look, such as /etc, /opt, /var/lib or /srv") from error
    except subprocess.CalledProcessError as error:
        raise Trouble(f"users could not be made: {' '.join(error.stderr.split())[-200:]}") from error
    except OSError as error:
        raise Trouble(f"a directory could not be made: {error}") from error


@contextmanager
def _only_one(layout: Layout) -> Iterator[None]:
    """Hold the instance's lock; closed on exec and with the process."""
    with teardown.lock_path(layout).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Trouble("this honeypot is being started or runs in the foreground already") from None
        yield


async def _up(path: Path, config: Config, layout: Layout, *, detach: bool) -> int:
    """Start, wait, and in the foreground stay; give the exit status."""
    stopped = _stop_signals()
    tails = [Tail(log) for log in launch.logs(layout)]
    supervisord = launch.spawn(launch.environment(path, layout, os.environ))
    click.echo("starting...")
    try:
        if not await _until_healthy(layout, supervisord, stopped):
            await _down(layout, supervisord)
            return 0
    except HoneypotError as error:
        await _down(layout, supervisord)
        raise Trouble(str(error), f"nothing was left running; the logs are in {layout.log_dir}") from error
    for line in addresses.lines(config):
        click.echo(line)
    if detach:
        return 0
    return await _stay(layout, supervisord, stopped, tails)


def _stop_signals() -> asyncio.Event:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped


async def _until_healthy(layout: Layout, supervisord: subprocess.Popen[bytes], stopped: asyncio.Event) -> bool:
    """Wait for health; False if a signal came first."""
    healthy = asyncio.create_task(launch.healthy(layout, supervisord), name="healthy")
    stop = asyncio.create_task(stopped.wait(), name="stop")
    await _first_of(healthy, stop)
    if healthy.cancelled():
        return False
    healthy.result()
    return True


async def _stay(layout: Layout, supervisord: subprocess.Popen[bytes], stopped: asyncio.Event, tails: list[Tail]) -> int:
    """Follow the logs until a signal comes or supervisord ends."""
    click.echo("Ctrl-C stops it.")
    following = asyncio.create_task(follow(tails, click.echo), name="follow-logs")
    ended = asyncio.create_task(asyncio.to_thread(supervisord.wait), name="supervisord")
    stop = asyncio.create_task(stopped.wait(), name="stop")
    await asyncio.wait((following, ended, stop), return_when=asyncio.FIRST_COMPLETED)
    following.cancel()
    if stopped.is_set() or following.done():
        click.echo("stopping...")
        await _down(layout, supervisord)
        return 0
    stop.cancel()
    if supervisord.returncode == 0:
        return 0
    raise Trouble(
        f"supervisord ended (status {supervisord.returncode}); live sessions and containers go on",
        "take them over: honeypot up; or end them: honeypot down",
    )


async def _down(layout: Layout, supervisord: subprocess.Popen[bytes]) -> None:
    def say(line: str) -> None:
        with suppress(BrokenPipeError):
            click.echo(line)

    await teardown.down(layout, say)
    with suppress(subprocess.TimeoutExpired):
        supervisord.wait(timeout=5)
    say("the honeypot is down")


async def _first_of(*tasks: asyncio.Task[Any]) -> None:
    """Wait for the first, cancel the rest and see them end."""
    _, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
