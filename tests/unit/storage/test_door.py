"""Storage as a real process: its door, its commands, and what a kill in the middle leaves."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from bus.capture import File, Ingest, Subject, ingest, open_blob
from bus.catalogue import Apply, FindSessions, GetContainer, GetSession, Ping
from bus.descriptors import request
from bus.errors import BusError, PeerDown, Refused
from bus.model import unpack
from bus.records import Blob, SessionRecord
from bus.settings import StorageSettings
from tests.unit.storage.instance import Instance, instance, record, wait_for


@pytest.fixture
def running() -> Iterator[Instance]:
    with instance() as made:
        made.start("storage")
        yield made


@contextmanager
def descriptors(*contents: bytes) -> Iterator[list[int]]:
    fds = [os.memfd_create("test") for _ in contents]
    try:
        for fd, content in zip(fds, contents, strict=True):
            os.write(fd, content)
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def hand(made: Instance, session: SessionRecord, *files: bytes, names: Sequence[File] = (File.STREAM,)) -> Any:
    question = Ingest(subject=Subject.SESSION, files=tuple(names[: len(files)]))
    with descriptors(session.model_dump_json().encode(), *files) as fds:
        return asyncio.run(ingest(made.layout.door, question, fds, timeout_s=30))


def fetch(made: Instance, sha256: str) -> bytes:
    descriptor, size = asyncio.run(open_blob(made.layout.door, sha256))
    with os.fdopen(descriptor, "rb") as file:
        content = file.read()
    assert len(content) == size
    return content


def test_what_goes_in_comes_out(running: Instance) -> None:
    session, content = record(), os.urandom(3_000_000)
    digest = hashlib.sha256(content).hexdigest()
    assert hand(running, session, content) == (digest,)
    found = running.ask("storage", GetSession(session=session.id))
    assert found == session.model_copy(update={"stream": Blob(sha256=digest, size_bytes=len(content))})
    assert fetch(running, digest) == content
    assert running.log("storage").count('"error"') == 0


def test_a_blobs_descriptor_can_only_be_read(running: Instance) -> None:
    (digest,) = hand(running, record(), b"content")
    descriptor, _ = asyncio.run(open_blob(running.layout.door, digest))
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


def test_the_same_capture_again_changes_nothing(running: Instance) -> None:
    session = record()
    before = hand(running, session, b"content")
    assert hand(running, session, b"content") == before
    hand(running, session.model_copy(update={"ended_at": None, "end_reason": None}))
    (found,) = running.stored()
    assert found.ended_at == session.ended_at
    assert found.stream
    assert (found.stream.sha256,) == before


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\xff\xff", "bad_request"),
        (b"\x81\xa3ask\xa5steal", "bad_request"),
        (Ingest(subject=Subject.SESSION).pack(), "bad_capture"),
        (Ingest(subject=Subject.SESSION, files=(File.STREAM,)).pack(), "bad_capture"),
        (b"\x82\xa3ask\xa4open\xa6sha256\xa9../passwd", "bad_request"),
    ],
)
def test_nonsense_at_the_door_is_answered_by_name(running: Instance, message: bytes, code: str) -> None:
    answer, fds = asyncio.run(request(running.layout.door, message))
    assert fds == []
    assert unpack(answer)["code"] == code


@pytest.mark.parametrize("text", [b"", b"{}", b'{"id": "../../x"}', record().model_dump_json().encode()[:-1]])
def test_a_record_that_is_none_is_refused_and_nothing_is_stored(running: Instance, text: bytes) -> None:
    question = Ingest(subject=Subject.SESSION, files=(File.STREAM,))
    with descriptors(text, b"stream") as fds, pytest.raises(Refused) as refused:
        asyncio.run(ingest(running.layout.door, question, fds))
    assert refused.value.code == "bad_capture"
    assert running.stored() == []


def test_a_file_that_the_record_has_no_place_for_is_refused(running: Instance) -> None:
    with pytest.raises(Refused) as refused:
        hand(running, record(), b"x", names=[File.HARVEST])
    assert refused.value.code == "bad_capture"


def test_unknown_ids_are_not_found_and_bad_filters_are_named(running: Instance) -> None:
    with pytest.raises(Refused) as session:
        running.ask("storage", GetSession(session="0" * 24))
    with pytest.raises(Refused) as container:
        running.ask("storage", GetContainer(container="x' OR 1=1 --"))
    assert (session.value.code, container.value.code) == ("not_found", "not_found")
    bad: list[dict[str, Any]] = [
        {"source": "198.51.100.0/33"}, {"since": "yesterday"}, {"limit": 0}, {"limit": 1001}, {"cursor": "!"}
    ]  # fmt: skip
    for values in bad:
        with pytest.raises(Refused) as refused:
            running.ask("storage", FindSessions(**values))
        assert refused.value.code == "bad_request"
        assert str(refused.value).startswith(next(iter(values)))


def test_sessions_are_found_by_network_through_the_bus(running: Instance) -> None:
    for number in range(20):
        hand(running, record(f"198.51.{number}.9"))
    found = running.stored(source="198.51.4.0/22")
    assert [s.source.address for s in found] == [f"198.51.{n}.9" for n in (7, 6, 5, 4)]
    assert all(ip_address(s.source.address) in ip_network("198.51.4.0/22") for s in found)


def test_another_database_is_refused_while_running(running: Instance) -> None:
    other = running.config.model_copy(update={"storage": StorageSettings(url="/elsewhere")})
    problem = running.ask("storage", Apply(config=other, configuration="x", dry=True)).problem
    assert problem
    assert problem.startswith("storage:")
    assert running.ask("storage", Apply(config=running.config, configuration="y")).problem is None
    assert running.ask("storage", Ping()).configuration == "y"


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_in_the_middle_loses_nothing_that_was_acknowledged(seed: int) -> None:
    """Every acknowledged session is there once and whole, in three lives of storage, and no half blob is."""
    chance = random.Random(seed)  # noqa: S311 - chance that can be repeated
    acknowledged: dict[str, str] = {}
    with instance() as made:
        for _ in range(3):
            made.start("storage")
            over = threading.Event()

            def feed(over: threading.Event = over) -> None:
                while not over.is_set():
                    session, content = record(), os.urandom(chance.randrange(1, 300_000))
                    try:
                        (acknowledged[session.id],) = hand(made, session, content)
                    except PeerDown:
                        return

            before = len(acknowledged)
            threads = [threading.Thread(target=feed) for _ in range(3)]
            for thread in threads:
                thread.start()
            wanted = before + chance.randrange(5, 40)
            wait_for(lambda wanted=wanted: len(acknowledged) >= wanted, "some to be acknowledged")  # type: ignore[misc]
            made.stop("storage", signal.SIGKILL)
            over.set()
            for thread in threads:
                thread.join()
        made.start("storage")
        stored = made.stored()
        assert len({session.id for session in stored}) == len(stored)
        known = {session.id: session.stream.sha256 for session in stored if session.stream}
        assert acknowledged.items() <= known.items()
        for path in (made.layout.state_dir / "blobs").glob("??/*"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        assert set(known.values()) <= {p.name for p in (made.layout.state_dir / "blobs").glob("??/*")}
        assert list((made.layout.state_dir / "blobs" / "incoming").iterdir()) == []


def test_a_full_disk_is_an_answer_and_passes_with_room() -> None:
    with instance() as made:
        blobs = made.layout.state_dir / "blobs"
        blobs.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(blobs)], check=True)
        try:
            made.start("storage")
            filler = blobs / "filler"
            filler.write_bytes(bytes(1 << 20))
            session, content = record(), os.urandom(1_500_000)
            with pytest.raises(Refused) as refused:
                hand(made, session, content)
            assert refused.value.code == "disk_full"
            assert "\n" not in str(refused.value)
            assert made.stored() == []
            assert [p for p in blobs.rglob("*") if p.is_file()] == [filler]
            filler.unlink()
            (digest,) = hand(made, session, content)
            assert fetch(made, digest) == content
            made.stop("storage")
        finally:
            subprocess.run(["umount", "-l", str(blobs)], check=True)


def test_a_damaged_database_stops_storage_with_one_line() -> None:
    with instance() as made:
        path = made.layout.state_dir / "db" / "honeypot.sqlite"
        path.parent.mkdir()
        path.write_bytes(b"damaged " * 1000)
        made.start("storage", wait=False)
        assert made.processes["storage"].wait(20) == 1
        lines = made.log("storage").splitlines()
        assert len(lines) == 1
        assert "honeypot.sqlite: file is not a database" in lines[0]
        assert path.read_bytes() == b"damaged " * 1000


def test_it_ends_on_sigterm_and_says_nothing_bad(running: Instance, tmp_path: Path) -> None:
    hand(running, record(), b"x")
    assert running.stop("storage") == 0
    assert "traceback" not in running.log("storage")
    assert not (running.layout.state_dir / "db" / "honeypot.sqlite-wal").exists()
    with pytest.raises(BusError):
        hand(running, record(), b"x")
    assert list(tmp_path.iterdir()) == []
