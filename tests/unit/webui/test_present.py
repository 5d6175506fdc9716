"""Attacker's bytes as text: nothing invisible, nothing that turns the reading direction, nothing lost."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from bus.spool import Direction, Frame, Kind
from webui.present import hexdump, payloads, rows, visible


@given(st.binary() | st.text())
def test_only_plainly_visible_characters_are_shown(data: bytes | str) -> None:
    for char in visible(data).replace("\n", ""):
        assert char.isprintable()
        assert unicodedata.category(char)[0] not in "CM"


def test_what_is_hidden_is_spelt_out() -> None:
    assert visible(b"\x1b[2Jls\r\n") == "\\x1b[2Jls\\r\\n\n"
    assert visible("a\u202eb\u200bc\u0301".encode()) == "a\\u202eb\\u200bc\\u0301"
    assert visible(b"\xff\xfe ok \x00") == "\\xff\\xfe ok \\x00"
    assert visible("grüße \U000e0041") == "grüße \\U000e0041"


def test_a_hexdump_has_offset_hex_and_ascii() -> None:
    assert hexdump(b"GET /<\x00\xff") == "000000  47 45 54 20 2f 3c 00 ff                          GET /<.."
    assert len(hexdump(bytes(33)).splitlines()) == 3


def test_rows_end_at_the_limit() -> None:
    frames = [Frame(10**9 * n, Direction.IN, Kind.DATA, b"x" * 10) for n in range(1, 5)]
    shown = list(rows([Frame(10**9, Direction.OUT, Kind.FINISHED), *frames], 0, 16, as_hex=False))
    assert [(row.offset_s, row.direction, row.kind, len(row.text)) for row in shown] == [
        (1.0, "out", "finished", 0),
        (1.0, "in", "data", 10),
        (2.0, "in", "data", 5),
    ]


def test_one_directions_payload() -> None:
    frames = [
        Frame(1, Direction.IN, Kind.DATA, b"a"),
        Frame(2, Direction.OUT, Kind.DATA, b"b"),
        Frame(3, Direction.IN, Kind.DATA, b"c"),
        Frame(4, Direction.IN, Kind.FINISHED),
    ]
    assert b"".join(payloads(frames, Direction.IN)) == b"ac"
