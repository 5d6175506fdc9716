"""Parking: both halves of the conversation over a real door."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from bus import descriptors
from bus.parking import Lot, Parker, ParkReply, ParkRequest


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the other half tells nobody
            await asyncio.sleep(0.01)


def run(path: Path, scenario: Callable[[Lot], Awaitable[None]]) -> None:
    """Run a scenario beside an open lot."""

    async def both() -> None:
        lot = Lot()
        with descriptors.listen(path) as server:
            serving = asyncio.create_task(descriptors.serve(server, lot.converse))
            try:
                await scenario(lot)
            finally:
                serving.cancel()
                await asyncio.wait([serving])
                lot.close()

    asyncio.run(both())


def test_more_sockets_than_fit_one_message_come_back_by_name(tmp_path: Path) -> None:
    path = tmp_path / "park"

    async def scenario(lot: Lot) -> None:
        with ExitStack() as undo:
            wanted = {str(n): undo.enter_context(socket.create_server(("127.0.0.1", 0))) for n in range(40)}
            first = Parker(path, "listener")
            assert await first.take() == {}
            first.want(wanted)
            keeping = asyncio.create_task(first.keep())
            await until(lambda: len(lot.names("listener")) == 40)
            keeping.cancel()
            await asyncio.wait([keeping])
            second, stranger = Parker(path, "listener"), Parker(path, "session")
            undo.callback(second.close)
            undo.callback(stranger.close)
            taken = await second.take()
            for sock in taken.values():
                undo.enter_context(sock)
            assert {name: sock.getsockname() for name, sock in taken.items()} == {
                name: sock.getsockname() for name, sock in wanted.items()
            }
            assert await stranger.take() == {}

    run(path, scenario)


def test_what_is_no_longer_wanted_is_unparked_and_what_is_new_is_parked(tmp_path: Path) -> None:
    path = tmp_path / "park"

    async def scenario(lot: Lot) -> None:
        with ExitStack() as undo:
            one, other = (undo.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
            parker = Parker(path, "listener")
            parker.want({"one": one})
            keeping = asyncio.create_task(parker.keep())
            await until(lambda: lot.names("listener") == ("one",))
            parker.want({"other": other})
            await until(lambda: lot.names("listener") == ("other",))
            keeping.cancel()
            await asyncio.wait([keeping])

    run(path, scenario)


def test_without_a_controller_nothing_comes_back_after_a_short_patience(tmp_path: Path) -> None:
    assert asyncio.run(Parker(tmp_path / "park", "listener").take(patience_s=0.1)) == {}


def test_nonsense_is_answered_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "park"

    async def scenario(lot: Lot) -> None:
        for message in (b"nonsense", ParkRequest(op="park", owner="x", name="n").pack()):
            answer, _ = await descriptors.request(path, message)
            assert ParkReply.unpack(answer).error
        assert lot.names("x") == ()

    run(path, scenario)
