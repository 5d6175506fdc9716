"""What heartbeats mean: a manager's condition, whether it is due for a restart, and how long to hold off. Pure.

Called by `monitor.py`, which does the asking and the restarting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bus.catalogue import Health, ManagerStatus

MISSES = 3  # silences in a row before a manager that was up counts as hung
GRACE_S = 30.0  # how long a manager may take to come up
_FIRST_HOLD_S = 5.0
_LONGEST_HOLD_S = 300.0
_FORGIVEN_S = 60.0  # healthy for this long, and earlier restarts no longer count


@dataclass(frozen=True)
class Condition:
    """A manager as its heartbeats tell; `since_s` is when it last changed between healthy and not, or was restarted."""

    manager: str
    since_s: float
    healthy: bool = False
    was_up: bool = False
    misses: int = 0
    kicks: int = 0  # restarts by us since it was last well for a while
    restarts: int = 0  # lives seen after the first, whoever ended the one before
    health: Health | None = None
    problem: str | None = None

    def status(self) -> ManagerStatus:
        """Say it on the bus."""
        return ManagerStatus(
            manager=self.manager,
            healthy=self.healthy,
            restarts=self.restarts,
            health=self.health,
            problem=self.problem,
        )


def answered(condition: Condition, health: Health, now_s: float) -> Condition:
    """Take in that a heartbeat came back."""
    reborn = condition.health is not None and condition.health.boot != health.boot
    well = condition.healthy and now_s - condition.since_s > _FORGIVEN_S
    return replace(
        condition,
        since_s=condition.since_s if condition.healthy else now_s,
        healthy=True,
        was_up=True,
        misses=0,
        kicks=0 if well else condition.kicks,
        restarts=condition.restarts + reborn,
        health=health,
        problem=None,
    )


def missed(condition: Condition, problem: str, now_s: float) -> Condition:
    """Take in that a heartbeat did not come back; from the third silence on the manager is not healthy."""
    misses = condition.misses + 1
    falls = condition.healthy and misses >= MISSES
    return replace(
        condition,
        since_s=now_s if falls else condition.since_s,
        healthy=condition.healthy and not falls,
        misses=misses,
        problem=problem,
    )


def restart_due(condition: Condition, now_s: float) -> bool:
    """Say whether it hangs: silent after it was up, or not up within its grace; and not restarted just now."""
    if condition.healthy or condition.misses < MISSES:
        return False
    grace_s = 0.0 if condition.was_up else GRACE_S
    return now_s - condition.since_s >= max(grace_s, hold_off_s(condition.kicks))


def restarted(condition: Condition, now_s: float) -> Condition:
    """Take in that we restarted it."""
    return replace(condition, since_s=now_s, was_up=False, misses=0, kicks=condition.kicks + 1)


def hold_off_s(kicks: int) -> float:
    """Give the least time from one restart to the next after so many: twice as long each time, up to five minutes."""
    return min(_LONGEST_HOLD_S, _FIRST_HOLD_S * 2 ** (min(kicks, 16) - 1)) if kicks else 0.0
