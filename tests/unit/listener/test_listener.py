"""The listener as a process: real attackers, a handoff door of the test's own, and the controller's stand-in."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest

from bus import descriptors
from bus.catalogue import ConnectionRefused, ListLive, LiveSession, LiveSessions
from bus.layout import Layout
from bus.records import Handoff
from bus.settings import Config, GlobalSettings, Limits, Service
from tests.unit.listener.test_ports import answers, free_port
from tests.unit.session.field import DEADLINE_S, wait_for
from tests.unit.session.stand_in import Process, StandIn, layout, stand_in


@dataclass
class Taken:
    """One connection as a relay would have it."""

    handoff: Handoff
    client: socket.socket
    link: socket.socket

    def end(self) -> None:
        self.client.close()
        self.link.close()


@dataclass
class Gate:
    """A listener with its surroundings."""

    layout: Layout
    port: int
    undo: ExitStack
    door: socket.socket | None = None
    live: list[LiveSession] = field(default_factory=list)
    controller: StandIn = field(init=False)
    listener: Process = field(init=False)

    def config(self, *ports: int, most: int = 100, **limits: int) -> Config:
        made = self.layout
        return Config(
            **{
                "global": GlobalSettings(
                    run_dir=made.run_dir,
                    state_dir=made.state_dir,
                    log_dir=made.log_dir,
                    sensor="x",
                    bind_address=(ip_address("127.0.0.1"), ip_address("::1")),
                    max_sessions=most,
                )
            },
            service=tuple(
                Service(name=f"s{n}", port=port, container_template="t", limits=Limits(**limits))
                for n, port in enumerate(ports or (self.port,))
            ),
        )

    def open(self) -> None:
        self.door = self.undo.enter_context(descriptors.listen(self.layout.handoff))
        self.door.settimeout(DEADLINE_S)

    def shut(self) -> None:
        assert self.door
        self.door.close()
        self.layout.handoff.unlink()

    def attack(self, source: str = "127.0.0.1", port: int | None = None) -> socket.socket:
        address = ("::1" if ":" in source else "127.0.0.1", port or self.port)
        sock = socket.create_connection(address, timeout=DEADLINE_S, source_address=(source, 0))
        return self.undo.enter_context(sock)

    def take(self) -> Taken:
        """Take one connection from the queue."""
        assert self.door
        link = self.undo.enter_context(self.door.accept()[0])
        message, (fd,) = descriptors.receive(link)
        return Taken(Handoff.unpack(message), self.undo.enter_context(socket.socket(fileno=fd)), link)

    def nothing_comes(self, seconds: float = 0.5) -> bool:
        assert self.door
        return not select.select([self.door], [], [], seconds)[0]

    def apply(self, config: Config, *, dry: bool = False) -> str | None:
        return self.controller.apply("listener", config, dry=dry)

    def figure(self, name: str) -> float:
        health = self.controller.health("listener")
        assert health
        return health.metrics[f'{name}{{service="s0"}}']


@contextmanager
def _gate(root: Path, **settings: int) -> Iterator[Gate]:
    made = layout(root)
    with ExitStack() as undo:
        gate = Gate(made, free_port(), undo)
        gate.controller = undo.enter_context(stand_in(made, gate.config(**settings)))
        gate.controller.serve("session", {ListLive: lambda _: _list(gate)})
        gate.listener = Process("listener", gate.controller, root / "listener.log")
        undo.callback(gate.listener.stop)
        gate.controller.hear("listener")
        gate.open()
        gate.listener.ready()
        yield gate


async def _list(gate: Gate) -> LiveSessions:
    return LiveSessions(sessions=tuple(gate.live))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Give a listener with room for everybody."""
    with _gate(tmp_path) as made:
        yield made


@pytest.mark.parametrize("source", ["127.0.0.9", "::1"])
def test_a_connection_is_handed_over_with_its_identity_and_settings(gate: Gate, source: str) -> None:
    attacker = gate.attack(source)
    taken = gate.take()
    identity = taken.handoff.identity
    assert (identity.source.address, identity.source.port) == attacker.getsockname()[:2]
    assert (identity.destination.address, identity.destination.port) == attacker.getpeername()[:2]
    assert (identity.service, identity.sensor, identity.protocol) == ("s0", "x", "tcp")
    assert (taken.handoff.service, taken.handoff.configuration) == (gate.config().service[0], "d1")
    taken.client.sendall(b"hello")
    assert attacker.recv(10) == b"hello"
    taken.client.shutdown(socket.SHUT_WR)
    taken.client.close()
    assert attacker.recv(10) == b""  # nobody else holds the connection


def test_at_max_sessions_connections_wait_in_the_backlog_and_come_when_there_is_room(tmp_path: Path) -> None:
    with _gate(tmp_path, most=2) as gate:
        attackers = [gate.attack(f"127.0.0.{n}") for n in range(2, 7)]
        first, second = gate.take(), gate.take()
        assert gate.nothing_comes()
        assert gate.figure("connections_accepted_total") == 2
        first.end()
        third = gate.take()
        assert third.handoff.identity.source.address == "127.0.0.4"
        assert gate.nothing_comes()
        second.end()
        third.end()
        assert {gate.take().handoff.identity.source.address for _ in range(2)} == {"127.0.0.5", "127.0.0.6"}
        for attacker in attackers[3:]:
            attacker.sendall(b"not reset")


