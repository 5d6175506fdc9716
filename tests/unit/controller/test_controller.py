"""The controller as a real process among real peers under a real supervisord."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from bus import descriptors
from bus.catalogue import DestroyContainer, GetConfiguration
from bus.layout import MANAGERS
from bus.parking import ParkReply, ParkRequest
from controller import journal
from tests.unit.controller.instance import CONFIG, Instance, running, wait_for

OTHERS = [name for name in MANAGERS if name != "controller"]
ANOTHER = '\n[[service]]\nname = "{name}"\nport = {port}\ncontainer_template = "one"\n'


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    with running() as made:
        yield made


@pytest.fixture(autouse=True)
def as_it_was(instance: Instance) -> Iterator[None]:
    """Give every test the first configuration in force, and everybody healthy."""
    yield
    assert instance.reload(CONFIG).problem is None
    wait_for(instance.healthy, "everybody healthy again", 60)


def real(instance: Instance, manager: str, configuration: str) -> bool:
    return f"real {configuration}" in instance.told(manager, "applies")


def test_the_service_manager_hears_ready_then_the_watchdog(instance: Instance) -> None:
    """READY once all are healthy, then a sign of life while they stay so."""
    assert instance.notified("STATUS=all 7 managers are healthy")
    assert instance.notified("READY=1")
    assert instance.notified("WATCHDOG=1")


def test_a_reload_reaches_every_manager_after_all_have_agreed(instance: Instance) -> None:
    assert instance.reload(CONFIG + ANOTHER.format(name="third", port=24)).problem is None
    now = instance.ask("controller", GetConfiguration())
    assert [service.name for service in now.config.service] == ["first", "second", "third"]
    for manager in OTHERS:
        mine = [line for line in instance.told(manager, "applies") if line.endswith(now.configuration)]
        assert mine[:2] == [f"dry {now.configuration}", f"real {now.configuration}"]
    events = [event["data"] for event in journal.read(instance.layout.run_dir / "controller")]
    wait_for(
        lambda: (
            {"configuration": now.configuration}
            in [event["data"] for event in journal.read(instance.layout.run_dir / "controller")]
        ),
        f"the event among {events}",
    )


def test_sighup_is_a_reload(instance: Instance) -> None:
    instance.write(CONFIG + ANOTHER.format(name="by-signal", port=25))
    os.kill(instance.pid("controller"), signal.SIGHUP)
    wait_for(lambda: "by-signal" in str(instance.ask("controller", GetConfiguration())), "the new service")


@pytest.mark.parametrize("manager", OTHERS)
def test_one_objection_changes_nothing_anywhere(instance: Instance, manager: str) -> None:
    """The line names who objects; nobody was told more than the dry question."""
    before = instance.ask("controller", GetConfiguration())
    reals = {name: [line for line in instance.told(name, "applies") if "real" in line] for name in OTHERS}
    answer = instance.reload(CONFIG + ANOTHER.format(name=f"poison-{manager}", port=26))
    assert answer.problem == f"{manager}: this is poison"
    assert instance.ask("controller", GetConfiguration()) == before
    assert {n: [line for line in instance.told(n, "applies") if "real" in line] for n in OTHERS} == reals


def test_a_manager_that_fails_after_agreeing_sends_everybody_back(instance: Instance) -> None:
    before = instance.ask("controller", GetConfiguration()).configuration
    answer = instance.reload(CONFIG + ANOTHER.format(name="late-storage", port=27))
    assert answer.problem == "storage: it did not work after all"
    assert all(instance.told(name, "applies")[-1] == f"real {before}" for name in OTHERS)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('sensor = "test"', 'sensor = "other"', "global.sensor"),
        ('run_dir = "run"', 'run_dir = "elsewhere"', "global.run_dir"),
        ('log_dir = "log"', 'log_dir = "elsewhere"', "global.log_dir"),
        ("[global]", "[webui]\nport = 9999\n[global]", "webui.port"),
        ("[global]", '[webui]\naddress = "127.0.0.1"\n[global]', "webui.address"),
        ("[global]", '[storage]\nurl = "/x"\n[global]', "storage"),
        ("port = 22", "prot = 22", 'service "first": prot: unknown key; the nearest is "port"'),
        ('"one"', '"two"', 'container_template: "two" is not a built template'),
    ],
)
def test_what_can_not_change_while_running_is_refused_by_name(instance: Instance, old: str, new: str, key: str) -> None:
    before = instance.ask("controller", GetConfiguration())
    answer = instance.reload(CONFIG.replace(old, new))
    assert answer.problem
    assert key in answer.problem
    assert len(answer.problem.splitlines()) == 1
    assert instance.ask("controller", GetConfiguration()) == before


def test_the_pool_follows_demand_and_is_told_again_to_a_new_containerd(instance: Instance) -> None:
    """At rest the larger minimum of the template's services; under demand up to the larger maximum."""
    wait_for(lambda: any("('one', 3)" in line for line in instance.told("containerd", "pools")), "the resting target")
    instance.ask("containerd", DestroyContainer(container="demand"))
    wait_for(lambda: "('one', 3)" not in instance.told("containerd", "pools")[-1], "a higher target")
    assert all(int(line[-3:-2]) <= 12 for line in instance.told("containerd", "pools") if line[-4] == " ")
    first_boot = instance.told("containerd", "pools")[-1].split()[0]
    os.kill(instance.pid("containerd"), signal.SIGKILL)
    wait_for(lambda: instance.told("containerd", "pools")[-1].split()[0] != first_boot, "targets told to the new life")
    assert instance.of("containerd").restarts == 1


