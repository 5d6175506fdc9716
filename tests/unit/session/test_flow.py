"""The pure core: whatever sockets do, bytes keep their order, none is lost, and the end has the right name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.records import EndReason
from bus.spool import Direction
from session.flow import Flow, opposite

IN, OUT = Direction.IN, Direction.OUT
READ, SEND, FINISH = "read", "send", "finish"

steps = st.lists(
    st.tuples(st.sampled_from((READ, SEND, FINISH)), st.sampled_from(Direction), st.binary(min_size=1, max_size=40)),
    max_size=60,
)


class Wire:
    """Plays both sockets to a flow, reading into one reused buffer as the copy loop does."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.buffer = bytearray(64)
        self.read: dict[Direction, bytes] = {IN: b"", OUT: b""}
        self.sent: dict[Direction, bytes] = {IN: b"", OUT: b""}

    def take(self, direction: Direction, data: bytes, sendable: int) -> None:
        size = min(len(data), self.flow.readable_bytes(direction))
        if not size:
            return
        self.buffer[:size] = data[:size]
        self.read[direction] += data[:size]
        self.flow.took(direction, memoryview(self.buffer)[:size], 1.0)
        self.send(direction, sendable)

    def send(self, direction: Direction, most: int) -> None:
        lane = self.flow.lanes[direction]
        out = bytes(lane.pending[:most])
        self.sent[direction] += out
        self.flow.sent(direction, len(out), 1.0)
        if lane.finish_due:
            self.flow.shut(direction)

    def finish(self, direction: Direction) -> None:
        if self.flow.readable_bytes(direction):
            self.flow.finished(direction)
            if self.flow.lanes[direction].finish_due:
                self.flow.shut(direction)


@given(steps)
def test_every_sequence_of_reads_short_writes_and_ends_keeps_order_and_loses_nothing(
    played: list[tuple[str, Direction, bytes]],
) -> None:
    flow = Flow(10, 10**6, 0.0)
    wire = Wire(flow)
    for what, direction, data in played:
        if what == READ:
            wire.take(direction, data, data[0] % (len(data) + 1))
        elif what == SEND:
            wire.send(direction, data[0] % (len(data) + 1))
        else:
            wire.finish(direction)
        for lane, way in zip(flow.lanes, Direction, strict=True):
            assert wire.read[way] == wire.sent[way] + bytes(lane.pending)
            assert lane.unsent == len(lane.pending)
            assert not (lane.shut and lane.pending)
    for direction in Direction:
        wire.send(direction, 100)
        wire.finish(direction)
        wire.send(direction, 100)
    assert wire.read == wire.sent
    assert (flow.ending, flow.over) == (EndReason.CLOSED, True)


@given(steps, st.integers(1, 50))
def test_the_byte_limit_is_never_passed_and_everything_up_to_it_is_sent(
    played: list[tuple[str, Direction, bytes]], limit: int
) -> None:
    flow = Flow(10, limit, 0.0)
    wire = Wire(flow)
    for _, direction, data in played:
        wire.take(direction, data, 1)
        wire.send(direction, 2)
    total = sum(len(data) for data in wire.read.values())
    assert total <= limit
    assert (flow.ending is EndReason.BYTE_LIMIT) == (total == limit)
    for direction in Direction:
        wire.send(direction, 100)
    assert wire.read == wire.sent
    assert flow.over == (total == limit)


def test_while_bytes_are_pending_their_sender_is_not_read_and_the_other_is() -> None:
    flow = Flow(10, 1000, 0.0)
    flow.took(IN, memoryview(b"abc"), 0.0)
    flow.sent(IN, 1, 0.0)
    assert (flow.readable_bytes(IN), flow.readable_bytes(OUT)) == (0, 997)


@pytest.mark.parametrize(("direction", "reason"), [(IN, EndReason.CLIENT_RESET), (OUT, EndReason.SERVICE_RESET)])
def test_a_reset_lets_what_its_sender_sent_before_go_out_first(direction: Direction, reason: EndReason) -> None:
    flow = Flow(10, 1000, 0.0)
    flow.took(direction, memoryview(b"last words"), 0.0)
    flow.sent(direction, 4, 0.0)
    flow.reset(direction)
    assert (flow.ending, flow.over) == (reason, False)
    flow.sent(direction, 6, 0.0)
    assert flow.over


def test_a_reset_drops_what_can_no_longer_reach_its_sender() -> None:
    flow = Flow(10, 1000, 0.0)
    flow.took(OUT, memoryview(b"answer"), 0.0)
    flow.sent(OUT, 2, 0.0)
    flow.reset(IN)
    assert (flow.over, flow.lanes[OUT].unsent) == (True, 4)


@pytest.mark.parametrize("direction", Direction)
def test_a_refused_write_is_the_receivers_reset_once_it_has_nothing_more_to_say(direction: Direction) -> None:
    flow = Flow(10, 1000, 0.0)
    flow.took(direction, memoryview(b"abc"), 0.0)
    flow.broke(direction)
    assert not flow.over
    assert flow.readable_bytes(opposite(direction))
    flow.finished(opposite(direction))
    assert flow.ending is (EndReason.SERVICE_RESET if direction is IN else EndReason.CLIENT_RESET)
    assert flow.lanes[direction].unsent == 3


def test_bytes_in_either_direction_put_inactivity_off() -> None:
    flow = Flow(10, 1000, 0.0)
    flow.expire(9.9)
    flow.took(OUT, memoryview(b"a"), 9.9)
    flow.expire(19.8)
    assert not flow.over
    flow.expire(19.9)
    assert (flow.ending, flow.over) == (EndReason.INACTIVE, True)


def test_an_order_ends_at_once_and_the_first_reason_stays() -> None:
    flow = Flow(10, 3, 0.0)
    flow.took(IN, memoryview(b"abc"), 0.0)
    flow.stop(EndReason.OPERATOR)
    assert (flow.ending, flow.over, flow.lanes[IN].unsent) == (EndReason.BYTE_LIMIT, True, 3)
