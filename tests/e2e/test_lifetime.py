"""A container ends with its lifetime, is harvested, and leaves nothing; `down` leaves nothing at all."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bus.process import mark
from tests.e2e.test_sessions import PASSWORD
from tests.e2e.world import World, processes, wait_for


@dataclass
class Footprint:
    """What an instance has on the host now: everything by which it could be found again."""

    processes: set[str]
    mounts: set[str]
    namespaces: set[str]
    cgroups: set[str]
    sockets: set[str]


def footprint(world: World) -> Footprint:
    """Take an instance's footprint."""
    root = str(world.root)
    cgroups = {str(path) for path in Path("/sys/fs/cgroup").rglob(f"honeypot-{world.instance}") if path.is_dir()}
    own = {pid: line for pid, line in processes() if _belongs(world, pid, line)}
    held = [
        line for line in _read("/proc/self/mountinfo").splitlines() if f"{root}/" in line and f"{root}/net/" not in line
    ]
    return Footprint(
        processes={f"{pid} {line}" for pid, line in own.items()},
        mounts=set(held),
        namespaces={name for pid in own for name in _namespaces(pid)} - _namespaces(os.getpid()),
        cgroups=cgroups,
        sockets={str(path) for path in (world.root / "run").rglob("*") if path.is_socket()},
    )


def _belongs(world: World, pid: int, command: str) -> bool:
    """Say whether a process is of an instance: by its command line, its environment, or its control group."""
    told = command + _read(f"/proc/{pid}/environ") + _read(f"/proc/{pid}/cgroup")
    return f"{world.root}/" in told or f"honeypot-{world.instance}" in told


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _namespaces(pid: int) -> set[str]:
    """Name the namespaces a process is in, such as net:[4026531840]."""
    try:
        return {str(path.readlink()) for path in Path(f"/proc/{pid}/ns").iterdir()}
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()


def uptime_ticks() -> int:
    """Give the time since boot in the ticks that processes' starts are counted in."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def still_there(namespaces: set[str], seen_ticks: int) -> set[str]:
    """Give those of some namespaces that a process is in which was there when they were seen.

    A freed namespace's number is given to the next one, so a later process in it is somebody else's.
    """
    old = [pid for pid, _ in processes() if _started(pid) <= seen_ticks]
    used = {name for pid in old for name in _namespaces(pid)}
    return namespaces & used


def _started(pid: int) -> float:
    try:
        return mark(pid).start_ticks
    except ProcessLookupError:
        return math.inf


def test_after_its_lifetime_a_container_is_gone_and_its_harvest_holds_the_file(fresh: World) -> None:
    """The file an attacker left is in the stored harvest; the container's cgroups and mounts are gone."""
    fresh.configure(lifetime_s=4)
    fresh.up()
    attacker = fresh.attacker("198.51.100.7")
    assert (
        attacker.ssh("echo kept > /root/kept; rm /etc/motd; ln -s /etc/shadow /root/trap", password=PASSWORD).returncode
        == 0
    )
    (session,) = fresh.stored(1)
    container = session["container"]["id"]
    leader = next(c["leader_pid"] for c in fresh.ask("containers") if c["container"]["id"] == container)
    namespaces, seen_ticks = _namespaces(leader) - _namespaces(os.getpid()), uptime_ticks()
    assert len(namespaces) > 6
    wait_for(lambda: container not in str(fresh.ask("containers")), "the container to end")
    assert not (fresh.root / "state" / "containers" / container).exists()
    assert container not in Path("/proc/self/mounts").read_text()
    assert not list(Path("/sys/fs/cgroup").rglob(f"*{container}*"))
    assert not still_there(namespaces, seen_ticks)

    def harvested() -> Any:
        done = fresh.honeypot("bus", "call", "storage", "storage.container", f'{{"container": "{container}"}}')
        return json.loads(done.stdout) if done.returncode == 0 else None

    record = wait_for(harvested, "the harvest in storage")
    assert record["source"] == "198.51.100.7"
    assert record["sessions"] == [session["id"]]
    assert "etc/motd" in {path.lstrip("/") for path in record["deleted"]}
    with tarfile.open(fileobj=io.BytesIO(fresh.blob(record["harvest"]["sha256"]))) as tar:
        names = {name.lstrip("./"): name for name in tar.getnames()}
        kept = tar.extractfile(names["root/kept"])
        assert kept
        assert kept.read() == b"kept\n"
        assert tar.getmember(names["root/trap"]).issym()
        assert tar.getmember(names["root/kept"]).uid == 0
    assert fresh.attacker("198.51.100.8").ssh("true", password=PASSWORD).returncode == 0


def test_down_leaves_nothing(fresh: World) -> None:
    """Process, container, mount, namespace, cgroup, socket: as many after as before, with a session still open."""
    attacker = fresh.attacker("198.51.100.7")
    before = footprint(fresh)
    fresh.up()
    open_session = subprocess.Popen(
        attacker.argv("sshpass", "-p", PASSWORD, "ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o",
                      "UserKnownHostsFile=/dev/null", "root@203.0.113.80", "echo in; cat"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert open_session.stdout
    assert open_session.stdout.readline() == b"in\n"
    during, seen_ticks = footprint(fresh), uptime_ticks()
    assert min(map(len, asdict(during).values())) > 0, during
    fresh.down()
    open_session.communicate(timeout=10)
    assert footprint(fresh) == before
    assert not still_there(during.namespaces - fresh.namespaces(), seen_ticks)
    fresh.up()
    (session,) = fresh.stored(1)
    assert session["end_reason"] == "shutdown"
    fresh.down()
    assert footprint(fresh) == before


def test_ctrl_c_in_the_foreground_leaves_nothing(fresh: World) -> None:
    """`up` prints what to try and follows the log as text; an interrupt is a `down`."""
    before = footprint(fresh)
    command = [sys.executable, "-P", "-m", "controller.cli", "up", "--config", str(fresh.config)]
    with subprocess.Popen(
        fresh.sensor.argv(*command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout
        said = list(iter(running.stdout.readline, "Ctrl-C stops it.\n"))
        assert any("ssh -p 22 root@" in line and PASSWORD in line for line in said), said
        assert any("http://127.0.0.1:8000/" in line for line in said), said
        line = running.stdout.readline()
        assert "controller is up" in line
        assert not line.startswith("{")
        running.send_signal(signal.SIGINT)
        assert "the honeypot is down" in running.stdout.read()
    assert running.returncode == 0
    assert footprint(fresh) == before
