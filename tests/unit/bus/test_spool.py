"""The spool's format: what is written is what is read, also when it is torn or the disk is full."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import process, spool
from bus.errors import SpoolError
from bus.model import instant, new_id
from bus.records import ContainerFacts, Endpoint, EndReason, Handoff, Identity
from bus.settings import Service
from bus.spool import Direction, Ending, Frame, Kind, Opening, Writer

GOLDEN = Path(__file__).parents[2] / "golden" / "stream-v1"
FRAMES = [
    Frame(1_700_000_000_000_000_001, Direction.IN, Kind.DATA, b"SSH-2.0-x\r\n"),
    Frame(1_700_000_000_000_000_002, Direction.OUT, Kind.DATA, bytes(range(256))),
    Frame(1_700_000_000_000_000_003, Direction.IN, Kind.FINISHED),
    Frame(1_700_000_000_000_000_004, Direction.OUT, Kind.RESET),
]


def opening(min_free_mib: int = 0) -> Opening:
    identity = Identity(
        id=new_id(),
        sensor="s",
        service="ssh",
        protocol="tcp",
        source=Endpoint(address="198.51.100.7", port=4000),
        destination=Endpoint(address="203.0.113.1", port=22),
        started_at=instant(1_700_000_000_000_000_000),
    )
    service = Service(name="ssh", port=22, container_template="t")
    handoff = Handoff(identity=identity, service=service, min_free_mib=min_free_mib, configuration="c")
    return Opening(handoff=handoff, relay=process.mark())


def write(writer: Writer, frames: list[Frame]) -> None:
    for frame in frames:
        writer.append(frame.at_ns, frame.direction, frame.kind, frame.payload)


def ending() -> Ending:
    return Ending(ended_at=instant(1), end_reason=EndReason.CLOSED, bytes_in=11, bytes_out=256)


def test_the_golden_stream_is_read_and_written_the_same(tmp_path: Path) -> None:
    writer = Writer(tmp_path, opening())
    write(writer, FRAMES)
    writer.end(ending())
    assert (writer.path / "stream").read_bytes() == GOLDEN.read_bytes()
    with GOLDEN.open("rb") as stream:
        assert list(spool.frames(stream)) == FRAMES


def test_an_entry_grows_from_opening_to_ending(tmp_path: Path) -> None:
    start = opening()
    facts = ContainerFacts(id="c", template="t", image="i")
    writer = Writer(tmp_path, start)
    first = spool.load(writer.path)
    assert first
    assert (first.opening, first.container, first.ending) == (start, None, None)
    writer.attached(facts)
    writer.end(ending())
    assert [(e.container, e.ending) for e in spool.entries(tmp_path)] == [(facts, ending())]


@given(cut=st.integers(min_value=0, max_value=400))
def test_a_torn_stream_is_whole_to_its_last_frame(cut: int) -> None:
    data = GOLDEN.read_bytes()
    torn = data[: max(len(spool.MAGIC), len(data) - cut)]
    frames = list(spool.frames(io.BytesIO(torn)))
    assert frames == FRAMES[: len(frames)]


def test_what_is_no_stream_is_a_named_error() -> None:
    with pytest.raises(SpoolError, match="not a stream"):
        list(spool.frames(io.BytesIO(b"GIF89a" + bytes(40))))


def test_a_disk_below_its_reserve_takes_no_session(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="MiB free"):
        Writer(tmp_path, opening(min_free_mib=1 << 40))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_entry_is_a_named_error(tmp_path: Path) -> None:
    writer = Writer(tmp_path, opening())
    (writer.path / "attached.json").write_text("{")
    with pytest.raises(SpoolError, match="damaged"):
        spool.load(writer.path)
