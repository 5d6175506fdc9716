"""What a relay does before there is anything to copy: no spool, no door, no answer, and impatient attackers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import spool
from bus.records import EndReason
from bus.spool import Direction, Kind
from session.reports import Happened
from tests.unit.session.field import CONTAINER, Connection, Field, battlefield, wait_for
from tests.unit.session.test_copy import BULK, cpu_ticks, reset

HUGE_MIB = 1 << 40


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Field]:
    """Give relays whose spool is a filesystem of one MiB."""
    directory = tmp_path / "spool"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)], check=True)
    try:
        with battlefield(tmp_path, directory) as made:
            made.open_door()
            yield made
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def reason_said(field: Field, connection: Connection) -> EndReason | None:
    ended = [said for said in field.reports() if said.what is Happened.ENDED]
    return next((said.end_reason for said in ended if said.identity and said.identity.id == connection.id), None)


def test_a_spool_that_fills_up_ends_the_session_by_name_and_the_next_one_is_served(tiny: Field) -> None:
    connection, far = tiny.pair()
    connection.attacker.setblocking(False)
    received = 0
    with pytest.raises((ConnectionError, BlockingIOError)):  # noqa: PT012 - pumped until the relay gives up
        far.settimeout(5)
        while True:
            connection.attacker.send(BULK[:65536])
            part = far.recv(1 << 20)
            if not part:
                raise ConnectionResetError
            received += len(part)
    ending = connection.ending()
    assert ending.end_reason is EndReason.SPOOL_FULL
    assert len(connection.recorded(Direction.IN)) == ending.bytes_in >= received
    (connection.spool / "stream").unlink()
    again, far = tiny.pair()
    again.attacker.sendall(b"room")
    assert far.recv(10) == b"room"


def test_a_spool_without_room_makes_connections_wait_and_then_closes_them(ready: Field) -> None:
    connection = ready.connect(min_free_mib=HUGE_MIB, limits={"wait_limit_seconds": 1})
    connection.attacker.sendall(b"hello")
    assert connection.attacker.recv(10) == b""
    wait_for(lambda: reason_said(ready, connection) is EndReason.SPOOL_FULL, "the report")
    assert not connection.spool.exists()


def test_a_connection_that_waits_for_the_spool_is_served_when_there_is_room(tiny: Field) -> None:
    filler = tiny.spool / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"0" * (2 << 20))
    connection = tiny.connect()
    wait_for(lambda: [said for said in tiny.reports() if said.what is Happened.TOOK], "a relay to take it")
    connection.attacker.sendall(b"early")
    filler.unlink()
    assert tiny.accept().recv(10) == b"early"


def test_a_door_that_comes_late_still_serves_and_early_bytes_arrive(bare: Field) -> None:
    connection = bare.connect()
    connection.attacker.sendall(b"early")
    relay = connection.relay()
    before = cpu_ticks(relay)
    bare.open_door()
    assert bare.accept().recv(10) == b"early"
    assert cpu_ticks(relay) - before < 10


def test_a_door_that_hangs_up_without_an_answer_is_asked_again(ready: Field) -> None:
    assert ready.door
    ready.door.mute = True
    connection = ready.connect()
    connection.attacker.sendall(b"early")
    connection.relay()
    ready.door.mute = False
    assert ready.accept().recv(10) == b"early"


def test_without_a_container_in_time_the_attacker_is_closed_with_a_fin(bare: Field) -> None:
    connection = bare.connect(limits={"wait_limit_seconds": 1})
    connection.attacker.sendall(b"hello" * 1000)
    assert connection.attacker.recv(10) == b""
    ending = connection.ending()
    assert (ending.end_reason, ending.bytes_in) == (EndReason.NO_CONTAINER, 0)


def test_a_refusal_ends_the_session_at_once_with_its_reason_reported(ready: Field) -> None:
    assert ready.door
    ready.door.refusal = "the pool is gone"
    connection = ready.connect()
    assert connection.attacker.recv(10) == b""
    assert connection.ending().end_reason is EndReason.NO_CONTAINER
    wait_for(lambda: [said for said in ready.reports() if "the pool is gone" in said.detail], "the detail")


def test_an_attacker_who_resets_while_waiting_is_let_go(bare: Field) -> None:
    connection = bare.connect()
    connection.relay()
    reset(connection.attacker)
    assert connection.ending().end_reason is EndReason.CLIENT_RESET
    assert connection.marks() == [(Direction.IN, Kind.RESET)]


def test_an_operator_ends_a_session_that_waits(bare: Field) -> None:
    connection = bare.connect()
    os.kill(connection.relay(), signal.SIGUSR1)
    assert connection.attacker.recv(10) == b""
    assert connection.ending().end_reason is EndReason.OPERATOR


def test_when_the_door_comes_back_a_live_session_says_which_container_it_uses(ready: Field) -> None:
    connection, far = ready.pair()
    wait_for((connection.spool / "attached.json").exists, "the container's facts")
    ready.close_door()
    connection.attacker.sendall(b"meanwhile")
    assert far.recv(10) == b"meanwhile"
    door = ready.open_door()
    wait_for(lambda: door.requests, "the relay to come back")
    assert [(said.identity.id, said.container) for said in door.requests] == [(connection.id, CONTAINER.id)]
    connection.attacker.sendall(b"after")
    assert far.recv(10) == b"after"
    connection.attacker.close()
    far.close()
    wait_for(lambda: door.kept == 0, "the attach connection to close with the session")
    entry = spool.load(connection.spool)
    assert entry
    assert entry.container == CONTAINER
