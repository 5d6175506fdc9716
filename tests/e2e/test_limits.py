"""Hogs inside a container stay inside; limits make connections wait, not fail."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.test_sessions import PASSWORD
from tests.e2e.world import SENSOR_V4, Host, World, wait_for

HOGS = {
    "fork bomb": "bash -c 'f() { f | f & }; f' >/dev/null 2>&1; sleep 5; echo over",
    "memory hog": "timeout 10 tail /dev/zero; timeout 10 dd if=/dev/zero of=/dev/shm/x bs=1M; echo over",
    "disk filler": "dd if=/dev/zero of=/root/big bs=1M; echo over",
    "open-files hog": "for i in $(seq 150); do (ulimit -n $(ulimit -Hn); for fd in $(seq 10 4000); do "
    'eval "exec $fd</dev/null" || break; done; sleep 5) & done 2>/dev/null; wait; echo over',
}


def latency_s(host: Host) -> float:
    """Measure one whole login and command."""
    start = time.monotonic()
    assert host.ssh("true", password=PASSWORD).returncode == 0
    return time.monotonic() - start


@pytest.mark.parametrize("hog", HOGS)
def test_a_hog_stays_inside_while_another_session_goes_on(running: World, hog: str) -> None:
    """While one container is being exhausted, another attacker logs in and works, and the honeypot is healthy."""
    last = 10 + list(HOGS).index(hog)
    victim, bystander = running.attacker(f"198.51.100.{last}"), running.attacker(f"198.51.100.{last + 50}")
    calm = latency_s(bystander)
    with ThreadPoolExecutor(1) as pool:
        hogging = pool.submit(victim.ssh, HOGS[hog], password=PASSWORD, timeout_s=90)
        busy = max(latency_s(bystander) for _ in range(5))
        hogging.result()
    assert busy < calm * 10 + 5, f"{hog}: {calm:.2f} s before, {busy:.2f} s during"
    assert all(manager["healthy"] for manager in running.ask("status")["managers"])
    assert bystander.ssh("echo fine", password=PASSWORD).stdout == b"fine\n"


def test_at_max_sessions_connections_wait_and_are_then_served(fresh: World) -> None:
    """The third connection of a full sensor is neither reset nor refused; it is served when a place is free."""
    fresh.configure(max_sessions=2)
    fresh.up()
    holders = [fresh.attacker(f"198.51.100.{n}") for n in (1, 2)]
    hold = ["nc", SENSOR_V4, "22"]
    held = [subprocess.Popen(h.argv(*hold), stdin=subprocess.PIPE, stdout=subprocess.PIPE) for h in holders]
    for process in held:
        assert process.stdout
        assert process.stdout.readline().startswith(b"SSH-2.0")
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(fresh.attacker("198.51.100.3").ssh, "echo served", password=PASSWORD)
        wait_for(lambda: fresh.ask("status"), "a status while the sensor is full")
        assert not third.done()
        held[0].kill()
        assert third.result().stdout == b"served\n", third.result().stderr
    for process in held:
        process.kill()
        process.communicate()


def test_reload_adds_and_removes_ports_and_a_bad_file_changes_nothing(fresh: World) -> None:
    """Ports appear and vanish, a live session goes on, and a bad file is one line and no change."""
    fresh.up()
    attacker = fresh.attacker("198.51.100.7")
    live = subprocess.Popen(attacker.argv("nc", SENSOR_V4, "22"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert live.stdout
    assert live.stdin
    assert live.stdout.readline().startswith(b"SSH-2.0")
    good = fresh.config.read_text()
    fresh.config.write_text(good.replace("port = 80", "port = 81"))
    assert fresh.honeypot("reload").returncode == 0
    assert b"200 OK" in attacker.run("curl", "-sSi", f"http://{SENSOR_V4}:81/").stdout
    assert attacker.run("curl", "-sSi", f"http://{SENSOR_V4}:80/").returncode == 7
    fresh.config.write_text(good.replace("port = 80", "prot = 80"))
    bad = fresh.honeypot("reload")
    assert bad.returncode == 1
    assert "prot" in bad.stderr
    assert "port" in bad.stderr
    assert len(bad.stderr.strip().splitlines()) <= 2
    assert b"200 OK" in attacker.run("curl", "-sSi", f"http://{SENSOR_V4}:81/").stdout
    live.stdin.write(b"nonsense\r\n")
    live.stdin.flush()
    assert b"nvalid SSH identification string" in live.stdout.readline()
    live.communicate()
