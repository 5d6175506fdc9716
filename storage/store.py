"""The document store's interface: what storage needs of a database, whichever that is.

Shaped so that a document database fits as one more file: whole documents by id, one filter value, newest first, and a
cursor that names the last document seen. Called from one thread at a time; an implementation never touches blobs.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from bus.records import ContainerRecord, SessionRecord
from bus.settings import Network

ID = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True)
class Filter:
    """Which sessions are wanted: those that match everything that is set."""

    service: str | None = None
    source: Network | None = None
    since: datetime | None = None


@dataclass(frozen=True)
class Page:
    """Some sessions, newest first, and the cursor that goes on after them (None at the end)."""

    sessions: tuple[SessionRecord, ...]
    cursor: str | None


@dataclass(frozen=True)
class Counts:
    """How much the store holds."""

    sessions: int
    containers: int
    size_bytes: int


class Store(Protocol):
    """A document store. Everything raises `storage.errors.StorageError`; a put has reached the disk when it returns."""

    def open(self) -> None:
        """Connect, and bring an older schema forward."""

    def close(self) -> None:
        """Let go of the database."""

    def put_session(self, record: SessionRecord) -> None:
        """Keep a session; a record that has ended is never replaced by one that has not."""

    def get_session(self, session: str) -> SessionRecord | None:
        """Give a session."""

    def find_sessions(self, wanted: Filter, limit: int, cursor: str | None = None) -> Page:
        """Give at most `limit` sessions, newest first, after the cursor; `ValueError` for a cursor that is none."""

    def put_container(self, record: ContainerRecord) -> None:
        """Keep a destroyed container."""

    def get_container(self, container: str) -> ContainerRecord | None:
        """Give a destroyed container."""

    def counts(self) -> Counts:
        """Count."""


def write_cursor(last_id: str) -> str:
    """Make the cursor that continues after this document."""
    return base64.urlsafe_b64encode(last_id.encode()).decode()


def read_cursor(cursor: str) -> str:
    """Give the id in a cursor; `ValueError` for anything `write_cursor` did not make."""
    try:
        last_id = base64.urlsafe_b64decode(cursor.encode()).decode()
    except (binascii.Error, UnicodeError) as error:
        raise ValueError("cursor: not one that a listing gave") from error
    if not ID.fullmatch(last_id):
        raise ValueError("cursor: not one that a listing gave")
    return last_id
