"""Whether storage takes captures, and when to try again if not. Pure but for the clock it is given."""

from __future__ import annotations

from bus.errors import BusError, PeerDown, PeerNonsense, PeerSlow, Refused

_FIRST_S = 1.0
_LONGEST_S = 30.0
_BAD = frozenset({"bad_capture", "bad_request"})
_AWAY = frozenset(
    {"disk_full", "storage", "database_locked", "database_corrupt", "database_newer"}  # storage.errors, for any capture
)


class Outage:
    """At most one at a time: begins with a failure, ends with a success."""

    def __init__(self) -> None:
        self.reason = ""
        self._failures = 0
        self._next_try_s = 0.0

    @property
    def lasts(self) -> bool:
        """Say whether there is one."""
        return self._failures > 0

    def fail(self, reason: str, now_s: float) -> bool:
        """Note a failed sweep; say whether an outage began with it."""
        self.reason = reason
        self._next_try_s = now_s + min(_FIRST_S * 2**self._failures, _LONGEST_S)
        self._failures = min(self._failures + 1, 16)
        return self._failures == 1

    def succeed(self) -> bool:
        """Note that storage took something; say whether an outage ended with it."""
        ended = self.lasts
        self._failures, self.reason = 0, ""
        return ended

    def pause_s(self, now_s: float) -> float:
        """Tell how long to wait before the next try."""
        return max(0.0, self._next_try_s - now_s) if self.lasts else 0.0


def is_bad_capture(error: BusError) -> bool:
    """Say whether storage will never take this capture."""
    return isinstance(error, Refused) and error.code in _BAD


def is_outage(error: BusError) -> bool:
    """Say whether an error concerns every capture, not just the one that was tried."""
    return isinstance(error, PeerDown | PeerSlow | PeerNonsense) or (isinstance(error, Refused) and error.code in _AWAY)
