"""The outage's arithmetic: told once, back-off from one second to thirty."""

from __future__ import annotations

import pytest

from bus.errors import BusError, PeerDown, Refused
from recorder.outage import Outage, is_bad_capture, is_outage


def test_the_pause_doubles_to_half_a_minute_and_starts_over_after_a_success() -> None:
    outage = Outage()
    assert not outage.lasts
    began, pauses = [], []
    for _ in range(8):
        began.append(outage.fail("why", 100.0))
        pauses.append(outage.pause_s(100.0))
    assert began == [True] + [False] * 7
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert outage.pause_s(500.0) == 0
    assert [outage.succeed(), outage.succeed()] == [True, False]
    outage.fail("why", 0.0)
    assert outage.pause_s(0.0) == 1


@pytest.mark.parametrize(
    ("error", "outage", "bad"),
    [
        (PeerDown("x"), True, False),
        (Refused("disk_full", "x"), True, False),
        (Refused("bad_capture", "x"), False, True),
        (Refused("failed", "x"), False, False),
    ],
)
def test_errors_are_of_storage_of_the_capture_or_of_neither(error: BusError, outage: bool, bad: bool) -> None:
    assert (is_outage(error), is_bad_capture(error)) == (outage, bad)
