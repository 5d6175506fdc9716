"""Relays as processes: preforked, replaced, outliving their zygote, leaking nothing, loading nothing they need not."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bus import descriptors
from bus.process import mark
from bus.records import EndReason
from bus.spool import Direction
from session.herd import Herd
from session.reports import Happened, Lines, Report, Sizes
from tests.unit.session.field import Field, wait_for


def test_relays_import_neither_zeromq_nor_asyncio() -> None:
    program = "import sys, session.zygote; print(sorted({'zmq', 'asyncio', 'ssl', 'threading'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True).stdout
    assert "zmq" not in loaded
    assert "asyncio" not in loaded


def test_a_hundred_connections_at_once_are_all_served_though_four_relays_were_spare(ready: Field) -> None:
    wait_for(lambda: len(ready.idle()) == 4, "four spare relays")
    connections = [ready.connect() for _ in range(100)]
    far = [ready.accept() for _ in connections]
    by_relay = {connection.relay() for connection in connections}
    assert len(by_relay) == 100
    for number, connection in enumerate(connections):
        connection.attacker.sendall(b"%03d" % number)
    assert sorted(sock.recv(10) for sock in far) == [b"%03d" % number for number in range(100)]
    for sock in (*far, *(connection.attacker for connection in connections)):
        sock.close()
    assert {connection.ending().end_reason for connection in connections} == {EndReason.CLOSED}
    wait_for(lambda: len(ready.relays()) == 16, "the relays that are too many to retire")


def test_there_are_never_more_relays_than_allowed_and_the_rest_waits_in_the_queue(single: Field) -> None:
    first, far = single.pair()
    second = single.connect()
    assert not select.select([single.service], [], [], 0.3)[0]
    assert len(single.relays()) == 1
    first.attacker.close()
    far.close()
    second.attacker.sendall(b"my turn")
    assert single.accept().recv(10) == b"my turn"


def test_two_hundred_sessions_in_one_relay_leak_no_descriptor(single: Field) -> None:
    wait_for(lambda: len(single.idle()) == 1, "the relay")
    (relay,) = single.idle()
    before = descriptors_of(relay)
    for _ in range(200):
        connection, far = single.pair()
        connection.attacker.sendall(b"x")
        assert far.recv(1) == b"x"
        far.close()
        connection.attacker.close()
        wait_for(lambda link=connection: link.over, "the relay to let go")  # type: ignore[misc]
        assert connection.relay() == relay
    wait_for(lambda: len(single.idle()) == 1, "the relay to be idle")
    assert descriptors_of(relay) == before


def test_only_the_serving_relay_holds_the_attackers_connection(ready: Field) -> None:
    connection, _ = ready.pair()
    held = tcp_inode(connection.attacker)
    holders = {pid for pid in (*ready.relays(), ready.zygote.pid) if held in descriptors_of(pid).values()}
    assert holders == {connection.relay()}


def descriptors_of(pid: int) -> dict[str, str]:
    """Tell what each descriptor of a process is."""
    return {fd.name: str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}


def tcp_inode(attacker: socket.socket) -> str:
    """Find the other end of a connection by its ports in /proc/net/tcp."""
    ports = (f"{attacker.getpeername()[1]:04X}", f"{attacker.getsockname()[1]:04X}")
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if (columns[1][-4:], columns[2][-4:]) == ports:
            return f"socket:[{columns[9]}]"
    raise AssertionError("the connection is not in /proc/net/tcp")


@pytest.mark.parametrize("manner", ["killed", "manager gone"])
def test_a_session_outlives_the_zygote_and_then_its_relay_ends(ready: Field, manner: str) -> None:
    connection, far = ready.pair()
    relay = mark(connection.relay())
    others = [mark(pid) for pid in wait_for(ready.idle, "idle relays") if pid != relay.pid]
    if manner == "killed":
        ready.zygote.kill()
    else:
        ready.control.close()
    ready.zygote.wait()
    wait_for(lambda: not any(other.alive for other in others), "idle relays to end")
    for _ in range(3):
        connection.attacker.sendall(b"on")
        assert far.recv(10) == b"on"
    assert relay.alive
    far.close()
    connection.attacker.close()
    assert connection.ending().end_reason is EndReason.CLOSED
    wait_for(lambda: not relay.alive, "the relay to end")


def test_a_killed_relay_takes_only_its_own_session_with_it(ready: Field) -> None:
    one, one_far = ready.pair()
    other, other_far = ready.pair()
    one.attacker.sendall(b"recorded")
    assert one_far.recv(10) == b"recorded"
    os.kill(one.relay(), signal.SIGKILL)
    assert one_far.recv(1) == b""
    other.attacker.sendall(b"alive")
    assert other_far.recv(10) == b"alive"
    assert one.recorded(Direction.IN) == b"recorded"
    assert not (one.spool / "end.json").exists()
    wait_for(lambda: [s for s in ready.reports() if s.what is Happened.DIED], "the report of its death")
    third, third_far = ready.pair()
    third.attacker.sendall(b"next")
    assert third_far.recv(10) == b"next"


def test_nonsense_at_the_handoff_socket_costs_nothing(single: Field) -> None:
    with Path("/dev/null").open("rb") as null:
        for message, fds in ((b"nonsense", []), (b"\x80", [null.fileno()])):
            with descriptors.connect(single.root / "handoff") as link:
                descriptors.send(link, message, fds)
    connection, far = single.pair()
    connection.attacker.sendall(b"fine")
    assert far.recv(10) == b"fine"


def test_the_herd_forks_what_is_lacking_within_its_total() -> None:
    herd = Herd(Sizes(spare=4, total=6))
    assert herd.lacking == 4
    for pid in range(4):
        herd.forked(pid)
    for pid in range(3):
        herd.heard(Report(relay=pid, what=Happened.TOOK))
    assert herd.lacking == 2
    assert herd.died(3)
    assert not herd.died(0)
    assert herd.lacking == 4


def test_the_herd_retires_relays_beyond_four_times_the_spare_ones() -> None:
    herd = Herd(Sizes(spare=1, total=50))
    for pid in range(7):
        herd.forked(pid)
        herd.heard(Report(relay=pid, what=Happened.IDLE))
    assert herd.surplus() == [4, 5, 6]
    assert herd.surplus() == []


def test_lines_are_put_together_across_reads() -> None:
    lines = Lines()
    assert [list(lines.feed(part)) for part in (b"a\nb", b"c\n", b"")] == [[b"a"], [b"bc"], []]
