"""Content-addressed files: BLOBS/ab/<sha256>, written once, read-only, never executable.

Each is there whole or not at all. Called by the door, in threads. Never knows what a blob means, and never deletes one.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bus.errors import Refused
from bus.records import Blob
from storage.errors import BadCapture, named

_CHUNK = 1 << 20
_MODE = 0o440
_PRIVATE = 0o700  # the managers share a group; captures are fetched at the door
_DIGEST_LENGTH = 64


class Blobs:
    """The blobs' directory. Safe to use from several threads at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self._lock = threading.Lock()
        self._count = 0
        self._size_bytes = 0

    def open(self) -> None:
        """Make the directory, and remove what an earlier life left half-written."""
        with named(f"the blobs in {self._root}"):
            for directory in (self._root, self._incoming):
                directory.mkdir(_PRIVATE, parents=True, exist_ok=True)
            for leftover in self._incoming.iterdir():
                leftover.unlink()
            sizes = [p.stat().st_size for p in self._root.glob("??/*") if len(p.name) == _DIGEST_LENGTH]
            self._count, self._size_bytes = len(sizes), sum(sizes)

    def store(self, source: int) -> Blob:
        """Copy a regular file's content in from its start; it is on the disk for good when this returns."""
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise BadCapture("a captured file is not a regular file")
        with named(f"the blobs in {self._root}"), self._temporary() as (temporary, target):
            blob = _copy(source, target)
            path = self._path(blob.sha256)
            if not path.exists():
                os.fchmod(target, _MODE)
                os.fsync(target)
                if not path.parent.is_dir():
                    path.parent.mkdir(_PRIVATE, exist_ok=True)
                    _sync_directory(self._root)
                temporary.rename(path)
                self._note(blob)
            _sync_directory(path.parent)  # also where another thread has just renamed
            return blob

    def fetch(self, sha256: str) -> int:
        """Open a blob for reading; `Refused` with `not_found`."""
        try:
            return os.open(self._path(sha256), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise Refused("not_found", f"no blob {sha256}") from None

    def measure(self) -> tuple[int, int]:
        """Give how many blobs there are and their bytes."""
        return self._count, self._size_bytes

    def _note(self, blob: Blob) -> None:
        with self._lock:
            self._count += 1
            self._size_bytes += blob.size_bytes

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256

    @contextmanager
    def _temporary(self) -> Iterator[tuple[Path, int]]:
        """Give a new file on the same filesystem; it is gone afterwards unless it was renamed."""
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        try:
            yield Path(name), descriptor
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                Path(name).unlink()


def _copy(source: int, target: int) -> Blob:
    """Copy and hash; positions are explicit, since a descriptor's own is shared with whoever sent it."""
    digest, position = hashlib.sha256(), 0
    while chunk := os.pread(source, _CHUNK, position):
        digest.update(chunk)
        position += len(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]
    return Blob(sha256=digest.hexdigest(), size_bytes=position)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
