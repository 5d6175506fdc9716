"""The SQLite store against a plain list, and what it says when the file is not as it should be."""

from __future__ import annotations

import ipaddress
import sqlite3
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.records import ContainerRecord, SessionRecord
from bus.settings import Network
from storage.errors import DatabaseCorrupt, DatabaseLocked, DatabaseNewer, DiskFull
from storage.sqlite import SqliteStore, source_key, source_range
from storage.store import Filter, read_cursor, write_cursor
from tests.unit.storage.instance import record

START_NS = 1_700_000_000_000_000_000
ADDRESSES = st.one_of(
    st.integers(0, 40).map(lambda n: f"198.51.100.{n}"),
    st.ip_addresses(v=4).map(str),
    st.integers(0, 40).map(lambda n: f"2001:db8::{n:x}"),
    st.ip_addresses(v=6).map(str),
)
NETWORKS = st.one_of(
    st.sampled_from(["198.51.100.0/24", "198.51.100.8/29", "198.51.100.7", "0.0.0.0/0", "2001:db8::/32", "::/0"]),
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 128)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
).map(lambda text: ipaddress.ip_network(text, strict=False))
RECORDS = st.builds(
    lambda address, service, seconds, live: record(address, service, START_NS + seconds * 10**9 + 1000, live=live),
    ADDRESSES,
    st.sampled_from(["ssh", "http", "telnet"]),
    st.integers(0, 100),
    st.booleans(),
)
FILTERS = st.builds(
    Filter,
    st.none() | st.sampled_from(["ssh", "http", "ftp"]),
    st.none() | NETWORKS,
    st.none() | st.integers(-1, 101).map(lambda s: datetime.fromtimestamp(START_NS / 1e9 + s, UTC)),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "db" / "test.sqlite")
    made.open()
    yield made
    made.close()


def matches(session: SessionRecord, wanted: Filter) -> bool:
    """Say plainly what a filter means."""
    address = ipaddress.ip_address(session.source.address)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (
        wanted.service in (None, session.service)
        and (wanted.source is None or (mapped or address) in wanted.source)
        and (wanted.since is None or session.started_at >= wanted.since)
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(RECORDS, max_size=60), FILTERS, st.integers(1, 20))
def test_pages_together_are_the_filtered_list_newest_first(
    sessions: list[SessionRecord], wanted: Filter, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = SqliteStore(Path(directory) / "test.sqlite")
        store.open()
        try:
            for session in sessions:
                store.put_session(session)
            found: list[SessionRecord] = []
            page = store.find_sessions(wanted, limit)
            found += page.sessions
            while page.cursor:
                assert len(page.sessions) == limit
                page = store.find_sessions(wanted, limit, page.cursor)
                found += page.sessions
        finally:
            store.close()
    expected = sorted((s for s in sessions if matches(s, wanted)), key=lambda s: s.id, reverse=True)
    assert found == expected


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6), NETWORKS)
def test_a_network_is_a_range_of_keys(address: ipaddress.IPv4Address | ipaddress.IPv6Address, network: Network) -> None:
    first, last = source_range(network)
    plain = (address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address
    assert (first <= source_key(address) <= last) == (plain in network)


def test_a_network_filter_is_a_range_of_the_index_and_reads_no_other_documents(store: SqliteStore) -> None:
    seen: list[str] = []
    assert store._database
    store._database.set_trace_callback(seen.append)
    store.find_sessions(Filter(source=ipaddress.ip_network("198.51.100.0/24")), 10)
    store._database.set_trace_callback(None)
    plan = " ".join(row[3] for row in store._database.execute(f"EXPLAIN QUERY PLAN {seen[-1]}"))
    assert "USING COVERING INDEX sessions_by_source (source>? AND source<?)" in plan
    assert "SCAN sessions" not in plan


@settings(deadline=None)
@given(st.permutations(range(4)))
def test_a_finished_record_stays_in_whatever_order_records_come(order: list[int]) -> None:
    done = record()
    live = done.model_copy(update={"ended_at": None, "end_reason": None})
    with tempfile.TemporaryDirectory() as directory:
        store = SqliteStore(Path(directory) / "test.sqlite")
        store.open()
        for number in order:
            store.put_session([done, live, done, live][number])
        assert store.get_session(done.id) == done
        assert store.counts().sessions == 1
        store.close()


def test_records_survive_reopening(tmp_path: Path) -> None:
    session = record()
    container = ContainerRecord(
        id=session.id,
        sensor="test",
        template="t",
        image="i",
        source="198.51.100.7",
        sessions=(session.id,),
        created_at=session.started_at,
        destroyed_at=session.started_at + timedelta(hours=1),
        deleted=("/etc/\u202epasswd",),
    )
    for _ in range(2):
        store = SqliteStore(tmp_path / "test.sqlite")
        store.open()
        store.put_session(session)
        store.put_container(container)
        store.close()
    store.open()
    assert (store.get_session(session.id), store.get_container(session.id)) == (session, container)
    assert (store.counts().sessions, store.counts().containers) == (1, 1)
    assert store.get_session("0" * 24) is None
    store.close()


def test_cursors_are_read_back_and_nothing_else_is() -> None:
    assert read_cursor(write_cursor("0" * 24)) == "0" * 24
    for text in ("", "x", "AAAA", "é", write_cursor("../../etc/passwd"), write_cursor("0" * 25)):
        with pytest.raises(ValueError, match="cursor"):
            read_cursor(text)


def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "test.sqlite"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(DatabaseCorrupt):
        SqliteStore(path).open()
    assert path.read_bytes() == b"not a database" * 1000


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.sqlite"
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(DatabaseNewer):
        SqliteStore(path).open()


def test_a_lock_held_by_another_is_named_and_passes(store: SqliteStore) -> None:
    assert store._database
    store._database.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseLocked):
        store.put_session(record())
    other.execute("ROLLBACK")
    other.close()
    store.put_session(record())
    assert store.counts().sessions == 1


def test_a_full_database_is_named_and_stores_nothing(store: SqliteStore) -> None:
    assert store._database
    big = record().model_copy(update={"configuration": "x" * 300_000})
    store._database.execute("PRAGMA max_page_count = 40")
    with pytest.raises(DiskFull):
        store.put_session(big)
    assert store.counts().sessions == 0
    store.put_session(record())
    assert store.counts().sessions == 1
