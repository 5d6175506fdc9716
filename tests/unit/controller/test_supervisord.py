"""deploy/supervisord.conf under a real supervisord, with programs of ours in the managers' places."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.layout import MANAGERS, Layout
from controller import launch, prepare
from controller.supervisor import State, Supervisor
from tests.unit.controller.instance import wait_for

# Stands in for every manager: says who it is, and neither SIGTERM nor a lost parent ends it.
STAND_IN = """#!{python}
import json, os, pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
who = {{"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "argv": sys.argv[1:]}}
who |= {{"environ": dict(os.environ), **{{key: status[key].strip() for key in ("CapEff", "CapBnd", "NoNewPrivs")}}}}
print("said by", sys.argv[3], flush=True)
place = pathlib.Path("{root}/run") / sys.argv[3]
(place / "new").write_text(json.dumps(who))
(place / "new").rename(place / "who")
signal.pause()
"""
NET_BIND_SERVICE = 1 << 10


class Supervised:
    """One running supervisord with stand-ins."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root / "run", root / "state", root / "log")
        python = root / "python"
        python.write_text(STAND_IN.format(python=sys.executable, root=root))
        python.chmod(0o755)
        prepare.make_users()
        prepare.make(prepare.directories(self.layout))
        environment = launch.environment(root / "config.toml", self.layout, {"SECRET": "x", "LANG": "C.UTF-8"})
        environment["HONEYPOT_PYTHON"] = str(python)
        self.process = launch.spawn(environment)
        self.supervisor = Supervisor(self.layout.supervisor)

    def who(self, manager: str) -> dict[str, object]:
        """Give what a stand-in says of itself."""
        path = self.layout.run_dir / manager / "who"
        wait_for(path.exists, f"{manager} to say who it is")
        found: dict[str, object] = json.loads(path.read_text())
        return found

    def pids(self) -> list[int]:
        """Give every stand-in's process id."""
        return [int(str(self.who(manager)["pid"])) for manager in MANAGERS]


@pytest.fixture
def supervised() -> Iterator[Supervised]:
    root = Path(tempfile.mkdtemp(prefix="hp-supervisord-", dir="/var/tmp"))
    root.chmod(0o755)
    made = Supervised(root)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        shutil.rmtree(root)


def test_each_manager_has_its_user_its_groups_and_only_its_capability(supervised: Supervised) -> None:
    """containerd alone is root; the listener may bind low ports; nobody else may do anything special."""
    for manager in MANAGERS:
        who = supervised.who(manager)
        assert who["argv"] == ["-P", "-m", manager, "--run-dir", str(supervised.layout.run_dir)]
        assert who["uid"] == pwd.getpwnam(prepare.user(manager)).pw_uid
        if manager == "containerd":
            assert who["NoNewPrivs"] == "0"
            continue
        wanted = NET_BIND_SERVICE if manager == "listener" else 0
        assert (int(str(who["CapEff"]), 16), int(str(who["CapBnd"]), 16)) == (wanted, wanted)
        assert (who["NoNewPrivs"], who["gid"]) == ("1", grp.getgrnam("honeypot").gr_gid)
        captures = grp.getgrnam("hp-capture").gr_gid in who["groups"]  # type: ignore[operator]
        assert captures == (manager in {"session", "recorder"})


def test_managers_get_nothing_of_the_persons_environment(supervised: Supervised) -> None:
    environment = supervised.who("containerd")["environ"]
    assert isinstance(environment, dict)
    assert "SECRET" not in environment
    assert environment["HONEYPOT_CONFIG"].endswith("config.toml")


def test_no_manager_outlives_a_killed_supervisord(supervised: Supervised) -> None:
    """Whatever user it has become since, and whatever it does with SIGTERM."""
    pids = supervised.pids()
    os.kill(supervised.process.pid, signal.SIGKILL)
    supervised.process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the managers to end")


def test_a_manager_that_is_killed_or_stopped_comes_back_with_another_pid(supervised: Supervised) -> None:
    """Kill works on a process under SIGSTOP too; start of one that runs is no error."""
    before = supervised.who("storage")["pid"]
    os.kill(int(str(before)), signal.SIGSTOP)
    supervised.supervisor.kill("storage")
    wait_for(lambda: supervised.who("storage")["pid"] != before, "the next life")
    supervised.supervisor.start("storage")
    wait_for(lambda: supervised.supervisor.program("storage").state == State.RUNNING, "it to count as running")


def test_each_manager_logs_into_a_file_of_its_own_that_others_may_not_read(supervised: Supervised) -> None:
    for manager in MANAGERS:
        supervised.who(manager)
        path = supervised.layout.log_dir / f"{manager}.log"
        wait_for(path.exists, "the log")
        wait_for(path.read_text, "the stand-in's line")
        assert path.read_text() == f"said by {manager}\n"
        assert path.stat().st_mode & 0o007 == 0


def test_only_root_and_the_controller_may_command_supervisord(supervised: Supervised) -> None:
    supervised.pids()
    info = supervised.layout.supervisor.stat()
    assert (info.st_uid, info.st_mode & 0o777) == (pwd.getpwnam("hp-controller").pw_uid, 0o600)


def test_directories_have_the_planned_owners_and_modes_and_a_second_making_changes_nothing(
    supervised: Supervised,
) -> None:
    for _ in range(2):
        for planned in prepare.directories(supervised.layout):
            info = planned.path.stat()
            owner, group = pwd.getpwuid(info.st_uid).pw_name, grp.getgrgid(info.st_gid).gr_name
            assert (owner, group, info.st_mode & 0o7777) == (planned.owner, planned.group, planned.mode), planned.path
        prepare.make(prepare.directories(supervised.layout))


def test_a_directory_that_a_person_made_keeps_its_mode(tmp_path: Path) -> None:
    """Of the roots only missing ones are made: log_dir may well be /var/log."""
    (tmp_path / "log").mkdir(mode=0o711)
    prepare.make(prepare.directories(Layout(tmp_path / "run", tmp_path / "state", tmp_path / "log")))
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o711


def test_a_way_that_others_can_not_pass_is_found(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    found = prepare.barrier(tmp_path / "closed" / "deep" / "file")
    assert found in {tmp_path / "closed", *tmp_path.parents}
    assert prepare.barrier(Path("/usr/bin/env")) is None
