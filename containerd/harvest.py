"""Puts everything an attacker created or changed into a tar, after every process of his container is dead.

Called by `container.py`. All names and contents are hostile: nothing is followed, opened by a long path, or
trusted to be as large as it says. The tar is pax (POSIX.1-2001) with numeric owners as the container saw them;
holes are kept as GNU sparse format 1.0 (GNU tar manual, "PAX Format, Version 1.0"), so the tar is never much
larger than the container's disk was.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from bus.model import Frozen
from containerd.tree import device_names
from containerd.uidrange import SIZE

_DEEPEST = 128
_BLOCK = 512
_NOBODY = 65534
_Extent = tuple[int, int]  # offset and length of data in a file
_OPAQUE = "trusted.overlay.opaque"


class Harvest(Frozen):
    """What came of it: the tar's path, size and digest, how many entries it has, what was deleted or left out."""

    path: Path
    size_bytes: int
    sha256: str
    files: int
    directories: int
    others: int
    skipped: int
    deleted: tuple[str, ...]


class _Hashed(io.RawIOBase):
    """Counts and digests what passes into a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size_bytes = file, hashlib.sha256(), 0

    def write(self, data: object) -> int:
        """Write all of it."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # a buffer, as tarfile gives it
        self.digest.update(view)
        self.size_bytes += len(view)
        self.file.write(view)
        return len(view)


@dataclass
class _Tally:
    """What is counted on the way."""

    base: int
    tar: tarfile.TarFile
    files: int = 0
    directories: int = 0
    others: int = 0
    skipped: int = 0
    deleted: list[str] = field(default_factory=list)
    seen: dict[tuple[int, int], str] = field(default_factory=dict)


def harvest(directory: Path, base: int, to: Path) -> Harvest:
    """Write the tar of a dead container's changes to `to`; `OSError` where it can't be written."""
    draft = to.with_name(f".{to.name}.part")
    try:
        with draft.open("wb") as file:
            done = _write(directory, base, file, to)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(to)
    finally:
        draft.unlink(missing_ok=True)
    return done


def _write(directory: Path, base: int, file: BinaryIO, to: Path) -> Harvest:
    out = _Hashed(file)
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        tally = _Tally(base, tar)
        for place, shown in (("disk/u", ""), ("dev", "dev/"), ("shm", "dev/shm/"), ("run", "run/")):
            _tree(tally, directory / place, shown)
    return Harvest(
        path=to, size_bytes=out.size_bytes, sha256=out.digest.hexdigest(), files=tally.files,
        directories=tally.directories, others=tally.others, skipped=tally.skipped, deleted=tuple(tally.deleted),
    )  # fmt: skip


def _tree(tally: _Tally, place: Path, shown: str) -> None:
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:  # it was never made
        return
    try:
        _folder(tally, descriptor, shown, 0)
    finally:
        os.close(descriptor)


def _folder(tally: _Tally, descriptor: int, shown: str, depth: int) -> None:
    """Take everything in an open directory, one descriptor a level."""
    own = device_names() if shown == "dev/" else frozenset()
    for name in sorted(os.listdir(descriptor)):
        if name not in own:
            _entry(tally, descriptor, name, f"{shown}{name}", depth)


def _entry(tally: _Tally, parent: int, name: str, shown: str, depth: int) -> None:
    found = os.lstat(name, dir_fd=parent)
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
        tally.deleted.append(_readable(shown))
        return
    info = _info(tally, found, shown)
    if stat.S_ISDIR(found.st_mode):
        tally.directories += 1
        info.type = tarfile.DIRTYPE
        tally.tar.addfile(info)
        _descend(tally, parent, name, shown, depth + 1)
    elif stat.S_ISREG(found.st_mode):
        _file(tally, parent, name, info, found)
    elif stat.S_ISLNK(found.st_mode):
        tally.others += 1
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=parent)
        tally.tar.addfile(info)
    elif stat.S_ISFIFO(found.st_mode):
        tally.others += 1
        info.type = tarfile.FIFOTYPE
        tally.tar.addfile(info)
    else:  # a socket, or a device that could not be made in there
        tally.skipped += 1


def _descend(tally: _Tally, parent: int, name: str, shown: str, depth: int) -> None:
    if depth > _DEEPEST:
        tally.skipped += 1
        return
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        if _OPAQUE in os.listxattr(descriptor):  # the template's directory was deleted and a new one made
            tally.deleted.append(_readable(shown))
        _folder(tally, descriptor, f"{shown}/", depth)
    finally:
        os.close(descriptor)


def _info(tally: _Tally, found: os.stat_result, shown: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(shown)
    info.mode, info.mtime = stat.S_IMODE(found.st_mode), found.st_mtime
    info.uid, info.gid = (_inner(number, tally.base) for number in (found.st_uid, found.st_gid))
    return info


def _inner(number: int, base: int) -> int:
    return number - base if base <= number < base + SIZE else _NOBODY


def _file(tally: _Tally, parent: int, name: str, info: tarfile.TarInfo, found: os.stat_result) -> None:
    first = tally.seen.setdefault((found.st_dev, found.st_ino), info.name)
    tally.files += 1
    if first != info.name:
        info.type, info.linkname = tarfile.LNKTYPE, first
        tally.tar.addfile(info)
        return
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
    with io.FileIO(descriptor, "rb") as file:
        extents = list(_extents(descriptor, found.st_size))
        if sum(size for _, size in extents) < found.st_size:
            _add_sparse(tally, info, file, extents, found.st_size)
        else:
            info.size = found.st_size
            file.seek(0)  # looking for holes moved it
            tally.tar.addfile(info, file)


def _extents(descriptor: int, size: int) -> Iterator[_Extent]:
    """Find the parts of a file that hold data: (offset, length)."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        at = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        yield begin, at - begin


def _add_sparse(tally: _Tally, info: tarfile.TarInfo, file: io.FileIO, extents: list[_Extent], size: int) -> None:
    listed = [*extents, (size, 0)]
    table = f"{len(listed)}\n" + "".join(f"{offset}\n{length}\n" for offset, length in listed)
    head = table.encode() + bytes(-len(table) % _BLOCK)
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0",
        "GNU.sparse.name": info.name, "GNU.sparse.realsize": str(size),
    }  # fmt: skip
    info.name = f"GNUSparseFile.0/{info.name}"
    info.size = len(head) + sum(length for _, length in extents)
    tally.tar.addfile(info, _Joined(head, file, extents))


class _Joined(io.RawIOBase):
    """Reads a table and then the parts of a file, as one stream."""

    def __init__(self, head: bytes, file: io.FileIO, extents: list[_Extent]) -> None:
        self._head, self._file, self._left = head, file, list(extents)

    def read(self, size: int = -1) -> bytes:
        """Give exactly so many bytes while there are any."""
        parts = bytearray()
        while len(parts) < size and (part := self._next(size - len(parts))):
            parts += part
        return bytes(parts)

    def _next(self, most: int) -> bytes:
        if self._head:
            given, self._head = self._head[:most], self._head[most:]
            return given
        if not self._left:
            return b""
        offset, length = self._left[0]
        given = os.pread(self._file.fileno(), min(most, length), offset)
        rest = (offset + len(given), length - len(given))
        self._left[:1] = [rest] if rest[1] and given else []
        return given


def _readable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
