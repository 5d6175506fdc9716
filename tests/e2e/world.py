"""A small internet for one test run: a sensor and attackers, each a network namespace, and a honeypot on the sensor.

Nothing of it touches the host's own network: a switch namespace joins them. Every directory is under one temporary
root, so several worlds can run side by side.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bus.layout import Layout
from bus.settings import GlobalSettings

T = TypeVar("T")
SENSOR_V4 = "203.0.113.80"
SENSOR_V6 = "2001:db8:ffff::80"
TEMPLATES = Path(os.environ.get("HONEYPOT_TEST_TEMPLATES", "/var/tmp/honeypot-test-templates"))
SAMPLE = """
[global]
sensor = "test"
log_level = "debug"
state_dir = "{root}/state"
run_dir = "{root}/run"
log_dir = "{root}/log"
max_sessions = {max_sessions}
min_free_mib = {min_free_mib}

[[service]]
name = "fake-ssh"
port = 22
protocol = "tcp"
container_template = "ssh-template"
capture = {{ pty = true, pcap = true, metadata = true }}
session = {{ timeout_seconds = 600, max_bytes = 104857600, lifetime_seconds = {lifetime_s} }}
{limits}

[[service]]
name = "fake-http"
port = 80
protocol = "tcp"
container_template = "http-template"
capture = {{ pty = false, pcap = true, metadata = true }}
session = {{ lifetime_seconds = {lifetime_s} }}
{limits}
"""


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = 30) -> T:
    """Give the condition's first truthy value; a hang is a failure."""
    deadline = time.monotonic() + timeout_s
    waiter = threading.Event()
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        waiter.wait(0.05)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


