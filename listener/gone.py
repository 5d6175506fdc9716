"""Notices that a waiting connection was reset, without reading from it and without waking at its bytes.

Owns one epoll in which sockets are registered for no event at all: errors and hang-ups are told all the same. The loop
watches that epoll's own descriptor. Called by `door`.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable


class Gone:
    """Calls back once for each watched socket that is reset."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], object]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def watch(self, sock: socket.socket, call: Callable[[], object]) -> None:
        """Call when this socket is reset."""
        self._calls[sock.fileno()] = call
        self._epoll.register(sock, 0)

    def forget(self, sock: socket.socket) -> None:
        """Stop watching; to be called before the socket is closed or given away."""
        if self._calls.pop(sock.fileno(), None):
            self._epoll.unregister(sock)

    def close(self) -> None:
        """Watch nothing any more."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
        self._calls.clear()

    def _ready(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            self._epoll.unregister(descriptor)
            self._calls.pop(descriptor)()
