"""Parked listening sockets: the controller keeps copies, so that a restarted manager finds its backlog as it left it.

Owns both halves of the conversation at `RUN/controller/park`: `Lot` answers in the controller (a `Conversation` for
`descriptors.serve`), `Parker` asks in listener and session. One answer follows each request; at most `FDS_MAX` sockets
come with one. A socket is given back only to the user that parked it. Neither half ever accepts on a parked socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from bus import descriptors
from bus.errors import PeerDown, PeerNonsense
from bus.model import Frozen

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0  # how long a starting manager waits for the controller's door
_RETRY_S = 0.5
_ANSWER_S = 5.0


class ParkRequest(Frozen):
    """What a manager asks: its sockets from the `skip`-th on, to keep one (its descriptor comes along), to drop one."""

    op: Literal["take", "park", "unpark"]
    owner: str
    name: str = ""
    skip: int = Field(0, ge=0)


class ParkReply(Frozen):
    """The answer: names of the sockets that come along in order, and how many more there are; or what is wrong."""

    names: tuple[str, ...] = ()
    more: int = 0
    error: str | None = None


class Lot:
    """The controller's half: owns its copies of every parked socket, by user, owner and name."""

    def __init__(self) -> None:
        self._parked: dict[tuple[int, str], dict[str, socket.socket]] = {}

    def names(self, owner: str) -> tuple[str, ...]:
        """Tell which sockets of an owner are parked, whatever its user."""
        return tuple(name for (_, of), parked in self._parked.items() if of == owner for name in parked)

    async def converse(self, connection: socket.socket) -> None:
        """Answer one manager until it hangs up; what it parked stays."""
        uid = descriptors.peer_uid(connection)
        async for message, fds in descriptors.arrivals(connection):
            try:
                reply, back = self._answer(uid, ParkRequest.unpack(message), fds)
            except ValueError as error:
                reply, back = ParkReply(error=" ".join(str(error).split())[:200]), []
            finally:
                descriptors.close_all(fds)
            with contextlib.suppress(OSError):
                descriptors.send(connection, reply.pack(), [sock.fileno() for sock in back])

    def close(self) -> None:
        """Let go of everything."""
        for parked in self._parked.values():
            for sock in parked.values():
                sock.close()
        self._parked.clear()

    def _answer(self, uid: int, request: ParkRequest, fds: list[int]) -> tuple[ParkReply, list[socket.socket]]:
        parked = self._parked.setdefault((uid, request.owner), {})
        if request.op == "take":
            rest = list(parked.items())[request.skip :]
            now, later = rest[: descriptors.FDS_MAX], rest[descriptors.FDS_MAX :]
            return ParkReply(names=tuple(name for name, _ in now), more=len(later)), [sock for _, sock in now]
        if request.op == "park" and (len(fds) != 1 or not descriptors.is_socket(fds[0])):
            return ParkReply(error=f"{request.name}: one socket has to come along"), []
        old = parked.pop(request.name, None)
        if old:
            old.close()
        if request.op == "park":
            parked[request.name] = socket.socket(fileno=os.dup(fds[0]))
        return ParkReply(), []


