"""Bytes, half-closes, resets and limits through real relays: both ends of each connection are the test's."""

from __future__ import annotations

import hashlib
import os
import random
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bus.records import EndReason
from bus.spool import Direction, Kind
from tests.unit.session.field import Field, wait_for

IN, OUT = Direction.IN, Direction.OUT
BULK = random.Random(7).randbytes(20 << 20)  # noqa: S311 - reproducible bytes, no secret


def read_all(sock: socket.socket) -> bytes:
    """Read to the end."""
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def send_and(sock: socket.socket, data: bytes, then: Callable[[], None]) -> None:
    """Send all of it, then do that."""
    sock.sendall(data)
    then()


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_bytes_pass_both_ways_and_are_recorded_as_sent(ready: Field) -> None:
    connection, far = ready.pair()
    connection.attacker.sendall(b"question")
    assert far.recv(100) == b"question"
    far.sendall(b"answer")
    assert connection.attacker.recv(100) == b"answer"
    connection.attacker.close()
    assert far.recv(100) == b""
    far.close()
    ending = connection.ending()
    assert (ending.end_reason, ending.bytes_in, ending.bytes_out) == (EndReason.CLOSED, 8, 6)
    assert (connection.recorded(IN), connection.recorded(OUT)) == (b"question", b"answer")
    assert (connection.spool / "attached.json").exists()


