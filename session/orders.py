"""A relay's ears for signals: SIGUSR1 operator, SIGTERM shutdown, SIGHUP retire once idle. SIGINT is the foreground's.

Handlers only note; `fileno` turns readable so that a poll ends. Called by `relay`; nothing here ends a process.
"""

from __future__ import annotations

import contextlib
import os
import signal

from bus.records import EndReason

_REASONS: dict[int, EndReason] = {signal.SIGUSR1: EndReason.OPERATOR, signal.SIGTERM: EndReason.SHUTDOWN}


class Orders:
    """What this process was told to do and has not done yet."""

    def __init__(self) -> None:
        self.retire = False
        self.reason: EndReason | None = None
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in (*_REASONS, signal.SIGHUP):
            signal.signal(number, self._note)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def fileno(self) -> int:
        """Give the descriptor that is readable when something was told."""
        return self._wake

    def clear_wakeup(self) -> None:
        """Empty the descriptor; what was told stays in `retire` and `reason`."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake, 512):
                pass

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            self.retire = True
        else:
            self.reason = _REASONS[number]
