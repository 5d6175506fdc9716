"""The SQLite store: JSON documents with generated columns, WAL, and a commit that has reached the disk.

One connection, used by one thread at a time (`storage.service` owns that thread). A source address is kept as sortable
text beside its document, so that a network is one range of an index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from bus.model import iso
from bus.records import ContainerRecord, SessionRecord
from bus.settings import Address, Network
from storage.errors import DatabaseNewer, named
from storage.store import Counts, Filter, Page, read_cursor, write_cursor

_BUSY_S = 5.0
_MAPPED = IPv6Network("::ffff:0:0/96")
_MAPPED_BITS = 96
_ID_SLACK = timedelta(minutes=1)  # an id's time and its session's start are read from the clock one after the other
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIGRATIONS: tuple[str, ...] = (  # number n brings a database of user_version n to n + 1; never change one that shipped
    """
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY NOT NULL,
        source TEXT NOT NULL,
        document TEXT NOT NULL,
        service TEXT AS (document ->> '$.service') VIRTUAL,
        started_at TEXT AS (document ->> '$.started_at') VIRTUAL,
        ended_at TEXT AS (document ->> '$.ended_at') VIRTUAL
    ) STRICT;
    CREATE INDEX sessions_by_service ON sessions (service, id, source, started_at);
    CREATE INDEX sessions_by_source ON sessions (source, id, service, started_at);
    CREATE TABLE containers (
        id TEXT PRIMARY KEY NOT NULL,
        document TEXT NOT NULL
    ) STRICT;
    """,
)
_PUT_SESSION = """
    INSERT INTO sessions (id, source, document) VALUES (?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET source = excluded.source, document = excluded.document
    WHERE sessions.ended_at IS NULL OR excluded.document ->> '$.ended_at' IS NOT NULL
"""
_PUT_CONTAINER = """
    INSERT INTO containers (id, document) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET document = excluded.document
"""


class SqliteStore:
    """A `storage.store.Store` in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open or create the file, and bring an older schema forward."""
        with named(f"the database {self.path}"):
            self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
            # The one thread that uses it need not be the one that opened it.
            database = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
                database.execute("PRAGMA cache_size = -32768")  # KiB
                _migrate(database)
            except BaseException:
                database.close()
                raise
            self._database = database

    def close(self) -> None:
        """Close the file; SQLite empties the log into it."""
        if self._database:
            self._database.close()
            self._database = None

    def put_session(self, record: SessionRecord) -> None:
        """Insert or replace, unless that would turn a finished session into an unfinished one."""
        key = source_key(ip_address(record.source.address))
        self._run(_PUT_SESSION, (record.id, key, record.model_dump_json()))

    def get_session(self, session: str) -> SessionRecord | None:
        """Give a session by its id."""
        rows = self._run("SELECT document FROM sessions WHERE id = ?", (session,))
        return SessionRecord.model_validate_json(rows[0][0]) if rows else None

    def find_sessions(self, wanted: Filter, limit: int, cursor: str | None = None) -> Page:
        """Find ids in an index first (it holds all that is filtered on), then fetch only the documents shown."""
        conditions, values = _where(wanted, read_cursor(cursor) if cursor else None)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        found = f"SELECT id FROM sessions {where} ORDER BY id DESC LIMIT ?"  # noqa: S608 - `_where` holds no values
        query = f"SELECT document FROM sessions WHERE id IN ({found}) ORDER BY id DESC"  # noqa: S608 - the same
        rows = self._run(query, [*values, limit + 1])
        sessions = tuple(SessionRecord.model_validate_json(document) for (document,) in rows[:limit])
        return Page(sessions, write_cursor(sessions[-1].id) if len(rows) > limit else None)

    def put_container(self, record: ContainerRecord) -> None:
        """Insert or replace."""
        self._run(_PUT_CONTAINER, (record.id, record.model_dump_json()))

    def get_container(self, container: str) -> ContainerRecord | None:
        """Give a container by its id."""
        rows = self._run("SELECT document FROM containers WHERE id = ?", (container,))
        return ContainerRecord.model_validate_json(rows[0][0]) if rows else None

    def counts(self) -> Counts:
        """Count documents, and the bytes of the file and its log."""
        rows = self._run("SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM containers)")
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return Counts(rows[0][0], rows[0][1], sum(file.stat().st_size for file in files if file.exists()))

    def _run(self, statement: str, values: Sequence[str | int] = ()) -> list[tuple[Any, ...]]:
        """Run one statement, which is one transaction."""
        assert self._database is not None, "open() comes first"  # noqa: S101 - the caller's defect, not a condition
        with named(f"the database {self.path}"), closing(self._database.execute(statement, values)) as rows:
            return rows.fetchall()


def _migrate(database: sqlite3.Connection) -> None:
    """Run the migrations that this file has not seen, each whole or not at all."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(_MIGRATIONS):
        raise DatabaseNewer(f"the database has schema {version}, this program knows up to {len(_MIGRATIONS)}")
    for number in range(version, len(_MIGRATIONS)):
        database.executescript(f"BEGIN IMMEDIATE; {_MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")


def _where(wanted: Filter, before: str | None) -> tuple[list[str], list[str]]:
    """Turn a filter into conditions without values, and their values."""
    conditions: list[tuple[str, str]] = []
    if before is not None:
        conditions.append(("id < ?", before))
    if wanted.service is not None:
        conditions.append(("service = ?", wanted.service))
    if wanted.source is not None:
        first, last = source_range(wanted.source)
        one = first == last
        conditions += [("source = ?", first)] if one else [("source >= ?", first), ("source <= ?", last)]
    if wanted.since is not None:
        conditions += [("id >= ?", _id_floor(wanted.since)), ("started_at >= ?", iso(wanted.since))]
    return [condition for condition, _ in conditions], [value for _, value in conditions]


def _id_floor(since: datetime) -> str:
    """Give a text that is below the id of every session begun since then."""
    microseconds = (since - _EPOCH - _ID_SLACK) // timedelta(microseconds=1)
    return f"{min(max(0, microseconds * 1000), (1 << 64) - 1):016x}"


def source_key(address: Address) -> str:
    """Write an address so that text order is address order, IPv4 before IPv6; mapped IPv4 addresses are IPv4's."""
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return source_key(mapped) if mapped else f"6{int(address):032x}"
    return f"4{int(address):08x}"


def source_range(network: Network) -> tuple[str, str]:
    """Give the first and last key of a network."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        base = IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        return source_range(ip_network((base, network.prefixlen - _MAPPED_BITS)))
    sign, digits = ("6", 32) if isinstance(network, IPv6Network) else ("4", 8)
    return (
        f"{sign}{int(network.network_address):0{digits}x}",
        f"{sign}{int(network.broadcast_address):0{digits}x}",
    )
