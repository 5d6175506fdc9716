"""The pool's policy: who waits is served first, targets are reached and not passed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from containerd.pool import Stock, backoff_s, next_to_make

counts = st.integers(min_value=0, max_value=20)
stocks = st.dictionaries(st.sampled_from("abc"), st.builds(Stock, counts, counts, counts, counts))


def test_who_is_waited_for_comes_before_the_pool() -> None:
    waiting = {"pool": Stock(0, 0, 0, 16), "waited": Stock(0, 0, 2, 0)}
    assert next_to_make(waiting, 3) == ["waited", "waited", "pool"]


def test_one_being_made_already_counts_for_one_who_waits() -> None:
    assert next_to_make({"t": Stock(0, 1, 1, 0)}, 4) == []


@given(stocks, st.integers(min_value=0, max_value=6))
def test_no_more_is_made_than_needed_and_no_slot_is_wasted(stocks: dict[str, Stock], slots: int) -> None:
    chosen = next_to_make(stocks, slots)
    for name, stock in stocks.items():
        assert chosen.count(name) <= max(stock.demand, stock.shortfall)
    needed = sum(max(stock.demand, stock.shortfall) for stock in stocks.values())
    assert len(chosen) == min(slots, needed)


@given(st.integers(min_value=0, max_value=200))
def test_backoff_grows_and_is_bounded(failures: int) -> None:
    assert 0 <= backoff_s(failures) <= backoff_s(failures + 1) <= 30
