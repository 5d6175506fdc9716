"""Pool targets as a pure function of the configuration and of arrivals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.settings import Config, Pool, Service
from controller.pool import NONE, arrived, targets


def config(*pools: tuple[str, int, int]) -> Config:
    return Config(
        service=tuple(
            Service(
                name=f"s{number}",
                port=number + 1,
                container_template=template,
                pool=Pool(minimum=minimum, maximum=maximum),
            )
            for number, (template, minimum, maximum) in enumerate(pools)
        )
    )


def test_at_rest_a_template_has_the_larger_minimum_of_its_services() -> None:
    assert targets(config(("one", 2, 4), ("one", 5, 6), ("two", 0, 3)), NONE, 0) == {"one": 5, "two": 0}


def test_a_burst_raises_the_target_of_its_template_only_and_it_falls_back_with_time() -> None:
    rates = NONE
    for _ in range(100):
        rates = arrived(rates, "one", 10.0)
    two = config(("one", 2, 16), ("two", 2, 16))
    assert targets(two, rates, 10.0)["one"] > 8
    assert targets(two, rates, 10.0)["two"] == 2
    assert targets(two, rates, 200.0) == {"one": 2, "two": 2}


def test_a_lone_visitor_changes_nothing() -> None:
    assert targets(config(("one", 2, 16)), arrived(NONE, "one", 0.0), 0.0) == {"one": 2}


def test_a_template_that_is_no_longer_configured_has_no_target() -> None:
    assert targets(config(("one", 2, 16)), arrived(NONE, "gone", 0.0), 0.0) == {"one": 2}


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.integers(5, 20)), min_size=1, max_size=5),
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 5)), max_size=60),
    st.floats(0, 100),
)
def test_a_target_is_always_between_minimum_and_maximum_and_only_falls_while_nobody_comes(
    pools: list[tuple[str, int, int]], arrivals: list[tuple[str, float]], later_s: float
) -> None:
    rates, now_s = NONE, 0.0
    for template, pause_s in arrivals:
        now_s += pause_s
        rates = arrived(rates, template, now_s)
    found = targets(config(*pools), rates, now_s)
    for template, target in found.items():
        mine = [pool for pool in pools if pool[0] == template]
        assert max(pool[1] for pool in mine) <= target <= max(pool[2] for pool in mine)
        assert targets(config(*pools), rates, now_s + later_s)[template] <= target
