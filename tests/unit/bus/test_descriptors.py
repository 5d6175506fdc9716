"""Descriptors over real SEQPACKET sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from bus import descriptors
from bus.errors import PeerDown, PeerNonsense


def test_a_descriptor_arrives_and_is_close_on_exec() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    try:
        descriptors.send(left, b"here", [writer])
        message, fds = descriptors.receive(right)
        os.write(fds[0], b"through")
        assert (message, os.read(reader, 10)) == (b"here", b"through")
        assert not os.get_inheritable(fds[0])
        descriptors.close_all(fds)
    finally:
        descriptors.close_all([reader, writer])
        left.close()
        right.close()


def test_a_request_is_answered_through_a_door(tmp_path: Path) -> None:
    path = tmp_path / "door"

    async def echo(connection: socket.socket) -> None:
        async for message, fds in descriptors.arrivals(connection):
            descriptors.send(connection, message.upper(), fds)
            descriptors.close_all(fds)

    async def scenario() -> bytes:
        with descriptors.listen(path) as server, path.with_name("file").open("w+b") as file:
            serving = asyncio.create_task(descriptors.serve(server, echo))
            answer, fds = await descriptors.request(path, b"hello", [file.fileno()])
            assert os.fstat(fds[0]).st_ino == os.fstat(file.fileno()).st_ino
            descriptors.close_all(fds)
            serving.cancel()
            await asyncio.wait([serving])
            return answer

    assert asyncio.run(scenario()) == b"HELLO"
    assert path.stat().st_mode & 0o777 == 0o660


def test_a_door_nobody_holds_is_peer_down(tmp_path: Path) -> None:
    with pytest.raises(PeerDown, match="nobody answers"):
        descriptors.connect(tmp_path / "nothing")


def test_a_door_that_closes_is_peer_down(tmp_path: Path) -> None:
    async def hang_up(connection: socket.socket) -> None:
        await descriptors.readable(connection)

    async def scenario() -> None:
        with descriptors.listen(tmp_path / "door") as server:
            serving = asyncio.create_task(descriptors.serve(server, hang_up))
            try:
                await descriptors.request(tmp_path / "door", b"hello")
            finally:
                serving.cancel()
                await asyncio.wait([serving])

    with pytest.raises(PeerDown):
        asyncio.run(scenario())


def test_too_many_descriptors_are_refused_and_none_leaks() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(list(Path("/proc/self/fd").iterdir()))
    try:
        descriptors.send(left, b"many", [0] * (descriptors.FDS_MAX + 40))
        with pytest.raises(PeerNonsense):
            descriptors.receive(right)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        left.close()
        right.close()
