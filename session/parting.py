"""How a relay lets go of a TCP connection: bytes the kernel still holds are delivered first, for a bounded time.

Closing with unread input makes Linux send a reset and drop its send queue (RFC 2525, 2.17), so input is read away while
the rest goes out. What is read here was never recorded and goes nowhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import struct
import termios
import time
from socket import SHUT_WR, SO_LINGER, SOL_SOCKET, socket

_PATIENCE_S = 1.0
_LOOK_MS = 10
_LINGER_NONE = struct.pack("ii", 1, 0)
_SINK_BYTES = 65536


def close_gently(*socks: socket) -> None:
    """Send FIN on each, wait until the peers' kernels have it all or a second has passed, close."""
    for sock in socks:
        with contextlib.suppress(OSError):
            sock.shutdown(SHUT_WR)
    _deliver(socks)
    for sock in socks:
        sock.close()


def close_with_reset(sock: socket) -> None:
    """Deliver what was sent, then reset the connection."""
    _deliver((sock,))
    with contextlib.suppress(OSError):
        sock.setsockopt(SOL_SOCKET, SO_LINGER, _LINGER_NONE)
    sock.close()


def _deliver(socks: tuple[socket, ...]) -> None:
    """Wait for empty send queues, reading input away."""
    poll = select.poll()
    open_socks = {sock.fileno(): sock for sock in socks}
    for descriptor in open_socks:
        poll.register(descriptor, select.POLLIN)
    deadline_s = time.monotonic() + _PATIENCE_S
    _sink(open_socks, poll)
    while any(_unacknowledged(sock) for sock in open_socks.values()) and time.monotonic() < deadline_s:
        poll.poll(_LOOK_MS)
        _sink(open_socks, poll)


def _sink(socks: dict[int, socket], poll: select.poll) -> None:
    """Read away what has come, once; forget a connection that is gone, stop watching one that has said its last."""
    for descriptor, sock in list(socks.items()):
        try:
            ended = not sock.recv(_SINK_BYTES)
        except BlockingIOError:
            continue
        except OSError:
            del socks[descriptor]
            ended = True
        if ended:
            with contextlib.suppress(KeyError):
                poll.unregister(descriptor)


def _unacknowledged(sock: socket) -> int:
    """Bytes (and the FIN) that the peer's kernel has not acknowledged: SIOCOUTQ, tcp(7)."""
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    return int(struct.unpack("i", answer)[0])