def test_twenty_megabytes_each_way_at_once_arrive_whole(ready: Field) -> None:
    connection, far = ready.pair()
    got: dict[str, bytes] = {}

    def end(name: str, sock: socket.socket) -> None:
        sending = threading.Thread(target=send_and, args=(sock, BULK, lambda: sock.shutdown(socket.SHUT_WR)))
        sending.start()
        got[name] = read_all(sock)
        sending.join()

    threads = [threading.Thread(target=end, args=pair) for pair in (("a", connection.attacker), ("s", far))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    digest = hashlib.sha256(BULK).digest()
    assert [hashlib.sha256(got[name]).digest() for name in "as"] == [digest, digest]
    ending = connection.ending()
    assert (ending.end_reason, ending.bytes_in, ending.bytes_out) == (EndReason.CLOSED, len(BULK), len(BULK))
    assert (connection.recorded(IN), connection.recorded(OUT)) == (BULK, BULK)


@pytest.mark.parametrize("first", Direction)
def test_a_half_close_passes_and_the_other_way_goes_on(ready: Field, first: Direction) -> None:
    connection, far = ready.pair()
    near, other = (connection.attacker, far) if first is IN else (far, connection.attacker)
    near.sendall(b"last")
    near.shutdown(socket.SHUT_WR)
    assert read_all(other) == b"last"
    other.sendall(b"still here")
    assert near.recv(100) == b"still here"
    other.close()
    assert near.recv(100) == b""
    assert connection.ending().end_reason is EndReason.CLOSED
    last = Direction(1 - first)
    assert connection.marks() == [(first, Kind.FINISHED), (last, Kind.FINISHED)]


@pytest.mark.parametrize(("first", "reason"), [(IN, EndReason.CLIENT_RESET), (OUT, EndReason.SERVICE_RESET)])
def test_a_reset_passes_as_a_reset_after_the_bytes_before_it(ready: Field, first: Direction, reason: EndReason) -> None:
    connection, far = ready.pair()
    near, other = (connection.attacker, far) if first is IN else (far, connection.attacker)
    near.sendall(b"bytes")
    assert other.recv(100) == b"bytes"
    reset(near)
    with pytest.raises(ConnectionResetError):
        other.recv(100)
    assert connection.ending().end_reason is reason
    assert connection.marks() == [(first, Kind.RESET)]


def test_a_service_that_resets_while_the_attacker_is_slow_is_read_to_its_end_first(ready: Field) -> None:
    connection, far = ready.pair()
    sending = threading.Thread(target=send_and, args=(far, BULK[: 8 << 20], lambda: reset(far)))
    sending.start()
    sending.join(1)  # held up by the attacker who does not read yet, or done
    with pytest.raises(ConnectionResetError):
        read_all(connection.attacker)
    sending.join()
    assert connection.ending().end_reason is EndReason.SERVICE_RESET


def test_a_service_that_answers_and_closes_on_unread_bytes_still_gets_its_answer_through(ready: Field) -> None:
    connection, far = ready.pair()
    connection.attacker.sendall(b"x" * 100000)
    wait_for(lambda: select.select([far], [], [], 0)[0], "bytes at the service")
    far.sendall(b"go away")
    far.close()
    assert connection.attacker.recv(100) == b"go away"
    with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012 - which call meets it is the kernel's
        while connection.attacker.recv(100):
            pass
        connection.attacker.sendall(b"x")
        connection.attacker.sendall(b"x")
    assert connection.ending().end_reason is EndReason.SERVICE_RESET


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


@pytest.mark.parametrize("sender", Direction)
def test_a_stalled_reader_stops_the_sender_and_memory_stays_bounded(ready: Field, sender: Direction) -> None:
    connection, far = ready.pair()
    near, other = (connection.attacker, far) if sender is IN else (far, connection.attacker)
    relay = connection.relay()
    before = resident_kib(relay)
    near.setblocking(False)
    sent = 0
    while select.select([], [near], [], 1)[1]:
        sent += near.send(BULK[: 1 << 20])
        assert sent < 60 << 20, "nobody stopped the sender"
    assert resident_kib(relay) - before < 2048
    near.shutdown(socket.SHUT_WR)
    assert len(read_all(other)) == sent


def test_a_stalled_relay_does_not_spin(ready: Field) -> None:
    connection, far = ready.pair()
    far.setblocking(False)
    while select.select([], [far], [], 0.5)[1]:
        far.send(BULK[: 1 << 20])
    reset(far)
    relay = connection.relay()
    before = cpu_ticks(relay)
    assert not select.select([connection.link], [], [], 1)[0]
    assert cpu_ticks(relay) - before < 10


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_silent_session_ends_as_inactive_with_a_fin(ready: Field) -> None:
    connection, far = ready.pair(session={"timeout_seconds": 1})
    connection.attacker.sendall(b"hello")
    assert far.recv(10) == b"hello"
    assert connection.attacker.recv(10) == b""
    assert far.recv(10) == b""
    assert connection.ending().end_reason is EndReason.INACTIVE


@pytest.mark.parametrize("limit", [1, 70000])
def test_bytes_up_to_the_limit_are_forwarded_and_not_one_more(ready: Field, limit: int) -> None:
    connection, far = ready.pair(session={"max_bytes": limit})
    connection.attacker.sendall(b"y" * 200000)
    assert read_all(far) == b"y" * limit
    ending = connection.ending()
    assert (ending.end_reason, ending.bytes_in, ending.unsent_in) == (EndReason.BYTE_LIMIT, limit, 0)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGUSR1, EndReason.OPERATOR), (signal.SIGTERM, EndReason.SHUTDOWN)]
)
def test_a_signal_ends_the_session_with_its_reason(ready: Field, number: int, reason: EndReason) -> None:
    connection, far = ready.pair()
    connection.attacker.sendall(b"abc")
    assert far.recv(10) == b"abc"
    os.kill(connection.relay(), number)
    assert connection.attacker.recv(10) == b""
    assert connection.ending().end_reason is reason
    assert connection.recorded(IN) == b"abc"


def test_urgent_bytes_stay_in_line(ready: Field) -> None:
    connection, far = ready.pair()
    connection.attacker.sendall(b"ab")
    connection.attacker.send(b"!", socket.MSG_OOB)
    connection.attacker.sendall(b"cd")
    connection.attacker.shutdown(socket.SHUT_WR)
    assert read_all(far) == b"ab!cd"
