"""What heartbeats mean, as a pure function of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.catalogue import Health
from controller.health import GRACE_S, MISSES, Condition, answered, hold_off_s, missed, restart_due, restarted


def beat(boot: str = "one") -> Health:
    return Health(manager="storage", boot=boot, pid=1)


def up(at_s: float = 0.0) -> Condition:
    return answered(Condition("storage", at_s), beat(), at_s)


def silent(condition: Condition, times: int, at_s: float) -> Condition:
    for _ in range(times):
        condition = missed(condition, "no answer", at_s)
    return condition


def test_two_silences_are_forgiven_and_the_third_is_not() -> None:
    assert silent(up(), MISSES - 1, 10).healthy
    fallen = silent(up(), MISSES, 10)
    assert (fallen.healthy, fallen.problem, restart_due(fallen, 10)) == (False, "no answer", True)


def test_an_answer_between_silences_starts_the_count_anew() -> None:
    condition = silent(answered(silent(up(), MISSES - 1, 10), beat(), 11), MISSES - 1, 12)
    assert condition.healthy


def test_one_that_has_not_been_up_has_its_grace() -> None:
    condition = silent(Condition("storage", 0.0), 10, GRACE_S - 1)
    assert not restart_due(condition, GRACE_S - 1)
    assert restart_due(condition, GRACE_S)


def test_a_new_boot_id_is_a_restart_whoever_ended_the_life_before() -> None:
    condition = answered(up(), beat("two"), 5)
    assert (condition.restarts, condition.healthy) == (1, True)
    assert answered(condition, beat("two"), 6).restarts == 1


def test_each_restart_is_held_off_twice_as_long_until_it_has_been_well_for_a_while() -> None:
    condition = silent(up(), MISSES, 100)
    for kicks in range(1, 4):
        condition = restarted(condition, 100)
        assert condition.kicks == kicks
        condition = silent(answered(condition, beat(f"boot {kicks}"), 100), MISSES, 100)
        assert not restart_due(condition, 100 + hold_off_s(kicks) - 0.1)
        assert restart_due(condition, 100 + hold_off_s(kicks))
    well = answered(answered(condition, beat("last"), 200), beat("last"), 300)
    assert well.kicks == 0


@given(st.integers(0, 1000))
def test_holding_off_never_gets_shorter_and_never_longer_than_five_minutes(kicks: int) -> None:
    assert 0 <= hold_off_s(kicks) <= hold_off_s(kicks + 1) <= 300


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 60)), max_size=40))
def test_no_sequence_of_beats_restarts_a_manager_that_has_just_answered(beats: list[tuple[bool, float]]) -> None:
    condition, now_s = Condition("storage", 0.0), 0.0
    for heard, pause_s in beats:
        now_s += pause_s
        condition = answered(condition, beat(), now_s) if heard else missed(condition, "x", now_s)
        if heard:
            assert not restart_due(condition, now_s)
        if restart_due(condition, now_s):
            assert condition.misses >= MISSES
            condition = restarted(condition, now_s)
            assert not restart_due(condition, now_s)
