"""The attach door: a relay asks for its attacker's container and gets a socket into it. Called by `service.py`.

One connection a session; it is kept open while the session lives, and its end, however it comes, is the session's end.
Never reads or writes an attacker's byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine
from typing import Any, Protocol

from bus.descriptors import arrivals, close_all, readable, send
from bus.errors import HoneypotError
from bus.records import AttachReply, AttachRequest, ContainerFacts

log = logging.getLogger(__name__)

Answer = tuple[ContainerFacts, socket.socket | None]


class Host(Protocol):
    """Who finds containers and opens sockets into them."""

    async def attach(self, request: AttachRequest) -> Answer:
        """Let a session into its container; the socket is None when the request only says it still is in one."""

    def left(self, request: AttachRequest) -> None:
        """Note that a session is over."""


async def converse(host: Host, connection: socket.socket) -> None:
    """Serve one relay's connection from its question to its session's end."""
    request = await _question(connection)
    if request is None:
        return
    ids = {"session": request.identity.id, "service": request.service.name, "source": request.identity.source.address}
    try:
        answer = await _unless_gone(connection, host.attach(request))
        if answer is None:
            log.info("the relay left before its container was there", extra=ids)
            return
        facts, attached = answer
        log.debug("attached", extra={**ids, "container": facts.id})
        _tell(connection, AttachReply(container=facts), attached)
        await readable(connection)
    except HoneypotError as error:
        log.warning("no container: %s", error, extra=ids)
        _tell(connection, AttachReply(error=f"{error.code}: {error}"), None)
    finally:
        host.left(request)


async def _question(connection: socket.socket) -> AttachRequest | None:
    """Read the relay's one message; None if it is none."""
    async for message, fds in arrivals(connection):
        close_all(fds)
        try:
            return AttachRequest.unpack(message)
        except ValueError as error:
            log.warning("a question at the attach door was nonsense: %s", " ".join(str(error).split())[:200])
            break
    return None


async def _unless_gone(connection: socket.socket, work: Coroutine[Any, Any, Answer]) -> Answer | None:
    """Await the work, unless the relay hangs up first (it says nothing while it waits)."""
    working = asyncio.create_task(work, name="attach")
    gone = asyncio.create_task(readable(connection), name="relay-gone")
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


def _tell(connection: socket.socket, reply: AttachReply, attached: socket.socket | None) -> None:
    """Answer; a relay that is gone needs no answer. The socket is the relay's from here on."""
    with contextlib.suppress(OSError):
        send(connection, reply.pack(), [attached.fileno()] if attached else [])
    if attached:
        attached.close()
