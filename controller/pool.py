"""How many unused containers to keep ready of each template, from how fast they are taken. Pure.

Called by `service.py` with every `ContainerAssigned` event and every few seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bus.settings import Config

_MEMORY_S = 20.0  # arrivals older than this count for less than a third
_AHEAD_S = 1.0  # a container takes 0.1 to 0.3 s to make, and some are made at once
_SPREAD = 2.0  # standard deviations of chance to be ready for


@dataclass(frozen=True)
class Rate:
    """Arrivals a second, as of a moment; decays from there."""

    per_s: float
    at_s: float

    def as_of(self, now_s: float) -> float:
        """Give the rate at a later moment if nobody has come since."""
        return self.per_s * math.exp(-max(0.0, now_s - self.at_s) / _MEMORY_S)


Rates = Mapping[str, Rate]
NONE: Rates = MappingProxyType({})


def arrived(rates: Rates, template: str, now_s: float) -> Rates:
    """Count one arrival."""
    before = rates[template].as_of(now_s) if template in rates else 0.0
    return {**rates, template: Rate(before + 1 / _MEMORY_S, now_s)}


def targets(config: Config, rates: Rates, now_s: float) -> dict[str, int]:
    """Give each configured template's target: the least it always has, plus what the present rate will take, capped."""
    least: dict[str, int] = {}
    most: dict[str, int] = {}
    for service in config.service:
        template = service.container_template
        least[template] = max(least.get(template, 0), service.pool.minimum)
        most[template] = max(most.get(template, 0), service.pool.maximum)
    return {
        template: min(
            most[template], least[template] + _needed(rates[template].as_of(now_s) if template in rates else 0)
        )
        for template in least
    }


def _needed(per_s: float) -> int:
    """Give how many will be taken while one is made, chance included; under a tenth of one is none."""
    mean = per_s * _AHEAD_S
    return math.ceil(mean + _SPREAD * math.sqrt(mean)) if mean > 1 / _MEMORY_S + 1e-9 else 0
