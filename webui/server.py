"""The WSGI server: waitress in threads of its own, on sockets that were bound for it.

Owned by `webui.service`. Stops by telling waitress's own loop to end; nothing is closed from under it.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.server import create_server
from waitress.trigger import trigger

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = logging.getLogger(__name__)
_THREADS = 8
_STOP_S = 5.0
_CONNECTIONS = 200
_REQUEST_MAX_BYTES = 16 << 10
_IDLE_S = 60


class WebServer:
    """A running server; owns the sockets it is given."""

    def __init__(self, application: WSGIApplication, sockets: Sequence[socket.socket]) -> None:
        self._channels: dict[int, Any] = {}
        self._server = create_server(
            application,
            map=self._channels,
            sockets=list(sockets),
            threads=_THREADS,
            connection_limit=_CONNECTIONS,
            channel_timeout=_IDLE_S,
            max_request_header_size=_REQUEST_MAX_BYTES,
            max_request_body_size=_REQUEST_MAX_BYTES,
            clear_untrusted_proxy_headers=True,
            ident=None,
        )
        self._thread = threading.Thread(target=self._server.run, name="web-server", daemon=True)

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Say whether it serves."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the threads, then close the listening sockets and connections; blocks for a few seconds at most."""
        bell = next(each for each in self._channels.values() if isinstance(each, trigger))
        left: dict[int, Any] = {}

        def leave() -> None:
            """Run by waitress's loop: with nothing to watch it ends. Closing here would close the bell that rings."""
            left.update(self._channels)
            self._channels.clear()

        bell.pull_trigger(leave)
        self._thread.join(_STOP_S)
        self._server.task_dispatcher.shutdown(timeout=_STOP_S)
        wasyncore.close_all(left, ignore_all=True)
        if self._thread.is_alive():
            log.warning("the web server's thread did not end within %g s", _STOP_S)
