"""A session as text: nothing of an attacker's reaches the terminal as it is."""

from __future__ import annotations

import ast
import io
import struct

from hypothesis import given
from hypothesis import strategies as st

from bus.model import instant
from bus.spool import MAGIC, Direction, Kind
from controller.follow import in_order
from controller.show import escape, stream_lines

START_NS = 1_700_000_000_000_000_000


def stream(*frames: tuple[int, Direction, Kind, bytes]) -> io.BytesIO:
    body = b"".join(
        struct.pack("<QBBHI", START_NS + at_ms * 1_000_000, direction, kind, 0, len(payload)) + payload
        for at_ms, direction, kind, payload in frames
    )
    return io.BytesIO(MAGIC + body)


def lines(*frames: tuple[int, Direction, Kind, bytes]) -> list[str]:
    return list(stream_lines(stream(*frames), instant(START_NS)))


def test_a_stream_shows_times_directions_and_ends() -> None:
    assert lines(
        (0, Direction.OUT, Kind.DATA, b"login: "),
        (1500, Direction.IN, Kind.DATA, b"root\r\nls\r\n"),
        (1501, Direction.IN, Kind.FINISHED, b""),
        (1502, Direction.OUT, Kind.RESET, b""),
    ) == [
        "     0.000 <- login: ",
        "     1.500 -> root\\r\\n",
        "              ls\\r\\n",
        "     1.501 -> (finished)",
        "     1.502 <- (reset)",
    ]


def test_a_torn_last_frame_is_left_out() -> None:
    data = stream((0, Direction.IN, Kind.DATA, b"whole"), (1, Direction.IN, Kind.DATA, b"torn")).getvalue()
    assert len(list(stream_lines(io.BytesIO(data[:-1]), instant(START_NS)))) == 1


@given(st.binary())
def test_escaped_bytes_are_printable_and_say_exactly_what_they_were(data: bytes) -> None:
    text = escape(data)
    assert text.isascii()
    assert not text or text.isprintable()
    assert ast.literal_eval(f'b"{text.replace(chr(34), chr(92) + chr(34))}"') == data


def test_lines_of_several_logs_come_in_the_order_of_their_instants() -> None:
    def line(second: int) -> str:
        return f'{{"at": "2026-01-31T12:00:0{second}.000000Z", "level": "info"}}'

    assert in_order([line(3), "a traceback", line(1), line(2)]) == [line(1), line(2), line(3), "a traceback"]
