"""What can go wrong with the disk, with the stable codes that recorder and webui see.

    HoneypotError
    └── StorageError        storage             anything else the disk or database refused
        ├── DiskFull        disk_full           no room; nothing was stored
        ├── DatabaseLocked  database_locked     another process holds the database
        ├── DatabaseCorrupt database_corrupt    the file is no database, or a damaged one
        ├── DatabaseNewer   database_newer      written by a later version of this program
        └── BadCapture      bad_capture         a record that is none, or files that don't fit it

Raised in the store's and the blobs' threads; the door and the command server turn them into answers.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from bus.errors import HoneypotError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class StorageError(HoneypotError):
    """The disk or the database refused."""

    code = "storage"


class DiskFull(StorageError):
    """There is no room; nothing was stored."""

    code = "disk_full"


class DatabaseLocked(StorageError):
    """Another process holds the database."""

    code = "database_locked"


class DatabaseCorrupt(StorageError):
    """The file is no database, or a damaged one."""

    code = "database_corrupt"


class DatabaseNewer(StorageError):
    """A later version of this program wrote the database."""

    code = "database_newer"


class BadCapture(StorageError):
    """What was handed over is not a capture; repeating it won't help."""

    code = "bad_capture"


_BY_RESULT: dict[int, type[StorageError]] = {  # primary result codes, https://www.sqlite.org/rescode.html
    sqlite3.SQLITE_FULL: DiskFull,
    sqlite3.SQLITE_BUSY: DatabaseLocked,
    sqlite3.SQLITE_LOCKED: DatabaseLocked,
    sqlite3.SQLITE_CORRUPT: DatabaseCorrupt,
    sqlite3.SQLITE_NOTADB: DatabaseCorrupt,
}


@contextmanager
def named(what: str) -> Iterator[None]:
    """Turn whatever the operating system or SQLite raises inside into a `StorageError` that names `what`."""
    try:
        yield
    except sqlite3.Error as error:
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        raise _BY_RESULT.get(primary, StorageError)(f"{what}: {error}") from error
    except OSError as error:
        kind = DiskFull if error.errno in _FULL else StorageError
        raise kind(f"{what}: {error.strerror}") from error
