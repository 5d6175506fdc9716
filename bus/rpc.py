"""Commands over ZeroMQ: a DEALER asks, a manager's ROUTER answers. The one place that knows the frames.

Request:  id, command name, deadline (ns since 1970, big-endian u64), msgpack of the command.
Reply:    id, b"ok" | b"error", msgpack of the reply or of [code, message].
A request is repeated with its id until its deadline, so a restarted peer still gets it; a server remembers
ids until their deadline, so a repeated request is answered, not done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import zmq
import zmq.asyncio

from bus.catalogue import COMMANDS, Command
from bus.errors import HoneypotError, PeerDown, PeerNonsense, PeerSlow, Refused
from bus.layout import Layout
from bus.model import Frozen, pack, unpack

R = TypeVar("R", bound=Frozen)
Handler = Callable[[Any], Awaitable[Frozen]]
log = logging.getLogger(__name__)

_DEADLINE = struct.Struct(">Q")
_REPEAT_S = 1.0
_PARTS = 4


async def call(layout: Layout, manager: str, command: Command[R], timeout_s: float = 5) -> R:
    """Ask a manager; `PeerDown`, `PeerSlow`, `PeerNonsense` or `Refused` (its own error) by the deadline."""
    path = layout.requests(manager)
    request = secrets.token_bytes(16)
    deadline_ns = time.time_ns() + int(timeout_s * 1e9)
    frames = [request, command.name.encode(), _DEADLINE.pack(deadline_ns), command.pack()]
    with zmq.asyncio.Context.instance().socket(zmq.DEALER) as sock:
        sock.linger = 0
        sock.connect(f"ipc://{path}")
        try:
            async with asyncio.timeout(timeout_s):
                answer = await _exchange(sock, frames)
        except TimeoutError:
            raise _silence(manager, path, command.name, timeout_s) from None
    return _read_answer(manager, command, answer)


def call_blocking(layout: Layout, manager: str, command: Command[R], timeout_s: float = 5) -> R:
    """Ask a manager from a thread that has no event loop; the same errors as `call`."""
    return asyncio.run(call(layout, manager, command, timeout_s))


async def _exchange(sock: zmq.asyncio.Socket, frames: list[bytes]) -> list[bytes]:
    """Send, and repeat while no answer with this id comes."""
    while True:
        await sock.send_multipart(frames)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REPEAT_S):
                while True:
                    answer = await sock.recv_multipart()
                    if answer[0] == frames[0]:
                        return answer


def _silence(manager: str, path: Path, name: str, timeout_s: float) -> HoneypotError:
    """Name the reason for no answer: nobody there, or somebody slow."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)
    with probe:
        try:
            probe.connect(str(path))
        except OSError:
            return PeerDown(f"{manager} is not running (nobody listens at {path})")
    return PeerSlow(f"{manager} did not answer {name} within {timeout_s:g} s")


def _read_answer(manager: str, command: Command[R], answer: list[bytes]) -> R:
    """Turn reply frames into the command's reply type."""
    try:
        _, status, payload = answer
        if status == b"error":
            code, message = unpack(payload)
            raise Refused(str(code), str(message))
        reply: R = type(command).reply.unpack(payload)  # type: ignore[assignment]
    except ValueError as error:
        raise PeerNonsense(f"{manager} answered nonsense to {command.name}: {_first_line(error)}") from error
    return reply


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class Server:
    """A manager's answering side: owns its ROUTER socket and the memory of recent requests."""

    def __init__(self, path: Path, handlers: Mapping[type[Command[Any]], Handler]) -> None:
        self._path = path
        self._handlers = {command.name: handler for command, handler in handlers.items()}
        self._recent: dict[bytes, tuple[float, asyncio.Task[list[bytes]]]] = {}  # until when, and the answer
        self._sending: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Bind and answer until cancelled; every request is a task of its own."""
        with zmq.asyncio.Context.instance().socket(zmq.ROUTER) as sock:
            sock.linger = 0
            sock.bind(f"ipc://{self._path}")
            self._path.chmod(0o660)
            while True:
                peer, *frames = await sock.recv_multipart()
                if len(frames) != _PARTS:
                    log.warning("a request of %d frames was dropped", len(frames))
                    continue
                task = asyncio.create_task(self._answer(sock, peer, frames), name="answer")
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

    async def _answer(self, sock: zmq.asyncio.Socket, peer: bytes, frames: list[bytes]) -> None:
        request = frames[0]
        if request not in self._recent:
            self._forget()
            work = asyncio.create_task(self._do(*frames), name=f"do-{frames[1]!r}")
            self._recent[request] = (_until(frames[2]), work)
        answer = await asyncio.shield(self._recent[request][1])
        await sock.send_multipart([peer, request, *answer])

    def _forget(self) -> None:
        """Drop answers whose deadline has passed: nobody repeats those requests any more."""
        now = time.time()
        for request in [r for r, (until, work) in self._recent.items() if until < now and work.done()]:
            del self._recent[request]

    async def _do(self, _: bytes, name: bytes, deadline: bytes, payload: bytes) -> list[bytes]:
        """Run the handler within the deadline; whatever goes wrong is an error reply."""
        try:
            handler, command = self._parse(name, payload)
            (deadline_ns,) = _DEADLINE.unpack(deadline)
            async with asyncio.timeout((deadline_ns - time.time_ns()) / 1e9):
                return [b"ok", (await handler(command)).pack()]
        except TimeoutError:
            return _error("late", "the deadline passed")
        except HoneypotError as error:
            return _error(error.code, str(error))
        except (ValueError, struct.error) as error:
            return _error("bad_request", _first_line(error))
        except Exception as error:
            log.exception("command %s failed", name.decode(errors="replace"))
            return _error("failed", f"{type(error).__name__}: {_first_line(error)}")

    def _parse(self, name: bytes, payload: bytes) -> tuple[Handler, Command[Frozen]]:
        text = name.decode(errors="replace")
        if text not in self._handlers:
            raise Refused("unknown_command", f"{text} is not a command answered here")
        return self._handlers[text], COMMANDS[text].unpack(payload)


def _until(deadline: bytes) -> float:
    """Tell until when a request may be repeated, in seconds since 1970; one without a deadline may not."""
    return _DEADLINE.unpack(deadline)[0] / 1e9 if len(deadline) == _DEADLINE.size else 0.0


def _error(code: str, message: str) -> list[bytes]:
    return [b"error", pack([code, message])]