@pytest.mark.timeout(120)
def test_a_manager_that_hangs_is_killed_and_started_again(instance: Instance) -> None:
    """SIGSTOP leaves its process and sockets in place, so only heartbeats can tell."""
    pid = instance.pid("storage")
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: not instance.of("storage").healthy, "the silence to be noticed", 60)
    wait_for(lambda: instance.of("storage").healthy, "its next life", 60)
    assert instance.pid("storage") != pid
    assert instance.of("storage").restarts == 1
    assert "storage does not answer: restarting it" in instance.log("controller")
    changes = [
        e["data"] for e in journal.read(instance.layout.run_dir / "controller") if e["event"] == "manager.changed"
    ]
    assert [e["healthy"] for e in changes if e["manager"] == "storage"][-2:] == [False, True]


def test_a_manager_stopped_on_purpose_stays_stopped_and_gets_the_configuration_it_missed(instance: Instance) -> None:
    """It is named while it is away, a reload goes on without it, and it is brought in line when it is back."""
    instance.supervisor.stop("recorder")
    assert instance.reload(CONFIG + ANOTHER.format(name="meanwhile", port=28)).problem is None
    now = instance.ask("controller", GetConfiguration()).configuration
    assert "recorder is not running" in instance.log("controller")
    assert instance.supervisor.program("recorder").pid == 0
    instance.supervisor.start("recorder")
    wait_for(lambda: real(instance, "recorder", now), "the recorder to be told")


def test_a_killed_controller_goes_on_with_what_was_in_force(instance: Instance) -> None:
    """Whatever has been written into the file since: an edit counts when it is applied."""
    before = instance.ask("controller", GetConfiguration())
    instance.write("this is no longer a configuration")
    pid = instance.pid("controller")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: instance.pid("controller") not in (0, pid) and instance.healthy(), "the controller's next life")
    assert instance.ask("controller", GetConfiguration()) == before


def test_logs_are_json_and_obey_the_level_at_a_reload(instance: Instance) -> None:
    instance.reload(CONFIG.replace('sensor = "test"', 'sensor = "test"\nlog_level = "error"'))
    lines = instance.log("controller").splitlines()
    assert all(json.loads(line)["manager"] == "controller" for line in lines if "UNIX" not in line)
    before = len(lines)
    instance.ask("controller", GetConfiguration())
    assert len(instance.log("controller").splitlines()) == before


def test_the_parking_door_is_open(instance: Instance) -> None:
    """A socket parked there comes back to the next asker of the same name, when the one who parked it is gone."""

    async def ask(request: ParkRequest, *fds: int) -> tuple[ParkReply, list[int]]:
        message, back = await descriptors.request(instance.layout.park, request.pack(), fds)
        return ParkReply.unpack(message), back

    with socket.create_server(("127.0.0.1", 0)) as server:
        asyncio.run(ask(ParkRequest(op="park", owner="test", name="one"), server.fileno()))
        reply, (fd,) = asyncio.run(ask(ParkRequest(op="take", owner="test")))
        with socket.socket(fileno=fd) as back:
            assert back.getsockname() == server.getsockname()
    assert reply.names == ("one",)
