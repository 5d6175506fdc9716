"""Events over ZeroMQ PUB/SUB: a doorbell that may be missed, and says how much was missed.

Frames: topic (the event's name), msgpack of the envelope, msgpack of the event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio

from bus.catalogue import EVENTS, Event
from bus.layout import Layout
from bus.model import Frozen, Instant, new_id, now


class Envelope(Frozen):
    """Who said it, in which life of his, as the how-manieth, and when."""

    manager: str
    boot: str
    sequence: int
    at: Instant


@dataclass(frozen=True)
class Received:
    """An event with its envelope; `missed` events of the same life came before it and were lost."""

    envelope: Envelope
    event: Event
    missed: int


class Publisher:
    """A manager's PUB socket; `boot` is this life's id."""

    def __init__(self, layout: Layout, manager: str) -> None:
        self.boot = new_id()
        self._manager = manager
        self._sequence = 0
        path = layout.events(manager)
        self._sock: zmq.SyncSocket = zmq.Context.instance().socket(zmq.PUB)
        self._sock.setsockopt(zmq.LINGER, 0)
        self._sock.bind(f"ipc://{path}")
        path.chmod(0o660)

    def emit(self, event: Event) -> None:
        """Publish; never blocks, and a slow subscriber misses it."""
        self._sequence += 1
        envelope = Envelope(manager=self._manager, boot=self.boot, sequence=self._sequence, at=now())
        self._sock.send_multipart([event.name.encode(), envelope.pack(), event.pack()])

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class Gaps:
    """Counts what a subscriber missed, by life and sequence number (a new life starts a new count)."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], int] = {}

    def missed(self, envelope: Envelope) -> int:
        """Note an envelope; tell how many came before it unseen since the first seen of its life."""
        key = (envelope.manager, envelope.boot)
        last = self._last.get(key)
        self._last[key] = envelope.sequence
        return 0 if last is None else max(0, envelope.sequence - last - 1)


async def subscribe(layout: Layout, managers: Iterable[str], *events: type[Event]) -> AsyncIterator[Received]:
    """Give every event of these managers, for ever; only the kinds named, if any is (gaps are then not counted)."""
    gaps = Gaps()
    with zmq.asyncio.Context.instance().socket(zmq.SUB) as sock:
        sock.linger = 0
        for manager in managers:
            sock.connect(f"ipc://{layout.events(manager)}")
        for topic in [event.name for event in events] or [""]:
            sock.subscribe(topic)
        while True:
            received = _read(await sock.recv_multipart(), None if events else gaps)
            if received:
                yield received


def _read(frames: list[Any], gaps: Gaps | None) -> Received | None:
    """Decode frames; None for what is not in the catalogue."""
    try:
        topic, envelope_data, payload = frames
        envelope = Envelope.unpack(envelope_data)
        event = EVENTS[topic.decode()].unpack(payload)
    except (ValueError, KeyError):
        return None
    return Received(envelope, event, gaps.missed(envelope) if gaps else 0)
