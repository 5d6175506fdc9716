"""One accepted connection on its way to a relay, and the kept connection that tells when its session is over.

Called by `door`. Owns the client's socket until a relay's queue has it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from bus import descriptors
from bus.errors import PeerDown
from bus.records import Handoff

_FULL_RETRY_S = 0.05
_DOWN_RETRY_S = 0.25


async def hand_over(path: Path, handoff: Handoff, client: socket.socket, up: Callable[[bool], None]) -> socket.socket:
    """Send a connection to the relays' queue and close it here; give the connection that stays open while it lives.

    Retries for as long as it is let; `up` is told each time whether somebody listens there.
    """
    message = handoff.pack()
    while True:
        try:
            link = descriptors.connect_now(path)
        except BlockingIOError:
            up(True)
            await asyncio.sleep(_FULL_RETRY_S)
            continue
        except PeerDown:
            up(False)
            await asyncio.sleep(_DOWN_RETRY_S)
            continue
        up(True)
        try:
            descriptors.send(link, message, [client.fileno()])
        except OSError:  # also ETOOMANYREFS: too many descriptors under way, unix(7)
            link.close()
            await asyncio.sleep(_FULL_RETRY_S)
            continue
        client.close()
        return link


async def ended(link: socket.socket) -> None:
    """Wait until the relay has let go; closes the connection."""
    with link:
        async for _, fds in descriptors.arrivals(link):
            descriptors.close_all(fds)
