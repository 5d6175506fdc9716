"""Tells the service manager how the instance is (sd_notify(3)): READY, STATUS, WATCHDOG.

Called by `service.py`; says nothing where no service manager asked. Never says STOPPING: when the controller ends, the
instance goes on, and when the instance is to end, the service manager is the one who said so.
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
    """The line to the service manager: READY once, WATCHDOG only while all are healthy."""

    def __init__(self) -> None:
        self._line = sdnotify.SystemdNotifier() if "NOTIFY_SOCKET" in os.environ else None
        self._watched = "WATCHDOG_USEC" in os.environ
        self._ready = False

    def tell(self, managers: Iterable[ManagerStatus]) -> None:
        """Report the present state."""
        known = list(managers)
        healthy = all(manager.healthy for manager in known)
        self._send(f"STATUS={status_line(known)}")
        if healthy and not self._ready:
            self._ready = True
            self._send("READY=1")
        if healthy and self._watched:
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._line:
            self._line.notify(message)
