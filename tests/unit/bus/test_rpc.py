"""Commands over real ZeroMQ sockets: answers, deadlines, repeats and nonsense."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from bus.catalogue import Command, Done, EndSession, Flush, Health, Ping, Waiting
from bus.errors import PeerDown, PeerNonsense, PeerSlow, Refused
from bus.layout import Layout
from bus.model import Frozen
from bus.rpc import Server, call

Handlers = dict[type[Command[Any]], Callable[[Any], Awaitable[Frozen]]]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "storage").mkdir()
    return Layout(tmp_path, tmp_path, tmp_path)


@asynccontextmanager
async def serving(layout: Layout, handlers: Handlers) -> AsyncIterator[None]:
    task = asyncio.create_task(Server(layout.requests("storage"), handlers).serve())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def healthy(_: Command[Frozen]) -> Health:
    return Health(manager="storage", boot="b", pid=1)


def test_a_command_gets_its_reply_type(layout: Layout) -> None:
    async def scenario() -> Health:
        async with serving(layout, {Ping: healthy}):
            return await call(layout, "storage", Ping())

    assert asyncio.run(scenario()).manager == "storage"


def test_a_handlers_refusal_arrives_with_its_code(layout: Layout) -> None:
    async def refuse(_: Command[Frozen]) -> Done:
        raise Refused("not_found", "no such session")

    async def scenario() -> None:
        async with serving(layout, {EndSession: refuse}):
            await call(layout, "storage", EndSession(session="x"))

    with pytest.raises(Refused, match="no such session") as caught:
        asyncio.run(scenario())
    assert caught.value.code == "not_found"


def test_a_handlers_bug_is_a_named_refusal_and_the_server_goes_on(layout: Layout) -> None:
    async def broken(_: Command[Frozen]) -> Done:
        raise ZeroDivisionError

    async def scenario() -> Health:
        async with serving(layout, {EndSession: broken, Ping: healthy}):
            with pytest.raises(Refused, match="ZeroDivisionError"):
                await call(layout, "storage", EndSession())
            return await call(layout, "storage", Ping())

    assert asyncio.run(scenario()).pid == 1


def test_nobody_there_is_peer_down_by_the_deadline(layout: Layout) -> None:
    start = time.monotonic()
    with pytest.raises(PeerDown, match="storage is not running"):
        asyncio.run(call(layout, "storage", Ping(), timeout_s=0.3))
    assert time.monotonic() - start < 2


def test_a_slow_peer_is_peer_slow_by_the_deadline(layout: Layout) -> None:
    async def slow(_: Command[Frozen]) -> Health:
        await asyncio.Event().wait()
        raise AssertionError

    async def scenario() -> None:
        async with serving(layout, {Ping: slow}):
            await call(layout, "storage", Ping(), timeout_s=0.3)

    start = time.monotonic()
    with pytest.raises((PeerSlow, Refused), match=r"did not answer|deadline"):
        asyncio.run(scenario())
    assert time.monotonic() - start < 2


def test_an_answer_that_is_nonsense_is_peer_nonsense(layout: Layout) -> None:
    async def babble() -> None:
        with zmq.asyncio.Context.instance().socket(zmq.ROUTER) as sock:
            sock.bind(f"ipc://{layout.requests('storage')}")
            while True:
                peer, request, *_ = await sock.recv_multipart()
                await sock.send_multipart([peer, request, b"ok", b"\xc1 no msgpack"])

    async def scenario() -> None:
        task = asyncio.create_task(babble())
        try:
            await call(layout, "storage", Ping(), timeout_s=3)
        finally:
            task.cancel()
            await asyncio.wait([task])

    with pytest.raises(PeerNonsense, match="nonsense"):
        asyncio.run(scenario())


def test_a_request_survives_its_peer_coming_up_late(layout: Layout) -> None:
    async def scenario() -> Health:
        asking = asyncio.create_task(call(layout, "storage", Ping(), timeout_s=10))
        await asyncio.wait([asking], timeout=0.3)
        async with serving(layout, {Ping: healthy}):
            return await asking

    assert asyncio.run(scenario()).boot == "b"


def test_a_repeated_request_is_answered_but_done_once(layout: Layout) -> None:
    done: list[int] = []

    async def slow_flush(_: Command[Frozen]) -> Waiting:
        done.append(1)
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=2.5)
        return Waiting(waiting=0)

    async def scenario() -> Waiting:
        async with serving(layout, {Flush: slow_flush}):
            return await call(layout, "storage", Flush(), timeout_s=10)

    assert asyncio.run(scenario()).waiting == 0
    assert done == [1]


def test_an_answer_is_forgotten_once_nobody_can_repeat_its_request(layout: Layout) -> None:
    server = Server(layout.requests("storage"), {Ping: healthy})

    async def scenario() -> int:
        task = asyncio.create_task(server.serve())
        for _ in range(20):
            await call(layout, "storage", Ping(), timeout_s=0.5)
        assert len(server._recent) > 1
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=0.6)  # past every deadline
        await call(layout, "storage", Ping())
        task.cancel()
        await asyncio.wait([task])
        return len(server._recent)

    assert asyncio.run(scenario()) == 1


@pytest.mark.parametrize("frames", [[b"x"], [b"", b"", b"", b""], [b"i", b"ping", b"short", b"\xc1"], [b"i"] * 9])
def test_a_malformed_request_leaves_the_server_working(layout: Layout, frames: list[bytes]) -> None:
    async def scenario() -> Health:
        async with serving(layout, {Ping: healthy}):
            with zmq.asyncio.Context.instance().socket(zmq.DEALER) as sock:
                sock.linger = 0
                sock.connect(f"ipc://{layout.requests('storage')}")
                await sock.send_multipart(frames)
                return await call(layout, "storage", Ping())

    assert asyncio.run(scenario()).pid == 1


def test_the_socket_is_closed_to_others(layout: Layout) -> None:
    async def scenario() -> int:
        async with serving(layout, {Ping: healthy}):
            await call(layout, "storage", Ping())
            return layout.requests("storage").stat().st_mode & 0o777

    assert asyncio.run(scenario()) == 0o660
