"""What to make next and what to let go: the pool's policy, pure. Called by `service.py`; touches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

_BACKOFF_FIRST_S = 0.5
_BACKOFF_MOST_S = 30.0


class State(StrEnum):
    """A container's life. READY ones are nobody's yet; ASSIGNED ones belong to one source address."""

    READY = "ready"
    ASSIGNED = "assigned"
    LEAVING = "leaving"


@dataclass(frozen=True)
class Stock:
    """One template's containers: how many stand ready, are being made, are waited for, and should stand ready."""

    ready: int
    making: int
    waited_for: int
    target: int

    @property
    def demand(self) -> int:
        """How many more must be made for attackers who wait now."""
        return max(0, self.waited_for - self.making)

    @property
    def shortfall(self) -> int:
        """How many more must be made to reach the target, once nobody waits."""
        return max(0, self.target + self.waited_for - self.ready - self.making)

    @property
    def surplus(self) -> int:
        """How many ready ones are above the target."""
        return max(0, self.ready - self.target)


def next_to_make(stocks: Mapping[str, Stock], slots: int) -> list[str]:
    """Name the templates to make containers of with so many free slots: first who is waited for, then the emptiest."""
    chosen: list[str] = []
    counts = dict(stocks)
    while len(chosen) < slots:
        urgent = max(counts, key=lambda name: counts[name].demand, default=None)
        short = max(counts, key=lambda name: (counts[name].shortfall, -counts[name].ready), default=None)
        if urgent is not None and counts[urgent].demand:
            name = urgent
        elif short is not None and counts[short].shortfall:
            name = short
        else:
            break
        chosen.append(name)
        stock = counts[name]
        counts[name] = Stock(stock.ready, stock.making + 1, stock.waited_for, stock.target)
    return chosen


def backoff_s(failures: int) -> float:
    """Tell how long to wait after so many failures in a row before a template is tried again."""
    return 0.0 if failures == 0 else min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2.0 ** (failures - 1))
