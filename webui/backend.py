"""The bus as the web server's threads see it: blocking questions, answered by the manager's own event loop.

Made in `webui.service`; used by the API and the pages. Never called from the loop's own thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, BinaryIO, TypeVar

from bus.capture import open_blob
from bus.catalogue import Command
from bus.errors import BusError, PeerDown
from bus.manager import Node
from bus.model import Frozen

R = TypeVar("R", bound=Frozen)
T = TypeVar("T")
_TIMEOUT_S = 2.0


class ManagerAway(BusError):
    """A manager gave no usable answer; the message says which and why."""

    code = "manager_away"

    def __init__(self, manager: str, reason: str) -> None:
        super().__init__(f"{manager}: {reason}")
        self.manager = manager


class Backend:
    """Asks other managers."""

    def __init__(self, node: Node, loop: asyncio.AbstractEventLoop) -> None:
        self._node = node
        self._loop = loop

    def ask(self, manager: str, command: Command[R]) -> R:
        """Ask; errors as `bus.rpc.call`."""
        return self._wait(self._node.call(manager, command, _TIMEOUT_S))

    def open_blob(self, sha256: str) -> tuple[BinaryIO, int]:
        """Give a blob to read, and its size in bytes; errors as `bus.capture.open_blob`."""
        descriptor, size = self._wait(open_blob(self._node.layout.door, sha256, _TIMEOUT_S))
        return os.fdopen(descriptor, "rb"), size

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._loop.is_running():
            work.close()
            raise PeerDown("the web interface is stopping")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * _TIMEOUT_S)
        except (CancelledError, TimeoutError) as error:
            raise PeerDown("the web interface is stopping") from error
