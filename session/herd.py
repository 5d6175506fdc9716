"""Which relays there are and how many more to fork or to retire. Pure: `zygote` acts on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from session.reports import Happened, Report, Sizes

_KEEP_TIMES = 4  # idle relays kept after a rush, in multiples of the spare ones


@dataclass
class Herd:
    """The relays by process id, and whether each is idle."""

    sizes: Sizes
    idle: set[int] = field(default_factory=set)
    busy: set[int] = field(default_factory=set)
    fresh: set[int] = field(default_factory=set)  # forked, not heard of yet; counted as idle
    retiring: set[int] = field(default_factory=set)

    def forked(self, pid: int) -> None:
        """Note a forked relay."""
        self.fresh.add(pid)

    def heard(self, report: Report) -> None:
        """Note what a relay said."""
        pid = report.relay
        if pid not in self.fresh | self.idle | self.busy:
            return  # already buried: its last words came late
        self.fresh.discard(pid)
        if report.what is Happened.IDLE:
            self.busy.discard(pid)
            self.idle.add(pid)
        elif report.what is Happened.TOOK:
            self.idle.discard(pid)
            self.busy.add(pid)

    def died(self, pid: int) -> bool:
        """Note a relay's end; say whether it came before it was ever ready, for then it will come again."""
        stillborn = pid in self.fresh
        for group in (self.fresh, self.idle, self.busy, self.retiring):
            group.discard(pid)
        return stillborn

    @property
    def lacking(self) -> int:
        """How many relays to fork now."""
        available = len(self.fresh | self.idle - self.retiring)
        room = self.sizes.total - len(self.fresh) - len(self.idle) - len(self.busy)
        return max(0, min(self.sizes.spare - available, room))

    def surplus(self) -> list[int]:
        """Choose the relays to retire now, and count them as such."""
        candidates = sorted(self.idle - self.retiring)
        chosen = candidates[self.sizes.spare * _KEEP_TIMES :]
        self.retiring.update(chosen)
        return chosen
