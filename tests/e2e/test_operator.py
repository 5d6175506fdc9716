"""What an operator does with a running honeypot: look, download, end a session, set the log level, read the logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bus.catalogue import COMMANDS
from tests.e2e.tap import stream
from tests.e2e.test_sessions import PASSWORD
from tests.e2e.world import SENSOR_V4, World, wait_for
from tests.unit.test_config import SAMPLE


def get(world: World, path: str) -> bytes:
    """Fetch a path of the web interface from the sensor itself."""
    done = world.sensor.run("curl", "-sSf", f"http://127.0.0.1:8000{path}")
    assert done.returncode == 0, done.stderr
    return bytes(done.stdout)


def test_the_users_sample_loads_and_does_what_it_says(fresh: World) -> None:
    """The sample as it was given, under this world's directories, serves ssh on 22 and http on 80."""
    places = f'[global]\nstate_dir = "{fresh.root}/state"\nrun_dir = "{fresh.root}/run"\n'
    here = SAMPLE.replace("/var/lib/honeypot/logs", f"{fresh.root}/log").replace("[global]\n", places)
    fresh.config.write_text(here)
    assert fresh.honeypot("config", "check", str(fresh.config)).returncode == 0
    fresh.up()
    attacker = fresh.attacker("198.51.100.7")
    assert attacker.ssh("id -un", password=PASSWORD).stdout == b"root\n"
    assert b"200 OK" in attacker.run("curl", "-sSi", f"http://{SENSOR_V4}/").stdout
    assert len(fresh.stored(2)) == 2
    log = (fresh.root / "log" / "session.log").read_text().splitlines()
    assert all({"at", "level", "manager", "message"} <= json.loads(line).keys() for line in log)


def test_the_api_the_command_line_and_the_store_say_the_same(running: World) -> None:
    """One session by the API, by the command line and as a download: the same names, the same bytes."""
    attacker = running.attacker("198.51.100.10")
    assert attacker.ssh("echo same", password=PASSWORD).stdout == b"same\n"
    (session,) = running.stored(1, source="198.51.100.10")
    shown = running.ask("session", "show", session["id"])
    assert shown == session
    assert json.loads(get(running, f"/api/v1/sessions/{session['id']}")) == session
    page = json.loads(get(running, "/api/v1/sessions?source=198.51.100.10"))
    assert page["sessions"] == [session]
    raw = get(running, f"/api/v1/sessions/{session['id']}/stream")
    assert raw == running.blob(session["stream"]["sha256"])
    sides = [get(running, f"/api/v1/sessions/{session['id']}/stream?direction={side}") for side in ("in", "out")]
    assert tuple(sides) == stream(raw)
    text = running.honeypot("session", "show", session["id"]).stdout
    assert "SSH-2.0-OpenSSH" in text
    assert session["id"].encode() in get(running, "/sessions")


def test_a_killed_session_ends_with_the_operators_reason(running: World) -> None:
    """`session kill` ends a live connection, and its record says so."""
    attacker = running.attacker("198.51.100.20")
    with subprocess.Popen(attacker.argv("nc", SENSOR_V4, "22"), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as live:
        assert live.stdout
        assert live.stdout.readline().startswith(b"SSH-2.0")

        def record() -> Any:
            return next((s for s in running.ask("sessions") if s["source"]["address"] == "198.51.100.20"), None)

        session = wait_for(record, "the live session in the listing")
        assert session["ended_at"] is None
        assert running.honeypot("session", "kill", session["id"]).returncode == 0
        live.communicate(timeout=20)
    (ended,) = running.stored(1, source="198.51.100.20")
    assert ended["end_reason"] == "operator"


def test_the_log_level_is_obeyed_and_changed_by_a_reload(running: World) -> None:
    """Debug lines stop once the configuration says so."""
    log = running.root / "log" / "containerd.log"
    wait_for(lambda: '"level": "debug"' in log.read_text(), "a debug line")
    running.config.write_text(running.config.read_text().replace('log_level = "debug"', 'log_level = "warning"'))
    assert running.honeypot("reload").returncode == 0
    said = len(log.read_text())
    assert running.attacker("198.51.100.30").ssh("true", password=PASSWORD).returncode == 0
    running.stored(1, source="198.51.100.30")
    assert '"level": "debug"' not in log.read_text()[said:]


def test_a_hang_up_signal_reloads(running: World) -> None:
    """SIGHUP to the controller applies a changed file, as `reload` does."""
    before = running.ask("status")["configuration"]
    running.config.write_text(running.config.read_text().replace("lifetime_seconds = 3600", "lifetime_seconds = 1800"))
    os.kill(running.manager_pid("controller"), signal.SIGHUP)
    wait_for(lambda: running.ask("status")["configuration"] != before, "another configuration in force")


@pytest.mark.parametrize("path", ["/api/v1/sessions/../../etc/passwd", "/api/v1/sessions/%2e%2e", "/static/../api.py"])
def test_the_web_interface_gives_no_file_away(running: World, path: str) -> None:
    """A path that climbs is not found."""
    done = running.sensor.run(
        "curl", "-sS", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:8000{path}"
    )
    assert done.stdout in (b"404", b"400")


def test_the_web_interface_is_not_there_for_attackers(running: World) -> None:
    """On the address attackers reach, nobody listens on the page's port."""
    done = running.attacker("198.51.100.40").run("curl", "-sS", "--max-time", "5", f"http://{SENSOR_V4}:8000/")
    assert done.returncode == 7


def test_a_second_up_is_refused_in_one_line_and_everything_goes_on(running: World) -> None:
    """Starting what runs already changes nothing."""
    again = running.honeypot("up", "--detach")
    assert again.returncode == 1
    assert len(again.stderr.strip().splitlines()) <= 2
    assert all(manager["healthy"] for manager in running.ask("status")["managers"])


def test_what_is_down_says_how_to_start_it(fresh: World) -> None:
    """Every command that needs a running honeypot says in two lines what is wrong and what to do."""
    for command in (["status"], ["sessions"], ["containers"], ["reload"], ["bus", "call", "storage", "ping"]):
        done = fresh.honeypot(*command)
        assert done.returncode == 1, command
        assert "honeypot up" in done.stderr, command
        assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert "ping" in COMMANDS


def test_the_run_directory_is_closed_to_others(running: World) -> None:
    """Sockets of the bus answer to the honeypot's own group and to root only."""
    sockets = [path for path in (running.root / "run").rglob("*") if path.is_socket()]
    assert len(sockets) >= 2 * 7 + 4
    assert [str(path) for path in sockets if path.stat().st_mode & 0o007] == []
    nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "ls",
        str(Path(running.root / "run" / "storage")),
    ]
    assert subprocess.run(nobody, capture_output=True, check=False).returncode != 0


def test_a_template_is_checked_beside_a_running_honeypot_and_nothing_is_left(running: World) -> None:
    """`template check` starts a container, confirms its guards, and ends it."""
    done = running.honeypot("template", "check", "ssh-template")
    assert done.returncode == 0, done.stderr
    assert "answers on tcp 22" in done.stdout
    assert "system calls" in done.stdout
    assert list((running.root / "state").glob("canary-*")) == []
    assert list(Path("/sys/fs/cgroup/").glob("*/honeypot-canary-*")) == []
