"""A relay's side of containerd's attach door: asks for a socket into the attacker's container and stays connected.

Owns that one connection. Never blocks: `knock` when `due_s` has come, `hear` when the connection is readable. A door
that is away, or closes without an answer, is knocked at again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from socket import socket

from bus import descriptors
from bus.errors import PeerDown, PeerNonsense
from bus.records import AttachReply, AttachRequest

_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 1.0


@dataclass(frozen=True)
class Answer:
    """What containerd said, and the descriptor that came along, if one did."""

    reply: AttachReply
    descriptor: int | None


class Attachment:
    """The connection to the door; `sock` is None between two knocks."""

    def __init__(self, door: Path, request: AttachRequest) -> None:
        self.sock: socket | None = None
        self.due_s = 0.0
        self._door = door
        self._request = request
        self._retry_s = _FIRST_RETRY_S

    def settle(self, container: str) -> None:
        """From now on only say which container is in use, about once a second while the door is away."""
        self._request = self._request.model_copy(update={"container": container})
        self._retry_s = _LAST_RETRY_S

    def knock(self) -> None:
        """Connect and ask, if that is due."""
        if self.sock or time.monotonic() < self.due_s:
            return
        try:
            self.sock = descriptors.connect_now(self._door)
            descriptors.send(self.sock, self._request.pack())
        except (PeerDown, OSError):
            self._later()

    def hear(self) -> Answer | None:
        """Take the answer; None if there is none, and then, unless nothing was said at all, the connection is over."""
        if not self.sock:
            return None
        try:
            message, fds = descriptors.receive(self.sock)
            descriptors.close_all(fds[1:])
            if message:
                return Answer(AttachReply.unpack(message), fds[0] if fds else None)
            descriptors.close_all(fds[:1])
        except BlockingIOError:
            return None
        except (ConnectionError, PeerNonsense, ValueError):
            pass
        self._later()
        return None

    def close(self) -> None:
        """Hang up."""
        if self.sock:
            self.sock.close()
        self.sock = None

    def _later(self) -> None:
        self.close()
        self.due_s = time.monotonic() + self._retry_s
        self._retry_s = min(self._retry_s * 2, _LAST_RETRY_S)