class Parker:
    """A manager's half: keeps `wanted` parked under its owner's name, across the controller's restarts."""

    def __init__(self, path: Path, owner: str) -> None:
        self._path = path
        self._owner = owner
        self._wanted: dict[str, socket.socket] = {}
        self._parked: dict[str, socket.socket] = {}  # what the controller at the other end of _connection has
        self._connection: socket.socket | None = None
        self._changed = asyncio.Event()

    async def take(self, patience_s: float = _PATIENCE_S) -> dict[str, socket.socket]:
        """Get back what an earlier life parked, non-blocking; nothing if no controller answers for that long."""
        try:
            async with asyncio.timeout(patience_s):
                while not self._connect():  # noqa: ASYNC110 - nothing tells when a door opens
                    await asyncio.sleep(_RETRY_S / 5)
                taken = await self._take()
        except (TimeoutError, PeerDown, PeerNonsense) as error:
            log.warning("no sockets were taken back: %s", error or f"nobody answers at {self._path}")
            self.close()
            return {}
        self._parked = dict(taken)
        return taken

    def want(self, wanted: Mapping[str, socket.socket]) -> None:
        """Name everything that is to stay parked from now on; `keep` sees to it. The sockets stay the caller's."""
        self._wanted = dict(wanted)
        self._changed.set()

    async def keep(self) -> None:
        """Park what is wanted, unpark what is not, for ever; a controller that comes back is told everything."""
        try:
            while True:
                if not self._connection and not self._connect():
                    await asyncio.sleep(_RETRY_S)
                    continue
                try:
                    await self._bring_in_line()
                    await self._change_or_end()
                except (PeerDown, PeerNonsense, TimeoutError) as error:
                    log.info("the controller's parking is away: %s", error)
                    self.close()
                    await asyncio.sleep(_RETRY_S)
        finally:
            self.close()

    def close(self) -> None:
        """Hang up; what is parked stays."""
        if self._connection:
            self._connection.close()
        self._connection = None
        self._parked = {}

    def _connect(self) -> bool:
        try:
            self._connection = descriptors.connect_now(self._path)
        except (PeerDown, BlockingIOError):
            return False
        self._parked = {}
        return True

    async def _take(self) -> dict[str, socket.socket]:
        taken: dict[str, socket.socket] = {}
        more = 1
        while more:
            reply, fds = await self._ask(ParkRequest(op="take", owner=self._owner, skip=len(taken)))
            if len(fds) != len(reply.names):
                descriptors.close_all(fds)
                raise PeerNonsense("names and sockets differ in number")
            taken |= {name: _adopted(fd) for name, fd in zip(reply.names, fds, strict=True)}
            more = reply.more if fds else 0
        return taken

    async def _bring_in_line(self) -> None:
        """Make the controller's copies those that are wanted."""
        self._changed.clear()
        for request, sock in list(self._differences()):
            await self._ask(request, [sock.fileno()] if sock else [])
            if sock:
                self._parked[request.name] = sock
            else:
                del self._parked[request.name]

    def _differences(self) -> Iterator[tuple[ParkRequest, socket.socket | None]]:
        for name in self._parked.keys() - self._wanted.keys():
            yield ParkRequest(op="unpark", owner=self._owner, name=name), None
        for name, sock in self._wanted.items():
            if self._parked.get(name) is not sock:
                yield ParkRequest(op="park", owner=self._owner, name=name), sock

    async def _change_or_end(self) -> None:
        """Wait until something else is wanted; `PeerDown` when the controller ends first."""
        assert self._connection  # noqa: S101 - keep() has just connected
        changed = asyncio.create_task(self._changed.wait(), name="parking-changed")
        ended = asyncio.create_task(descriptors.readable(self._connection), name="parking-ended")
        try:
            await asyncio.wait((changed, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
            ended.cancel()
            await asyncio.gather(changed, ended, return_exceptions=True)
        if not self._changed.is_set():
            raise PeerDown("it hung up")

    async def _ask(self, request: ParkRequest, fds: list[int] | None = None) -> tuple[ParkReply, list[int]]:
        assert self._connection  # noqa: S101 - every caller has just connected
        try:
            descriptors.send(self._connection, request.pack(), fds or [])
        except OSError as error:
            raise PeerDown(f"{self._path}: {error.strerror}") from error
        async with asyncio.timeout(_ANSWER_S):
            async for message, received in descriptors.arrivals(self._connection):
                return _checked(message, received), received
        raise PeerDown(f"{self._path} closed without an answer")


def _checked(message: bytes, fds: list[int]) -> ParkReply:
    """Read an answer; `PeerNonsense` if it is none or says that something is wrong."""
    try:
        reply = ParkReply.unpack(message)
    except ValueError as error:
        descriptors.close_all(fds)
        raise PeerNonsense(f"no answer about parking: {error}") from error
    if reply.error:
        descriptors.close_all(fds)
        raise PeerNonsense(reply.error)
    return reply


def _adopted(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock
