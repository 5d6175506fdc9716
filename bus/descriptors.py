"""Messages with descriptors over Unix SEQPACKET sockets: how a connection, a capture or a capability changes hands.

Used by relays too: never imports ZeroMQ, and asyncio only in the functions that need a loop. A message is one datagram
of at most `MESSAGE_MAX` bytes with at most `FDS_MAX` descriptors; an empty message is the peer's end.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bus.errors import PeerDown, PeerNonsense

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

MESSAGE_MAX = 131072
FDS_MAX = 16
_INT = array.array("i").itemsize


def listen(path: Path, mode: int = 0o660, backlog: int = 4096) -> socket.socket:
    """Bind a non-blocking listening socket at a path, replacing a dead one's file."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(path))
    path.chmod(mode)
    server.listen(backlog)
    server.setblocking(False)
    return server


def connect(path: Path) -> socket.socket:
    """Connect (blocking); `PeerDown` if nobody listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise PeerDown(f"nobody answers at {path}: {error.strerror}") from error
    return sock


def connect_now(path: Path) -> socket.socket:
    """Connect without blocking, and give a non-blocking socket; `PeerDown`, or `BlockingIOError` at a full backlog."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    try:
        sock.connect(str(path))
    except BlockingIOError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise PeerDown(f"nobody answers at {path}: {error.strerror}") from error
    return sock


def send(sock: socket.socket, message: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message; the descriptors stay the caller's to close. `OSError` as sendmsg(2) gives."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([message], rights)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive one message and its descriptors (close-on-exec); `(b"", [])` at the end.

    `BlockingIOError` from a non-blocking socket with nothing there; `PeerNonsense` if anything was cut off.
    """
    message, ancillary, flags, _ = sock.recvmsg(MESSAGE_MAX, socket.CMSG_SPACE(FDS_MAX * _INT), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _INT])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        raise PeerNonsense("a message or its descriptors were cut off")
    return message, list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def peer_uid(sock: socket.socket) -> int:
    """Tell the user id of the process that connected."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    return int(struct.unpack("iII", credentials)[1])


def is_socket(fd: int) -> bool:
    """Say whether a received descriptor is a socket."""
    return stat.S_ISSOCK(os.fstat(fd).st_mode)


async def readable(sock: socket.socket | int) -> None:
    """Wait until a descriptor is readable."""
    import asyncio  # noqa: PLC0415 - relays import this module and must not carry a loop

    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


async def arrivals(sock: socket.socket) -> AsyncIterator[tuple[bytes, list[int]]]:
    """Give each message of a non-blocking connection until its end; a broken peer is an end."""
    while True:
        await readable(sock)
        try:
            message, fds = receive(sock)
        except BlockingIOError:
            continue
        except (ConnectionError, PeerNonsense):
            return
        if not message:
            close_all(fds)
            return
        yield message, fds


Conversation = Callable[[socket.socket], Awaitable[None]]


async def serve(server: socket.socket, converse: Conversation) -> None:
    """Accept for ever; each connection (non-blocking) is one named task of `converse`, closed when that returns."""
    import asyncio  # noqa: PLC0415 - relays import this module and must not carry a loop

    tasks: set[asyncio.Task[None]] = set()

    async def _one(connection: socket.socket) -> None:
        with connection:
            await converse(connection)

    try:
        while True:
            await readable(server)
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                connection, _ = server.accept()
                connection.setblocking(False)
                task = asyncio.create_task(_one(connection), name="descriptor-conversation")
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(_complain)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _complain(task: asyncio.Task[None]) -> None:
    """Log a conversation that failed; the door stays open for others."""
    if not task.cancelled() and (error := task.exception()):
        log.error("a conversation at a door failed", exc_info=error)


async def request(
    path: Path, message: bytes, fds: Sequence[int] = (), timeout_s: float = 10
) -> tuple[bytes, list[int]]:
    """Send one message to a door and await its one answer; `PeerDown` if there is none, `TimeoutError`."""
    import asyncio  # noqa: PLC0415 - relays import this module and must not carry a loop

    with connect(path) as sock:
        sock.setblocking(False)
        try:
            send(sock, message, fds)
        except OSError as error:
            raise PeerDown(f"{path}: {error.strerror}") from error
        async with asyncio.timeout(timeout_s):
            async for answer in arrivals(sock):
                return answer
    raise PeerDown(f"{path} closed without an answer")
