"""Tells the service manager how the instance is (sd_notify(3)): READY, STATUS, WATCHDOG.

Called by `service.py`; says nothing where no service manager asked, and never waits for one that does not listen. Never
says STOPPING: when the controller ends, the instance goes on, and when the instance is to end, it was the service
manager who said so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import sdnotify

from bus.catalogue import ManagerStatus


def status_line(managers: Iterable[ManagerStatus]) -> str:
    """Say in one line how everybody is."""
    known = list(managers)
    ill = [manager.manager for manager in known if not manager.healthy]
    return f"not answering: {', '.join(ill)}" if ill else f"all {len(known)} managers are healthy"


class Notifier:
    """The line to the service manager: READY once, STATUS when it changes, WATCHDOG only while all are healthy."""

    def __init__(self) -> None:
        self._line = sdnotify.SystemdNotifier() if "NOTIFY_SOCKET" in os.environ else None
        if self._line and self._line.socket:
            self._line.debug = True  # it then raises where it would hide a failure
            self._line.socket.setblocking(False)
        self._watched = "WATCHDOG_USEC" in os.environ
        self._said: set[str] = set()

    def tell(self, managers: Iterable[ManagerStatus]) -> None:
        """Report the present state; what could not be said is said the next time."""
        known = list(managers)
        healthy = all(manager.healthy for manager in known)
        status = f"STATUS={status_line(known)}"
        if status not in self._said and self._send(status):
            self._said = {status} | (self._said & {"READY=1"})
        if healthy and "READY=1" not in self._said and self._send("READY=1"):
            self._said.add("READY=1")
        if healthy and self._watched:
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> bool:
        if self._line is None or self._line.socket is None:
            return True
        try:
            self._line.notify(message)
        except OSError:
            return False
        return True
