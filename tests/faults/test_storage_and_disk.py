"""Storage away, disk full: nothing lost, a named reason, no spinning, and service resumes."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

import pytest
from supervisor.xmlrpc import SupervisorTransport

from tests.e2e.tap import stream
from tests.e2e.test_sessions import PASSWORD
from tests.e2e.world import Host, World, wait_for
from tests.faults.test_kill import Typist

_TICKS = 100


def supervisorctl(world: World, *arguments: str) -> None:
    """Ask this world's supervisord something."""
    transport = SupervisorTransport(None, None, f"unix://{world.root}/run/supervisor.sock")
    with ServerProxy("http://localhost", transport) as server:
        getattr(server.supervisor, arguments[0])(*arguments[1:])


def cpu_ticks(pid: int) -> int:
    """Give the processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def test_sessions_arrive_when_storage_comes_back(fresh: World) -> None:
    """Sessions that ran while storage was stopped are all stored once it runs again."""
    fresh.up()
    supervisorctl(fresh, "stopProcess", "storage")
    hosts = [fresh.attacker(f"198.51.100.{n}") for n in range(10, 15)]
    assert [host.ssh("echo ok", password=PASSWORD).stdout for host in hosts] == [b"ok\n"] * 5
    assert len(list((fresh.root / "state" / "spool").iterdir())) == 5
    supervisorctl(fresh, "startProcess", "storage")
    sessions = fresh.stored(5)
    assert sorted(s["source"]["address"] for s in sessions) == [f"198.51.100.{n}" for n in range(10, 15)]
    assert {s["end_reason"] for s in sessions} == {"closed"}


def test_a_full_spool_ends_sessions_with_a_reason_and_service_resumes(fresh: World) -> None:
    """A byte that can't be recorded isn't relayed; no process spins; with room again the next login works."""
    fresh.configure(min_free_mib=16, limits="limits = { wait_limit_seconds = 5 }")
    spool = fresh.root / "state" / "spool"
    spool.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=2770", "tmpfs", str(spool)], check=True)
    try:
        fresh.up()
        attacker = fresh.attacker("198.51.100.7")
        with Typist(attacker) as typist:
            assert typist.type()
            fill_and_empty(fresh, attacker, spool)
            typist.end()
        log = (fresh.root / "log" / "session.log").read_text()
        assert any("spool_full" in json.loads(line)["message"] for line in log.splitlines() if line.startswith("{"))
        wait_for(lambda: not list(spool.iterdir()), "the spool to be handed over")
        for session in fresh.ask("sessions", "--limit", "100"):
            inbound, outbound = stream(fresh.blob(session["stream"]["sha256"]))
            assert (len(inbound), len(outbound)) == (session["bytes_in"], session["bytes_out"])
    finally:
        fresh.honeypot("down")
        subprocess.run(["umount", "-l", str(spool)], check=False)


@pytest.mark.parametrize("killed", [False, True])
def test_a_harvest_waits_for_room(fresh: World, killed: bool) -> None:
    """A container whose harvest finds no room is kept until there is some, also across containerd's death."""
    fresh.configure(lifetime_s=1, min_free_mib=1)
    harvest = fresh.root / "state" / "harvest"
    harvest.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=2770", "tmpfs", str(harvest)], check=True)
    try:
        fresh.up()
        (harvest / "filler").write_bytes(bytes(2 << 20))
        attacker = fresh.attacker("198.51.100.7")
        assert attacker.ssh("head -c 300000 /dev/urandom > /root/loot; sha256sum /root/loot", password=PASSWORD).stdout
        (session,) = fresh.stored(1)
        container = session["container"]["id"]
        log = fresh.root / "log" / "containerd.log"
        wait_for(lambda: "waits for room" in log.read_text(), "containerd to find no room")
        if killed:
            before = fresh.manager_pid("containerd")
            fresh.kill(before)
            wait_for(lambda: fresh.manager_pid("containerd") not in (0, before), "containerd to be restarted")
        assert fresh.honeypot(
            "bus", "call", "storage", "storage.container", json.dumps({"container": container})
        ).returncode
        (harvest / "filler").unlink()

        def harvested() -> Any:
            done = fresh.honeypot("bus", "call", "storage", "storage.container", json.dumps({"container": container}))
            return json.loads(done.stdout) if done.returncode == 0 else None

        record = wait_for(harvested, "the harvest in storage", 60)
        assert record["harvest"]["size_bytes"] > 300000
        wait_for(lambda: not (fresh.root / "state" / "containers" / container).exists(), "the container to be gone")
    finally:
        fresh.honeypot("down")
        subprocess.run(["umount", "-l", str(harvest)], check=False)


def test_a_source_is_served_again_once_its_container_can_be_written_down(fresh: World) -> None:
    """Whose container it is must be on disk before anybody is let in; a failure is no lasting one."""
    containers = fresh.root / "state" / "containers"
    containers.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(containers)], check=True)
    try:
        fresh.up()
        wait_for(
            lambda: [c for c in fresh.ask("containers") if "ssh" in c["container"]["template"]], "a ready container"
        )
        attacker = fresh.attacker("198.51.100.7")
        with suppress(OSError), (containers / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        assert attacker.ssh("echo ok", password=PASSWORD).stdout == b""
        assert fresh.stored(1)[0]["end_reason"] == "no_container"
        (containers / "filler").unlink()
        assert attacker.ssh("echo ok", password=PASSWORD).stdout == b"ok\n"
    finally:
        fresh.honeypot("down")
        subprocess.run(["umount", "-l", str(containers)], check=False)


def fill_and_empty(world: World, attacker: Host, spool: Path) -> None:
    """Fill the spool's disk under an attacker's hands, see that no process spins, and make room again."""
    (spool / "filler").write_bytes(bytes(48 << 20))
    flood = attacker.ssh("head -c 30000000 /dev/zero", password=PASSWORD, timeout_s=60)
    assert len(flood.stdout) < 30000000
    busy = {name: cpu_ticks(world.manager_pid(name)) for name in ("listener", "session", "recorder", "containerd")}
    refused = attacker.ssh("echo ok", password=PASSWORD, timeout_s=60)
    assert refused.stdout == b""
    spent = {name: cpu_ticks(world.manager_pid(name)) - ticks for name, ticks in busy.items()}
    assert all(ticks < 5 * _TICKS for ticks in spent.values()), spent
    (spool / "filler").unlink()
    assert attacker.ssh("echo ok", password=PASSWORD).stdout == b"ok\n"