def test_at_a_services_limit_another_service_still_accepts(tmp_path: Path) -> None:
    with _gate(tmp_path, max_sessions=1) as gate:
        other = free_port()
        assert gate.apply(gate.config(gate.port, other, max_sessions=1)) is None
        gate.attack()
        gate.attack()
        assert gate.take().handoff.identity.service == "s0"
        gate.attack(port=other)
        assert gate.take().handoff.identity.service == "s1"
        assert gate.nothing_comes()


def test_one_source_waits_silently_for_its_slot_while_others_pass(tmp_path: Path) -> None:
    with _gate(tmp_path, max_sessions_per_source=1) as gate:
        gate.attack("127.0.0.2")
        first = gate.take()
        waiting = gate.attack("127.0.0.2")
        waiting.sendall(b"early")
        gate.attack("127.0.0.3")
        assert gate.take().handoff.identity.source.address == "127.0.0.3"
        assert gate.nothing_comes()
        assert gate.figure("connections_waiting") == 1
        first.end()
        taken = gate.take()
        assert taken.handoff.identity.source.port == waiting.getsockname()[1]
        assert taken.client.recv(10) == b"early"


def test_a_turn_that_does_not_come_in_time_closes_the_connection_and_is_told(tmp_path: Path) -> None:
    with _gate(tmp_path, max_sessions_per_source=1, wait_limit_seconds=1) as gate:
        gate.attack()
        gate.take()
        waiting = gate.attack()
        assert waiting.recv(1) == b""
        (event,) = wait_for(lambda: list(gate.controller.events), "the event")
        assert isinstance(event, ConnectionRefused)
        assert event.identity.source.port == waiting.getsockname()[1]
        assert gate.figure("connections_refused_total") == 1
        assert gate.listener.log.count("connection closed") == 1


def test_a_waiting_connection_that_is_reset_gives_up_its_place(tmp_path: Path) -> None:
    with _gate(tmp_path, max_sessions_per_source=1) as gate:
        gate.attack()
        first = gate.take()
        gone = gate.attack()
        wait_for(lambda: gate.figure("connections_waiting") == 1, "it to wait")
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()
        wait_for(lambda: gate.figure("connections_waiting") == 0, "its place to be free")
        patient = gate.attack()
        first.end()
        assert gate.take().handoff.identity.source.port == patient.getsockname()[1]


def test_while_session_is_away_nobody_is_lost_and_the_backlog_waits(gate: Gate) -> None:
    gate.shut()
    attackers = [gate.attack() for _ in range(5)]
    wait_for(lambda: gate.figure("connections_accepted_total") >= 1, "one to be accepted")
    wait_for(lambda: gate.figure("connections_live") >= 1, "it to wait for a relay")
    accepted = gate.figure("connections_accepted_total")
    attackers.append(gate.attack())
    assert gate.figure("connections_accepted_total") == accepted
    gate.open()
    ports = {gate.take().handoff.identity.source.port for _ in range(6)}
    assert ports == {attacker.getsockname()[1] for attacker in attackers}


def test_a_reload_adds_and_removes_ports_and_leaves_live_sessions_alone(gate: Gate) -> None:
    attacker = gate.attack()
    taken = gate.take()
    added = free_port()
    assert gate.apply(gate.config(added)) is None
    assert (answers(gate.port), answers(added)) == (False, True)
    wait_for(lambda: gate.controller.lot.names("listener") == (f"tcp 127.0.0.1 {added}", f"tcp ::1 {added}"), "parking")
    taken.client.sendall(b"untouched")
    assert attacker.recv(20) == b"untouched"


def test_a_reload_that_cannot_bind_changes_nothing(gate: Gate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        problem = f"service s1: port {taken} on 127.0.0.1 can't be bound: Address already in use"
        bad = gate.config(free_port(), taken)
        assert [gate.apply(bad, dry=True), gate.apply(bad)] == [problem, problem]
    gate.attack()
    assert gate.take().handoff.identity.service == "s0"


def test_limits_change_at_once(tmp_path: Path) -> None:
    with _gate(tmp_path, most=1) as gate:
        gate.attack()
        gate.attack()
        gate.take()
        assert gate.nothing_comes(0.2)
        assert gate.apply(gate.config(most=2)) is None
        gate.take()


def test_across_a_kill_the_backlog_waits_and_earlier_sessions_still_count(tmp_path: Path) -> None:
    with _gate(tmp_path, most=2) as gate:
        gate.attack()
        live = gate.take()
        gate.live.append(LiveSession(identity=live.handoff.identity, container=None, relay_pid=os.getpid()))
        wait_for(lambda: len(gate.controller.lot.names("listener")) == 2, "both sockets to be parked")
        gate.listener.kill()
        late = [gate.attack() for _ in range(2)]
        gate.listener.again()
        gate.listener.ready()
        one = gate.take()
        assert one.handoff.identity.source.port == late[0].getsockname()[1]
        assert gate.nothing_comes(0.3)
        gate.live.clear()
        assert gate.take().handoff.identity.source.port == late[1].getsockname()[1]


def test_a_controller_that_comes_back_is_given_every_socket_again(gate: Gate) -> None:
    wait_for(lambda: len(gate.controller.lot.names("listener")) == 2, "parking")
    gate.controller.close_parking()
    gate.attack()
    gate.take()
    gate.controller.open_parking()
    wait_for(lambda: len(gate.controller.lot.names("listener")) == 2, "parking again")


def test_stopping_leaves_live_sessions_and_says_nothing_alarming(gate: Gate) -> None:
    attacker = gate.attack()
    taken = gate.take()
    assert gate.listener.stop() == 0
    taken.client.sendall(b"on")
    assert attacker.recv(10) == b"on"
    assert "Traceback" not in gate.listener.log
    assert "error" not in gate.listener.log
