"""The session manager as a process on the bus: lists, ends, adopts, and dies with its zygote."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bus import descriptors
from bus.catalogue import EndSession, ListLive, SessionAttached, SessionEnded, SessionStarted
from bus.errors import Refused
from bus.model import new_id, now
from bus.records import Endpoint, EndReason, Handoff, Identity
from bus.settings import Config, GlobalSettings, Service
from tests.unit.session.field import DEADLINE_S, Door, children, wait_for
from tests.unit.session.stand_in import Process, StandIn, layout, stand_in

SERVICE = Service(name="s", port=22, container_template="t")


@dataclass
class Stage:
    """A session manager, the controller's stand-in, and a service behind an attach door."""

    controller: StandIn
    manager: Process
    service: socket.socket

    def hand_over(self) -> tuple[str, socket.socket, socket.socket]:
        """Hand a connection over; give its id, the attacker's end and the listener's link."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            attacker = socket.create_connection(server.getsockname(), timeout=DEADLINE_S)
            client, peer = server.accept()
        identity = Identity(
            id=new_id(),
            sensor="x",
            service="s",
            protocol="tcp",
            source=Endpoint(address=peer[0], port=peer[1]),
            destination=Endpoint(address="127.0.0.1", port=22),
            started_at=now(),
        )
        link = descriptors.connect(self.controller.layout.handoff)
        with client:
            handoff = Handoff(identity=identity, service=SERVICE, min_free_mib=0, configuration="d")
            descriptors.send(link, handoff.pack(), [client.fileno()])
        return identity.id, attacker, link

    def live(self) -> list[str]:
        return [session.identity.id for session in self.controller.ask("session", ListLive()).sessions]

    def heard(self, kind: type) -> list[object]:
        return [event for event in self.controller.events if isinstance(event, kind)]

    def listen_again(self) -> None:
        """Connect until an event of a restarted manager arrives: a late subscriber misses some."""
        heard = len(self.controller.events)

        def poked() -> bool:
            _, attacker, link = self.hand_over()
            attacker.close()
            link.close()
            return len(self.controller.events) > heard

        wait_for(poked, "the first event")

    def zygote(self) -> int:
        return int(children_of(self.manager.pid)[0])


def children_of(pid: int) -> list[str]:
    """Give the children of every thread of a process."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [child for thread in threads for child in (thread / "children").read_text().split()]


@contextmanager
def _stage(root: Path) -> Iterator[Stage]:
    made = layout(root)
    config = Config(
        **{"global": GlobalSettings(run_dir=made.run_dir, state_dir=made.state_dir, log_dir=made.log_dir)},
        service=(SERVICE,),
    )
    with socket.create_server(("127.0.0.1", 0)) as service, stand_in(made, config) as controller:
        service.settimeout(DEADLINE_S)
        door = Door(made.attach, service.getsockname())
        manager = Process("session", controller, root / "session.log")
        try:
            manager.ready()
            controller.hear("session")
            yield Stage(controller, manager, service)
        finally:
            manager.stop()
            door.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Give a running session manager."""
    with _stage(tmp_path) as made:
        yield made


def test_a_session_is_announced_listed_ended_by_an_operator_and_gone(stage: Stage) -> None:
    session, attacker, link = stage.hand_over()
    far, _ = stage.service.accept()
    with attacker, link, far:
        wait_for(lambda: stage.heard(SessionAttached), "the event that it is attached")
        assert stage.live() == [session]
        stage.controller.ask("session", EndSession(session=session))
        assert attacker.recv(1) == b""
        (ended,) = wait_for(lambda: stage.heard(SessionEnded), "the event of its end")
        assert ended == SessionEnded(session=session, end_reason=EndReason.OPERATOR)
        assert len(stage.heard(SessionStarted)) == 1
        assert stage.live() == []
    assert f'"session": "{session}"' in stage.manager.log


def test_an_unknown_session_is_refused_by_name(stage: Stage) -> None:
    with pytest.raises(Refused) as refused:
        stage.controller.ask("session", EndSession(session="0" * 24))
    assert refused.value.code == "not_found"


def test_all_sessions_end_at_a_shutdown(stage: Stage) -> None:
    taken = [stage.hand_over() for _ in range(3)]
    wait_for(lambda: len(stage.live()) == 3, "three sessions")
    stage.controller.ask("session", EndSession(reason=EndReason.SHUTDOWN))
    for _, attacker, link in taken:
        assert attacker.recv(1) == b""
        attacker.close()
        link.close()
    wait_for(lambda: len(stage.heard(SessionEnded)) == 3, "three ends")


def test_a_killed_manager_leaves_sessions_running_and_its_next_life_adopts_them(stage: Stage) -> None:
    session, attacker, link = stage.hand_over()
    far, _ = stage.service.accept()
    with attacker, link, far:
        attacker.sendall(b"before")
        assert far.recv(10) == b"before"
        stage.manager.kill()
        waiting, late, late_link = stage.hand_over()
        attacker.sendall(b"meanwhile")
        assert far.recv(10) == b"meanwhile"
        stage.manager.again()
        stage.manager.ready()
        with late, late_link:
            late_far, _ = stage.service.accept()
            late_far.close()
            assert set(stage.live()) >= {session}
            assert late.recv(1) == b""
        stage.listen_again()
        far.close()
        attacker.close()
        wanted = SessionEnded(session=session, end_reason=EndReason.CLOSED)
        wait_for(lambda: wanted in stage.controller.events, "the adopted session's end")
        assert waiting != session


def test_the_manager_ends_with_an_error_when_its_zygote_dies_and_says_so(stage: Stage) -> None:
    os.kill(stage.zygote(), signal.SIGKILL)
    assert stage.manager.wait() == 1
    assert "zygote" in stage.manager.log
    assert "Traceback" not in stage.manager.log


def test_a_killed_relays_session_is_announced_as_torn(stage: Stage) -> None:
    session, attacker, link = stage.hand_over()
    with attacker, link:
        (live,) = wait_for(lambda: stage.controller.ask("session", ListLive()).sessions, "the session")
        os.kill(live.relay_pid, signal.SIGKILL)
        wanted = SessionEnded(session=session, end_reason=EndReason.TORN)
        wait_for(lambda: wanted in stage.controller.events, "the event")


def test_stopping_leaves_no_idle_relay_and_no_complaint(stage: Stage) -> None:
    zygote = stage.zygote()
    wait_for(lambda: children(zygote), "relays")
    relays = children(zygote)
    assert stage.manager.stop() == 0
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (*relays, zygote)), "every process to end")
    assert "Traceback" not in stage.manager.log


def test_health_counts_sessions_and_relays(stage: Stage) -> None:
    _, attacker, link = stage.hand_over()
    far, _ = stage.service.accept()
    with attacker, link, far:

        def figures() -> dict[str, float] | None:
            health = stage.controller.health("session")
            return health.metrics if health and health.metrics["sessions_live"] else None

        metrics = wait_for(figures, "the session to count")
        assert metrics["relays_spare"] == 15
