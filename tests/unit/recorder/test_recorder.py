"""Recorder and storage as real processes: what is in the spool arrives, once and whole, whatever happens on the way."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bus.catalogue import GetContainer, GetSession, Ping, StorageAway
from bus.errors import Refused
from bus.events import Received, subscribe
from bus.model import new_id
from bus.records import ContainerFacts, ContainerRecord, EndReason
from bus.spool import MAGIC, Direction, Kind, frames
from tests.unit.storage.instance import Beside, Instance, dead_process, instance, wait_for


@pytest.fixture
def running() -> Iterator[Instance]:
    with instance() as made:
        made.start("storage", "recorder")
        yield made


def spooled(made: Instance) -> list[str]:
    return sorted(path.name for path in made.layout.spool.iterdir())


def empty(made: Instance) -> None:
    wait_for(lambda: not spooled(made) and not list(made.layout.harvest.iterdir()), f"empty\n{made.log('recorder')}")


def harvest(made: Instance, tar: bytes | None, **changes: object) -> ContainerRecord:
    now = datetime.now(UTC)
    record = ContainerRecord(
        id=new_id(),
        sensor="test",
        template="t",
        image="i",
        source="198.51.100.7",
        sessions=("0" * 24,),
        created_at=now,
        destroyed_at=now,
    ).model_copy(update=changes)
    path = made.layout.harvest / record.id
    path.mkdir()
    if tar is not None:
        (path / "upper.tar").write_bytes(tar)
    (path / ".container.json").write_text(record.model_dump_json())
    (path / ".container.json").rename(path / "container.json")
    return record


def test_a_spooled_session_arrives_byte_for_byte(running: Instance) -> None:
    writer = running.session(os.urandom(100_000), end=False)
    writer.attached(ContainerFacts(id="c", template="t", image="i"))
    content = (writer.path / "stream").read_bytes()
    running.session(b"another")
    writer.append(time.time_ns(), Direction.IN, Kind.FINISHED)
    content = (writer.path / "stream").read_bytes()
    wait_for(lambda: any(s.id == writer.path.name for s in running.stored()), "the live session to be listed")
    end = '{"ended_at": "2030-01-01T00:00:00Z", "end_reason": "inactive", "bytes_in": 5, "bytes_out": 6}'
    (writer.path / "end.json").write_text(end)
    empty(running)
    record = running.ask("storage", GetSession(session=writer.path.name))
    assert record.stream
    assert running.blob(record.stream.sha256) == content
    assert (record.end_reason, record.bytes_in, record.bytes_out) == (EndReason.INACTIVE, 5, 6)
    assert (record.configuration, record.service, record.sensor) == ("c0ffee", "ssh", "test")
    assert record.container == ContainerFacts(id="c", template="t", image="i")
    assert record.source.address == "198.51.100.7"


def test_a_live_session_is_listed_and_then_with_its_container(running: Instance) -> None:
    writer = running.session(end=False)
    wait_for(running.stored, "the live session to be listed")
    (listed,) = running.stored()
    assert (listed.id, listed.ended_at, listed.container, listed.stream) == (writer.path.name, None, None, None)
    writer.attached(ContainerFacts(id="c", template="t", image="i"))
    wait_for(lambda: running.stored()[0].container, "the container to be listed")
    assert spooled(running) == [writer.path.name]


def test_a_torn_session_is_sealed_to_its_last_whole_frame(running: Instance) -> None:
    writer = running.session(b"0123456789", end=False, relay=dead_process())
    whole = (writer.path / "stream").read_bytes()
    with (writer.path / "stream").open("ab") as stream:
        stream.write(struct.pack("<QBBHI", time.time_ns(), 0, 0, 0, 500) + b"torn")
    empty(running)
    (record,) = running.stored()
    assert record.stream
    assert running.blob(record.stream.sha256) == whole
    assert (record.end_reason, record.bytes_in, record.bytes_out) == (EndReason.TORN, 10, 11)
    last = list(frames(io.BytesIO(whole)))[-1]
    assert record.ended_at
    assert abs(record.ended_at.timestamp() - last.at_ns / 1e9) < 1e-5


def test_zeros_after_a_power_cut_are_no_frames(running: Instance) -> None:
    writer = running.session(b"0123456789", end=False, relay=dead_process())
    whole = (writer.path / "stream").read_bytes()
    with (writer.path / "stream").open("ab") as stream:
        stream.write(bytes(4096))
    empty(running)
    (record,) = running.stored()
    assert record.stream
    assert running.blob(record.stream.sha256) == whole
    assert record.ended_at
    assert record.ended_at >= record.started_at


def test_a_torn_session_without_a_frame_ended_when_it_started(running: Instance) -> None:
    writer = running.session(end=False, relay=dead_process())
    os.truncate(writer.path / "stream", len(MAGIC))
    empty(running)
    (record,) = running.stored()
    assert (record.ended_at, record.bytes_in, record.bytes_out) == (record.started_at, 0, 0)


def test_damaged_directories_are_set_aside_whole_and_block_nobody(running: Instance) -> None:
    damaged = [running.session(end=False).path for _ in range(4)]
    (damaged[0] / "end.json").write_bytes(b"\0" * 100)
    (damaged[1] / "attached.json").write_bytes(b"{")
    (damaged[2] / "end.json").write_bytes(b'{"ended_at": "2030-01-01T00:00:00Z"}')
    wrong = damaged[3].rename(damaged[3].with_name(new_id()))
    (wrong / "end.json").write_bytes((running.session().path / "end.json").read_bytes())
    good = running.session(b"good").path.name
    empty(running)
    assert any(session.id == good and session.ended_at for session in running.stored())
    aside = running.layout.state_dir / "damaged"
    assert sorted(p.name for p in aside.iterdir()) == sorted([*(p.name for p in damaged[:3]), wrong.name])
    assert all((path / "stream").stat().st_size > len(MAGIC) for path in aside.iterdir())
    assert running.ask("recorder", Ping()).metrics["damaged_total"] == 4


def test_an_abandoned_directory_goes_and_a_young_or_foreign_one_stays(running: Instance) -> None:
    old, young, foreign = (running.layout.spool / name for name in (new_id(), new_id(), "lost+found"))
    for path in (old, young, foreign):
        path.mkdir()
    (old / "stream").write_bytes(MAGIC)
    os.utime(old, (time.time() - 120, time.time() - 120))
    wait_for(lambda: not old.exists(), "the abandoned directory to go")
    running.flush()
    assert spooled(running) == sorted([young.name, "lost+found"])
    assert old.name in running.log("recorder")


@pytest.mark.parametrize("tar", [None, b"", os.urandom(200_000)])
def test_a_harvest_arrives(running: Instance, tar: bytes | None) -> None:
    deleted = tuple(f"/usr/share/doc/{n}/\N{RIGHT-TO-LEFT OVERRIDE}changelog" for n in range(20_000))
    record = harvest(running, tar, deleted=deleted)  # its record is far longer than a datagram
    (running.layout.harvest / new_id()).mkdir()  # not written yet
    wait_for(lambda: not (running.layout.harvest / record.id).exists(), "the harvest to be handed over")
    stored = running.ask("storage", GetContainer(container=record.id))
    assert stored.model_copy(update={"harvest": None}) == record
    assert (stored.harvest is None) == (tar is None)
    if stored.harvest:
        assert running.blob(stored.harvest.sha256) == tar
    assert len(list(running.layout.harvest.iterdir())) == 1


def test_everything_waits_while_storage_is_away_and_arrives_once(running: Instance) -> None:
    events: list[Received] = []
    listener = Beside(follow(running, events))
    try:
        running.stop("storage", signal.SIGKILL)
        written = [running.session(os.urandom(500)).path.name for _ in range(30)]
        record = harvest(running, b"tar")
        assert running.flush() == 31
        wait_for(lambda: events, "the event that storage is away")
        assert running.flush() == 31
        assert spooled(running) == sorted(written)
        assert "storage is away" in running.ask("recorder", Ping()).detail
        running.start("storage")
        assert running.flush() == 0
        empty(running)
    finally:
        listener.stop()
    assert [s.id for s in running.stored()] == sorted(written, reverse=True)
    assert running.ask("storage", GetContainer(container=record.id)).harvest
    assert len(events) == 1
    assert running.log("recorder").count("storage takes no captures") == 1
    assert running.log("recorder").count("storage takes captures again") == 1


async def follow(made: Instance, events: list[Received]) -> None:
    async for event in subscribe(made.layout, ["recorder"], StorageAway):
        events.append(event)  # noqa: PERF401 - seen from outside while it goes on


def test_storage_without_room_keeps_the_spool_and_takes_it_later() -> None:
    with instance() as made:
        blobs = made.layout.state_dir / "blobs"
        blobs.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(blobs)], check=True)
        try:
            made.start("storage", "recorder")
            (blobs / "filler").write_bytes(bytes(1 << 20))
            path = made.session(os.urandom(600_000)).path
            content = (path / "stream").read_bytes()
            assert made.flush() == 1
            assert (path / "stream").read_bytes() == content
            assert "No space left" in made.ask("recorder", Ping()).detail
            (blobs / "filler").unlink()
            assert made.flush() == 0
            (record,) = made.stored()
            assert record.stream
            assert made.blob(record.stream.sha256) == content
            made.stop("storage")
        finally:
            subprocess.run(["umount", "-l", str(blobs)], check=True)


def test_a_session_stored_but_not_yet_removed_is_handed_over_again_unchanged(running: Instance) -> None:
    path = running.session(b"twice", end=False).path
    copy = running.root / "copy"
    (path / "end.json").write_text(
        '{"ended_at": "2030-01-01T00:00:00Z", "end_reason": "closed", "bytes_in": 5, "bytes_out": 6}'
    )
    shutil.copytree(path, copy, ignore_dangling_symlinks=True)
    empty(running)
    before = running.stored()
    shutil.move(copy, path)
    empty(running)
    assert running.stored() == before
    assert len(list((running.layout.state_dir / "blobs").glob("??/*"))) == 1


def test_a_half_removed_session_is_not_taken_for_a_torn_one() -> None:
    with instance() as made:
        path = made.session(b"content", end=False, relay=dead_process()).path
        path.rename(path.with_name(f".done-{path.name}"))
        made.start("storage", "recorder")
        assert made.flush() == 0
        empty(made)
        assert made.stored() == []


@pytest.mark.parametrize("victim", ["storage", "recorder"])
def test_killed_again_and_again_each_session_arrives_once_and_whole(victim: str) -> None:
    with instance() as made:
        made.start("storage", "recorder")
        streams: dict[str, bytes] = {}
        for _ in range(3):
            for _ in range(40):
                path = made.session(os.urandom(2000), end=False).path
                streams[path.name] = (path / "stream").read_bytes()
                ending = {
                    "ended_at": "2030-01-01T00:00:00Z", "end_reason": "closed", "bytes_in": 2000, "bytes_out": 2001
                }  # fmt: skip
                (path / ".end").write_text(json.dumps(ending))
                (path / ".end").rename(path / "end.json")
            count = len(spooled(made))
            wait_for(lambda count=count: len(spooled(made)) < count, "some to be handed over")  # type: ignore[misc]
            made.stop(victim, signal.SIGKILL)
            made.start(victim)
        assert made.flush() == 0
        empty(made)
        stored = made.stored()
        assert sorted(s.id for s in stored) == sorted(streams)
        for session in stored:
            assert session.end_reason == EndReason.CLOSED
            assert session.stream
            assert made.blob(session.stream.sha256) == streams[session.id]


def test_it_is_quiet_when_there_is_nothing_to_do(running: Instance) -> None:
    """A hundred live sessions cost it little: well under a tenth of one processor."""
    for _ in range(100):
        running.session(end=False)
    wait_for(lambda: len(running.stored()) == 100, "the live sessions to be listed")
    running.flush()
    fields = Path(f"/proc/{running.processes['recorder'].pid}/stat")

    def used() -> int:
        numbers = fields.read_text().rpartition(") ")[2].split()
        return int(numbers[11]) + int(numbers[12])

    before, start = used(), time.monotonic()
    wait_for(lambda: time.monotonic() - start > 3, "three seconds")
    assert used() - before < 30


def test_an_unknown_container_is_not_found(running: Instance) -> None:
    with pytest.raises(Refused):
        running.ask("storage", GetContainer(container=new_id()))
