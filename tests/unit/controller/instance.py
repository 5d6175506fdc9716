"""A real supervisord with the real controller and six tiny peers, all under one temporary directory."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from bus.catalogue import Applied, Command, GetStatus, ManagerStatus, Reload, Status
from bus.errors import HoneypotError
from bus.layout import MANAGERS, Layout
from bus.model import Frozen
from bus.rpc import call
from controller.supervisor import Supervisor

T = TypeVar("T")
R = TypeVar("R", bound=Frozen)
PEER = Path(__file__).with_name("peer.py")
CONFIG = """
[global]
sensor = "test"
state_dir = "state"
run_dir = "run"
log_dir = "log"

[[service]]
name = "first"
port = 22
container_template = "one"
pool = { minimum = 3, maximum = 9 }

[[service]]
name = "second"
port = 23
container_template = "one"
pool = { minimum = 1, maximum = 12 }
"""
SUPERVISORD = """
[supervisord]
nodaemon = true
pidfile = {root}/run/supervisord.pid
logfile = {root}/log/supervisord.log
[unix_http_server]
file = {root}/run/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
PROGRAM = """
[program:{name}]
command = setpriv --pdeathsig=KILL -- {command}
startsecs = 0
startretries = 1000
autorestart = true
redirect_stderr = true
stdout_logfile = {root}/log/{name}.log
"""


def wait_for(condition: Callable[[], T | None], what: str, timeout_s: float = 20) -> T:
    """Give the condition's first truthy value; a hang is a failure."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        value = condition()
        if value:
            return value
        threading.Event().wait(0.05)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


class Instance:
    """One running instance; made by `running`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.toml"
        self.layout = Layout(root / "run", root / "state", root / "log")
        self.supervisor = Supervisor(self.layout.supervisor)
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.bind(str(root / "notify"))
        self.notices.settimeout(10)

    def write(self, text: str = CONFIG) -> None:
        """Write the configuration file."""
        self.config.write_text(text)

    def ask(self, manager: str, command: Command[R], timeout_s: float = 5) -> R:
        """Ask a manager."""
        return asyncio.run(call(self.layout, manager, command, timeout_s))

    def status(self) -> Status | None:
        """Give the status, if the controller answers."""
        try:
            return self.ask("controller", GetStatus(), timeout_s=1)
        except HoneypotError:
            return None

    def of(self, manager: str) -> ManagerStatus:
        """Give one manager's status."""
        status = wait_for(self.status, "a status")
        return next(each for each in status.managers if each.manager == manager)

    def healthy(self) -> bool:
        """Say whether every manager is."""
        status = self.status()
        return status is not None and all(manager.healthy for manager in status.managers)

    def reload(self, text: str) -> Applied:
        """Write another file and have it applied."""
        self.write(text)
        return self.ask("controller", Reload(), timeout_s=60)

    def told(self, manager: str, what: str) -> list[str]:
        """Give what a peer has noted."""
        path = self.layout.run_dir / manager / what
        return path.read_text().splitlines() if path.exists() else []

    def log(self, manager: str) -> str:
        """Give a manager's log."""
        return (self.layout.log_dir / f"{manager}.log").read_text()

    def pid(self, manager: str) -> int:
        """Give a manager's process id, as supervisord has it."""
        return self.supervisor.program(manager).pid

    def notified(self, wanted: str) -> bool:
        """Say whether a notice to the service manager is among the next ones."""
        return any(wanted in self.notices.recv(4096).decode() for _ in range(20))


def _write(root: Path) -> None:
    for name in ("run", "log", *(f"run/{manager}" for manager in MANAGERS), "state/templates/one"):
        (root / name).mkdir(parents=True)
    (root / "state/templates/one/template.json").write_text("{}")
    programs = SUPERVISORD.format(root=root)
    for manager in MANAGERS:
        peer = f"{PEER} {manager} {root}/run"
        command = f"-m controller --run-dir {root}/run" if manager == "controller" else peer
        programs += PROGRAM.format(name=manager, root=root, command=f"{sys.executable} -P {command}")
    (root / "supervisord.conf").write_text(programs)


@contextmanager
def running() -> Iterator[Instance]:
    """Start an instance and wait until it is healthy; nothing of it is left."""
    root = Path(tempfile.mkdtemp(prefix="hp-controller-"))
    _write(root)
    instance = Instance(root)
    instance.write()
    environment = {
        "PATH": os.environ["PATH"],
        "HONEYPOT_CONFIG": str(instance.config),
        "NOTIFY_SOCKET": str(root / "notify"),
        "WATCHDOG_USEC": "1000000",
    }
    command = [sys.executable, "-P", "-m", "supervisor.supervisord", "-n", "-c", str(root / "supervisord.conf")]
    supervisord = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(instance.healthy, "everybody healthy")
        yield instance
    finally:
        supervisord.send_signal(signal.SIGKILL)
        supervisord.wait()
        instance.notices.close()
        shutil.rmtree(root)
