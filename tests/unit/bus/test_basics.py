"""Ids, instants, processes, logs and paths."""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import logs, process
from bus.errors import ConfigError
from bus.layout import Layout
from bus.model import instant, iso, new_id, unpack
from bus.settings import GlobalSettings


def test_ids_sort_by_time() -> None:
    ids = [new_id() for _ in range(2000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 2000


@given(st.integers(min_value=0, max_value=4_000_000_000), st.integers(min_value=0, max_value=4_000_000_000))
def test_instants_as_text_sort_as_instants(first: int, second: int) -> None:
    texts = [iso(instant(s * 10**9)) for s in (first, second)]
    assert (texts[0] < texts[1]) == (first < second)
    assert all(text.endswith("Z") for text in texts)


@given(st.binary(max_size=64))
def test_unpack_of_anything_is_a_value_or_a_value_error(data: bytes) -> None:
    try:
        unpack(data)
    except ValueError:
        return


def test_a_mark_dies_with_its_process_and_its_pidfd_tells() -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    marked = process.mark(child.pid)
    pidfd = process.open_pidfd(marked)
    assert pidfd is not None
    try:
        assert marked.alive
        child.communicate()
        assert select.select([pidfd], [], [], 5)[0]
        assert not marked.alive
        assert process.open_pidfd(marked) is None
    finally:
        os.close(pidfd)


def test_another_process_of_the_same_pid_is_not_the_marked_one() -> None:
    assert not process.Mark(pid=os.getpid(), start_ticks=process.mark().start_ticks + 1).alive


def test_a_log_line_is_json_with_its_ids_and_renders_for_people() -> None:
    record = logging.makeLogRecord(
        {"msg": "took %s", "args": ("it",), "levelname": "INFO", "session": "0123456789abcdef"}
    )
    line = logs.JsonLines("session").format(record)
    entry = json.loads(line)
    assert (entry["message"], entry["session"], entry["manager"]) == ("took it", "0123456789abcdef", "session")
    assert entry["at"].endswith("Z")
    assert "took it" in logs.render(line)
    assert "session=89abcdef" in logs.render(line)


@pytest.mark.parametrize("line", ["", "Traceback", "[]", '{"at": 1}', "null"])
def test_a_line_that_is_not_ours_stays_as_it_is(line: str) -> None:
    assert logs.render(line) == line


def test_a_run_dir_too_long_for_sockets_is_named() -> None:
    with pytest.raises(ConfigError, match=r"global\.run_dir"):
        Layout.of(GlobalSettings(run_dir=Path("/" + "x" * 120)))
