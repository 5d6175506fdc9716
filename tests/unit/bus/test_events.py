"""Events over real ZeroMQ sockets, and the count of what was missed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bus.catalogue import SessionStored, StorageAway
from bus.events import Envelope, Gaps, Publisher, Received, subscribe
from bus.layout import Layout
from bus.model import now


def test_a_subscriber_gets_events_with_boot_and_sequence(tmp_path: Path) -> None:
    (tmp_path / "recorder").mkdir()
    layout = Layout(tmp_path, tmp_path, tmp_path)

    async def scenario() -> list[Received]:
        publisher = Publisher(layout, "recorder")
        received: list[Received] = []

        async def listen() -> None:
            async for item in subscribe(layout, ["recorder"]):
                received.append(item)
                if isinstance(item.event, StorageAway):
                    return

        listening = asyncio.create_task(listen())
        try:
            while not received:  # PUB drops what nobody has subscribed to yet
                publisher.emit(SessionStored(session="s"))
                await asyncio.wait([listening], timeout=0.02)
            publisher.emit(StorageAway(waiting=3, reason="gone"))
            await listening
        finally:
            publisher.close()
        return received

    received = asyncio.run(asyncio.wait_for(scenario(), 10))
    assert received[-1].event == StorageAway(waiting=3, reason="gone")
    assert len({item.envelope.boot for item in received}) == 1
    sequences = [item.envelope.sequence for item in received]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    assert all(item.missed == 0 for item in received)


@given(st.sets(st.integers(min_value=1, max_value=60), min_size=1))
def test_gaps_add_up_to_what_was_not_seen(seen: set[int]) -> None:
    gaps = Gaps()
    missed = sum(gaps.missed(Envelope(manager="m", boot="b", sequence=n, at=now())) for n in sorted(seen))
    assert missed == max(seen) - min(seen) + 1 - len(seen)


def test_a_new_life_is_no_gap() -> None:
    gaps = Gaps()
    gaps.missed(Envelope(manager="m", boot="first", sequence=900, at=now()))
    assert gaps.missed(Envelope(manager="m", boot="second", sequence=1, at=now())) == 0