@dataclass(frozen=True)
class Host:
    """A network namespace held by a file, with addresses of its own."""

    netns: Path
    addresses: tuple[str, ...]

    def argv(self, *command: str) -> list[str]:
        """Give a command line that runs in here."""
        return ["nsenter", f"--net={self.netns}", *command]

    def run(self, *command: str, timeout_s: float = 60, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a command in here and capture what it says."""
        return subprocess.run(
            self.argv(*command),
            capture_output=True,
            timeout=timeout_s,
            check=False,
            **{"stdin": subprocess.DEVNULL, **options},
        )

    def ssh(
        self,
        *command: str,
        password: str = "",
        source: str = "",
        target: str = SENSOR_V4,
        port: int = 22,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[bytes]:
        """Log in with OpenSSH's client and run a command."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=40"]
        flags = [flag for option in options for flag in ("-o", option)]
        flags += ["-p", str(port), *(["-b", source] if source else [])]
        login = ["sshpass", "-p", password, "ssh", "-F", "none", *flags, f"root@{target}"]
        return self.run(*login, *command, timeout_s=timeout_s)


class World:
    """The namespaces and one honeypot instance; made by `world`."""

    def __init__(self, root: Path, sensor: Host, undo: ExitStack) -> None:
        self.root = root
        self.sensor = sensor
        self._undo = undo
        self._switch = root / "net" / "switch"
        self._count = 0
        self.config = root / "config.toml"

    def attacker(self, *addresses: str) -> Host:
        """Make an attacker: a namespace with these addresses (any mix of IPv4 and IPv6), joined to the switch."""
        self._count += 1
        name = f"a{self._count}"
        host = Host(self.root / "net" / name, addresses)
        _join(self._undo, self._switch, host, name)
        return host

    def configure(self, **values: Any) -> None:
        """Write the configuration: the user's sample under this root, with these values."""
        defaults = {"root": self.root, "max_sessions": 500, "min_free_mib": 64, "lifetime_s": 3600, "limits": ""}
        self.config.write_text(SAMPLE.format(**{**defaults, **values}))

    def honeypot(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the command line in the sensor's namespace."""
        at = 2 if arguments[0] in ("session", "config", "template", "bus") else 1
        argv = [*arguments[:at], "--config", str(self.config), *arguments[at:]]
        return subprocess.run(
            self.sensor.argv(sys.executable, "-P", "-m", "controller.cli", *argv),
            capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, *arguments: str) -> Any:
        """Run a listing with --json and give what it says."""
        done = self.honeypot(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def up(self) -> None:
        """Start the honeypot and wait until it is healthy."""
        done = self.honeypot("up", "--detach")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"

    def down(self) -> None:
        """Stop it."""
        done = self.honeypot("down")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"

    @property
    def instance(self) -> str:
        """The instance's short name in cgroups."""
        settings = GlobalSettings(
            **{name: self.root / name.split("_")[0] for name in ("run_dir", "state_dir", "log_dir")}
        )
        return Layout.of(settings).instance

    def namespaces(self) -> set[str]:
        """Name the world's own network namespaces."""
        return {f"net:[{path.stat().st_ino}]" for path in (self.root / "net").iterdir()}

    def logs(self) -> str:
        """Give the end of every manager's log, for a failure's message."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted((self.root / "log").glob("*.log"))
        )

    def stored(self, count: int, timeout_s: float = 60, **filters: str) -> list[dict[str, Any]]:
        """Wait until storage has so many finished sessions, and give them, newest first."""
        flags = [text for key, value in filters.items() for text in (f"--{key}", value)]

        def finished() -> list[dict[str, Any]]:
            sessions = self.ask("sessions", "--limit", "1000", *flags)
            done = [session for session in sessions if session["ended_at"]]
            return done if len(done) >= count else []

        return wait_for(finished, f"{count} stored sessions", timeout_s)

    def blob(self, sha256: str) -> bytes:
        """Give a stored blob's bytes."""
        (path,) = (self.root / "state" / "blobs").rglob(sha256)
        return path.read_bytes()

    def manager_pid(self, name: str) -> int:
        """Give a manager's process id; 0 while it does not run."""
        wanted = f" -m {name} --run-dir {self.root}/run "
        return next((pid for pid, line in processes() if wanted in line and "setpriv" not in line), 0)

    def supervisord_pid(self) -> int:
        """Give supervisord's process id."""
        return int((self.root / "run" / "supervisord.pid").read_text())

    def kill(self, pid: int) -> None:
        """Kill a process that this world started."""
        os.kill(pid, signal.SIGKILL)


def processes() -> Iterator[tuple[int, str]]:
    """Give every process's id and command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue


def _ip(netns: Path, lines: Sequence[str]) -> None:
    subprocess.run(["nsenter", f"--net={netns}", "ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def _namespace(undo: ExitStack, path: Path) -> None:
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "true"], check=True)
    undo.callback(subprocess.run, ["umount", str(path)], check=False)
    _ip(path, ["link set lo up"])


def _join(undo: ExitStack, switch: Path, host: Host, port: str) -> None:
    """Make a host's namespace and plug it into the switch; every address is on link."""
    _namespace(undo, host.netns)
    _ip(switch, [f"link add {port} type veth peer name e0 netns {host.netns}", f"link set {port} master br0 up"])
    v4 = [address for address in host.addresses if ":" not in address]
    v6 = [address for address in host.addresses if ":" in address]
    _ip(host.netns, [*(f"addr add {a}/32 dev e0" for a in v4), *(f"addr add {a}/128 dev e0 nodad" for a in v6)])
    _ip(host.netns, ["link set e0 up"])
    if v4:
        _ip(host.netns, [f"route add default dev e0 src {v4[0]}"])
    if v6:
        _ip(host.netns, ["route add ::/0 dev e0"])


@contextmanager
def world() -> Iterator[World]:
    """Make a world; whatever happens, nothing of it is left."""
    with ExitStack() as undo:
        root = Path(tempfile.mkdtemp(prefix="hp-world-", dir="/var/tmp"))
        undo.callback(shutil.rmtree, root, ignore_errors=True)
        root.chmod(0o755)
        (root / "net").mkdir()
        (root / "state").mkdir()
        (root / "state" / "templates").symlink_to(TEMPLATES)
        _namespace(undo, root / "net" / "switch")
        _ip(root / "net" / "switch", ["link add br0 type bridge", "link set br0 up"])
        sensor = Host(root / "net" / "sensor", (SENSOR_V4, SENSOR_V6))
        _join(undo, root / "net" / "switch", sensor, "s0")
        made = World(root, sensor, undo)
        made.configure()
        undo.callback(made.honeypot, "down")
        yield made
