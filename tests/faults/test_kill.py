"""kill -9 of each process under load: exactly what docs/ARCHITECTURE.md says is lost, and no more."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.tap import stream
from tests.e2e.test_sessions import PASSWORD
from tests.e2e.world import SENSOR_V4, Host, World, processes, wait_for

MANAGERS = ["controller", "listener", "session", "containerd", "recorder", "storage", "webui"]
ZYGOTE = "session.zygote"


@dataclass
class Typist:
    """A held ssh session in which every line typed is answered by the container."""

    host: Host
    process: subprocess.Popen[bytes] = field(init=False)
    lines: int = 0

    def __post_init__(self) -> None:
        options = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        command = ["sshpass", "-p", PASSWORD, "ssh", *options, f"root@{SENSOR_V4}", "cat"]
        self.process = subprocess.Popen(
            self.host.argv(*command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def type(self) -> bool:
        """Type a line and say whether it came back."""
        assert self.process.stdin
        assert self.process.stdout
        self.lines += 1
        line = b"line %d\n" % self.lines
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        return self.process.stdout.readline() == line

    def end(self) -> None:
        """Log out."""
        self.process.communicate(timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def load(hosts: list[Host]) -> Iterator[list[str]]:
    """Have attackers log in over and over while the block runs; gives the list of failures, checked at the end."""
    over = threading.Event()
    failures: list[str] = []

    def attack(host: Host) -> None:
        while not over.is_set():
            done = host.ssh("echo ok", password=PASSWORD)
            if done.stdout != b"ok\n":
                failures.append(f"{host.addresses}: {done.returncode} {done.stderr.decode()}")

    threads = [threading.Thread(target=attack, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        over.set()
        for thread in threads:
            thread.join()


def healthy(world: World) -> bool:
    done = world.honeypot("status", "--json")
    return done.returncode == 0 and all(m["healthy"] for m in json.loads(done.stdout)["managers"])


def pid_of(world: World, name: str) -> int:
    """Give the process id of a manager, or of the session manager's zygote; 0 while it does not run."""
    if name != ZYGOTE:
        return world.manager_pid(name)
    children = Path(f"/proc/{world.manager_pid('session')}/task").glob("*/children")
    pids = {int(word) for path in children for word in path.read_text().split()}
    return next((pid for pid, line in processes() if pid in pids and ZYGOTE in line), 0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("manager", [*MANAGERS, ZYGOTE])
def test_a_killed_manager_is_noticed_by_no_attacker(running: World, manager: str) -> None:
    """A held session types on, new logins succeed, and every session arrives in storage whole."""
    number = 10 * (1 + [*MANAGERS, ZYGOTE].index(manager))
    hosts = [running.attacker(f"198.51.100.{number + n}") for n in (1, 2)]
    with Typist(running.attacker(f"198.51.100.{number}")) as typist:
        assert typist.type()
        with load(hosts) as failures:
            killed = pid_of(running, manager)
            running.kill(killed)
            assert typist.type()
            wait_for(lambda: pid_of(running, manager) not in (0, killed), f"{manager} to be restarted", 60)
            wait_for(lambda: healthy(running), "everything to be healthy again", 60)
            assert typist.type()
        assert failures == []
        typist.end()
    (held,) = running.stored(1, source=f"198.51.100.{number}")
    assert held["end_reason"] == "closed"
    inbound, outbound = stream(running.blob(held["stream"]["sha256"]))
    assert (len(inbound), len(outbound)) == (held["bytes_in"], held["bytes_out"])


@pytest.mark.timeout(300)
def test_a_killed_relay_ends_its_own_connection_only(running: World) -> None:
    """Its spool is sealed as torn, whole to the last frame; a neighbour types on."""
    hosts = running.attacker("198.51.100.90"), running.attacker("198.51.100.91")
    crowd = [running.attacker(f"198.51.100.{n}") for n in (92, 93)]
    with load(crowd) as failures, Typist(hosts[0]) as victim, Typist(hosts[1]) as neighbour:
        assert victim.type()
        assert neighbour.type()
        live = running.honeypot("bus", "call", "session", "session.live")
        sessions = json.loads(live.stdout)["sessions"]
        relay = next(s["relay_pid"] for s in sessions if s["identity"]["source"]["address"] == "198.51.100.90")
        running.kill(relay)
        assert not victim.type()
        assert neighbour.type()
        neighbour.end()
    assert failures == []
    (torn,) = running.stored(1, source="198.51.100.90")
    assert torn["end_reason"] == "torn"
    inbound, outbound = stream(running.blob(torn["stream"]["sha256"]))
    assert (len(inbound), len(outbound)) == (torn["bytes_in"], torn["bytes_out"])
    assert inbound.startswith(b"SSH-2.0-")


@pytest.mark.timeout(300)
def test_a_killed_supervisord_leaves_sessions_and_containers_to_be_adopted(fresh: World) -> None:
    """Managers end with it, relays and containers go on, and the next `up` adopts them."""
    fresh.up()
    others = [fresh.attacker(f"198.51.100.{n}") for n in (8, 9)]
    with Typist(fresh.attacker("198.51.100.7")) as typist, Typist(others[0]) as second, Typist(others[1]) as third:
        assert typist.type()
        assert second.type()
        assert third.type()
        before = {c["container"]["id"] for c in fresh.ask("containers") if c["source"]}
        managers = [fresh.manager_pid(name) for name in MANAGERS]
        fresh.kill(fresh.supervisord_pid())
        wait_for(lambda: not {pid for pid, _ in processes()} & set(managers), "the managers to end")
        assert typist.type()
        fresh.up()
        assert typist.type()
        assert {c["container"]["id"] for c in fresh.ask("containers") if c["source"]} == before
        for held in (typist, second, third):
            assert held.type()
            held.end()
    assert {session["end_reason"] for session in fresh.stored(3)} == {"closed"}


@pytest.mark.timeout(300)
def test_a_short_lifetime_does_not_end_a_container_that_relays_come_back_to(fresh: World) -> None:
    """With no lifetime at all, a container in use outlives containerd's death; once left, it goes."""
    fresh.configure(lifetime_s=0)
    fresh.up()
    with Typist(fresh.attacker("198.51.100.7")) as typist:
        assert typist.type()
        (mine,) = [c for c in fresh.ask("containers") if c["source"]]
        killed = fresh.manager_pid("containerd")
        fresh.kill(killed)
        wait_for(lambda: fresh.manager_pid("containerd") not in (0, killed), "containerd to be restarted", 60)
        wait_for(lambda: healthy(fresh), "everything to be healthy again", 60)
        again = wait_for(lambda: [c for c in fresh.ask("containers") if c["sessions"]], "the relay to come back")
        assert [c["container"]["id"] for c in again] == [mine["container"]["id"]]
        assert typist.type()
        typist.end()
    assert fresh.stored(1)[0]["end_reason"] == "closed"
    wait_for(lambda: mine["container"]["id"] not in str(fresh.ask("containers")), "the container to end")
