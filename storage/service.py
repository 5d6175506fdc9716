"""The storage manager: the store's one thread, the commands that read it, and the door.

Started by `__main__` through `bus.manager`. The database is used by a single thread; blobs are copied in others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

from bus.catalogue import Command, Configuration, FindSessions, GetContainer, GetSession, SessionPage
from bus.errors import Refused
from bus.layout import Layout
from bus.manager import Node
from bus.model import Frozen
from bus.records import ContainerRecord, SessionRecord
from bus.settings import StorageSettings
from storage.blobs import Blobs
from storage.door import Door, Record
from storage.sqlite import SqliteStore
from storage.store import Counts, Filter, Store

T = TypeVar("T")
LIMIT_MAX = 1000
_MEASURE_EVERY_S = 10.0


class Storage:
    """Answers commands from the store; owns the thread that uses it."""

    def __init__(self, store: Store, blobs: Blobs, settings: StorageSettings) -> None:
        self._store = store
        self._blobs = blobs
        self._settings = settings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        self._counts = Counts(0, 0, 0)
        self.handlers: Mapping[type[Command[Any]], Callable[[Any], Awaitable[Frozen]]] = {
            FindSessions: self._find,
            GetSession: self._session,
            GetContainer: self._container,
        }

    async def open(self) -> None:
        """Open the database and the blobs."""
        await asyncio.to_thread(self._blobs.open)
        await self._database(self._store.open)
        await self._measure()

    async def close(self) -> None:
        """Let a running statement end, then close the database."""
        await self._database(self._store.close)
        self._thread.shutdown()

    async def put(self, record: Record) -> None:
        """Make a record durable."""
        if isinstance(record, SessionRecord):
            await self._database(self._store.put_session, record)
        else:
            await self._database(self._store.put_container, record)

    async def keep_measuring(self) -> None:
        """Refresh the figures for `health`, for ever."""
        while True:
            await asyncio.sleep(_MEASURE_EVERY_S)
            await self._measure()

    async def apply(self, configuration: Configuration, *, dry: bool) -> str | None:  # noqa: ARG002 - nothing to do when not dry
        """Refuse another database while running."""
        if configuration.config.storage != self._settings:
            return "storage: can't change while it runs; stop the honeypot, change it, start it again"
        return None

    def health(self) -> tuple[str, dict[str, float]]:
        """Documents (as of the last count) and bytes."""
        counts, (blobs, blob_bytes) = self._counts, self._blobs.measure()
        return f"{counts.sessions} sessions, {counts.containers} containers, {blob_bytes >> 20} MiB of captures", {
            "sessions": counts.sessions,
            "containers": counts.containers,
            "database_bytes": counts.size_bytes,
            "blobs": blobs,
            "blob_bytes": blob_bytes,
        }

    async def _measure(self) -> None:
        self._counts = await self._database(self._store.counts)

    async def _database(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _find(self, command: FindSessions) -> SessionPage:
        wanted = read_filter(command)
        try:
            page = await self._database(self._store.find_sessions, wanted, command.limit, command.cursor)
        except ValueError as error:
            raise Refused("bad_request", str(error)) from error
        return SessionPage(sessions=page.sessions, next=page.cursor)

    async def _session(self, command: GetSession) -> SessionRecord:
        found = await self._database(self._store.get_session, command.session)
        if found is None:
            raise Refused("not_found", f"no session {command.session}")
        return found

    async def _container(self, command: GetContainer) -> ContainerRecord:
        found = await self._database(self._store.get_container, command.container)
        if found is None:
            raise Refused("not_found", f"no container {command.container}")
        return found


def read_filter(command: FindSessions) -> Filter:
    """Read a question's values; `Refused` with `bad_request` and the value's name."""
    if not 1 <= command.limit <= LIMIT_MAX:
        raise Refused("bad_request", f"limit: must be from 1 to {LIMIT_MAX}")
    try:
        source = ip_network(command.source, strict=False) if command.source else None
    except ValueError:
        raise Refused("bad_request", f"source: {command.source!r} is neither an address nor a network") from None
    try:
        since = datetime.fromisoformat(command.since) if command.since else None
    except ValueError:
        raise Refused("bad_request", f"since: {command.since!r} is not an ISO 8601 instant") from None
    if since and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    return Filter(command.service or None, source, since)


def database_path(layout: Layout, settings: StorageSettings) -> Path:
    """Tell where the database is."""
    return Path(settings.url).absolute() if settings.url else layout.database


@asynccontextmanager
async def start(node: Node, configuration: Configuration) -> AsyncIterator[Storage]:
    """Open everything, then open the door."""
    settings = configuration.config.storage
    blobs = Blobs(node.layout.blobs)
    storage = Storage(SqliteStore(database_path(node.layout, settings)), blobs, settings)
    await storage.open()
    tasks = [
        node.spawn(Door(node.layout.door, blobs, storage.put).serve(), "door"),
        node.spawn(storage.keep_measuring(), "measuring"),
    ]
    try:
        yield storage
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await storage.close()
