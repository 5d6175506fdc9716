"""The command line as a person types it: a real process, an instance that is down, files that are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

CONFIG = """
[global]
state_dir = "state"
run_dir = "run"
log_dir = "log"

[[service]]
name = "fake-ssh"
port = 2222
container_template = "ssh-template"
"""
ASKING = [
    ["status"],
    ["status", "--json"],
    ["reload"],
    ["containers"],
    ["sessions"],
    ["sessions", "--since", "24h", "--source", "198.51.100.0/24", "--service", "fake-ssh", "--limit", "3"],
    ["session", "show", "0123456789abcdef01234567"],
    ["session", "kill", "0123456789abcdef01234567"],
    ["events"],
    ["bus", "call", "controller", "controller.status"],
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def honeypot(*arguments: str, file: Path | None = None, **options: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **options} | ({"HONEYPOT_CONFIG": str(file)} if file else {})
    command = [sys.executable, "-P", "-m", "controller.cli", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_when_nothing_runs_two_lines_say_what_is_down_and_how_to_start_it(file: Path, arguments: list[str]) -> None:
    """At once, without a traceback, with exit status 1."""
    began_s = time.monotonic()
    done = honeypot(*arguments, file=file)
    what, todo = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert what.endswith("is not running")
    assert todo == f"start it: honeypot up --config {file}"
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize(
    "arguments", [["status"], ["up"], ["down"], ["config", "check"], ["template", "list"]], ids=" ".join
)
def test_without_a_file_two_lines_say_so(tmp_path: Path, arguments: list[str]) -> None:
    done = honeypot(*arguments, "--config", str(tmp_path / "none.toml"))
    what, todo = done.stderr.splitlines()
    assert (done.returncode, what) == (1, f"there is no configuration file at {tmp_path}/none.toml")
    assert todo.startswith("name one: --config FILE")


@pytest.mark.parametrize("arguments", [["up", "--detach"], ["config", "check"], ["template", "list"]], ids=" ".join)
def test_a_wrong_file_starts_nothing_and_names_the_key(file: Path, arguments: list[str]) -> None:
    file.write_text(CONFIG.replace("port", "prot"))
    done = honeypot(*arguments, file=file)
    what, _ = done.stderr.splitlines()
    assert (done.returncode, what) == (1, f'{file}: service "fake-ssh": prot: unknown key; the nearest is "port"')
    assert list(file.parent.iterdir()) == [file]


def test_a_template_that_is_not_built_starts_nothing_and_says_how_to_build_it(file: Path) -> None:
    done = honeypot("up", "--detach", file=file)
    assert done.returncode == 1
    assert "build it: honeypot template build ssh-template" in done.stderr
    assert list(file.parent.iterdir()) == [file]


def test_a_good_file_is_said_to_be_good(file: Path) -> None:
    template = file.parent / "state/templates/ssh-template"
    template.mkdir(parents=True)
    (template / "template.json").write_text("{}")
    done = honeypot("config", "check", str(file))
    assert done.returncode == 0
    assert done.stdout.startswith(f"{file}: good (1 services, configuration ")


def test_down_of_what_is_down_is_no_error(file: Path) -> None:
    for _ in range(2):
        done = honeypot("down", file=file)
        assert (done.returncode, done.stdout) == (0, "the honeypot is down\n"), done.stderr


def test_the_templates_are_listed_with_what_uses_them(file: Path) -> None:
    rows = json.loads(honeypot("template", "list", "--json", file=file).stdout)
    ssh = next(row for row in rows if row["template"] == "ssh-template")
    assert ssh == {
        "template": "ssh-template",
        "image": None,
        "built_at": None,
        "recipe": True,
        "services": ["fake-ssh"],
    }
    done = honeypot("template", "check", file=file)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "not built: ssh-template")


def test_the_doctor_names_what_is_missing_and_how_to_get_it(file: Path) -> None:
    """A template that is not built is enough to be ill; a host that lacks nothing else is otherwise well."""
    done = honeypot("doctor", "--json", file=file)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 1
    assert checks["template ssh-template"]["how"] == "honeypot template build ssh-template"
    assert {"root", "kernel", "cgroup controllers", "seccomp filters", "programs", "port 2222"} <= set(checks)
    table = honeypot("doctor", file=file)
    assert "honeypot template build ssh-template" in table.stdout
    assert table.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["sessions", "--since", "3x"], "'3x' is neither a span such as 24h, 30m or 7d nor an instant"),
        (["sessions", "--source", "here"], "'here' is neither an address nor a network"),
        (["sessions", "--limit", "0"], "0 is not in the range"),
        (["bus", "call", "nobody", "ping"], "'nobody' is not one of"),
    ],
)
def test_a_wrong_option_is_explained(file: Path, arguments: list[str], complaint: str) -> None:
    done = honeypot(*arguments, file=file)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "parameters", "what"),
    [
        ("no.such", "{}", "there is no command no.such"),
        ("session.end", '{"sesion": "x"}', "session.end: sesion: Extra inputs are not permitted"),
        ("session.end", "nonsense", "session.end: Invalid JSON: expected ident at line 1 column 2"),
    ],
)
def test_a_wrong_call_is_explained(file: Path, command: str, parameters: str, what: str) -> None:
    done = honeypot("bus", "call", "session", command, parameters, file=file)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, what)


def test_a_reader_that_goes_away_is_no_traceback(file: Path) -> None:
    """As with `honeypot doctor | head -1`."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "controller.cli", "doctor", "--config", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
