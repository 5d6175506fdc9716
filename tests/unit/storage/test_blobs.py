"""Blobs on a real filesystem: whole or not there, once, read-only."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.errors import Refused
from bus.records import Blob
from storage.blobs import Blobs
from storage.errors import BadCapture, DiskFull


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    made = Blobs(tmp_path / "blobs")
    made.open()
    return made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def put(blobs: Blobs, path: Path, content: bytes) -> Blob:
    path.write_bytes(content)
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)  # wherever the sender's position is
        return blobs.store(file.fileno())


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 7])
def test_what_is_stored_is_what_is_fetched(blobs: Blobs, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    blob = put(blobs, tmp_path / "file", content)
    assert blob == Blob(sha256=hashlib.sha256(content).hexdigest(), size_bytes=size)
    (path,) = files(tmp_path / "blobs")
    assert path.relative_to(tmp_path / "blobs") == Path(blob.sha256[:2]) / blob.sha256
    assert path.stat().st_mode & 0o7777 == 0o440
    assert {directory.stat().st_mode & 0o077 for directory in (path.parent, path.parent.parent)} == {0}
    descriptor = blobs.fetch(blob.sha256)
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == content


def test_the_same_content_from_many_threads_is_one_file(blobs: Blobs, tmp_path: Path) -> None:
    threads = [threading.Thread(target=put, args=(blobs, tmp_path / f"f{n}", b"same" * 9999)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files(tmp_path / "blobs")) == 1


def test_leftovers_are_removed_at_the_start_and_blobs_are_not(blobs: Blobs, tmp_path: Path) -> None:
    put(blobs, tmp_path / "file", b"kept")
    (tmp_path / "blobs" / "incoming" / "half").write_bytes(b"x")
    again = Blobs(tmp_path / "blobs")
    again.open()
    assert [path.read_bytes() for path in files(tmp_path / "blobs")] == [b"kept"]
    assert again.measure() == (1, 4)


def test_a_full_disk_is_named_leaves_nothing_and_passes(small_disk: Path, tmp_path: Path) -> None:
    blobs = Blobs(small_disk / "blobs")
    blobs.open()
    with pytest.raises(DiskFull):
        put(blobs, tmp_path / "file", os.urandom(3 << 20))
    assert files(small_disk) == []
    put(blobs, tmp_path / "file", os.urandom(1 << 20))
    assert len(files(small_disk)) == 1


def test_what_is_no_file_is_refused(blobs: Blobs) -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(BadCapture):
            blobs.store(read)
    finally:
        os.close(read)
        os.close(write)


def test_an_unknown_digest_is_not_found(blobs: Blobs) -> None:
    with pytest.raises(Refused) as refused:
        blobs.fetch("0" * 64)
    assert refused.value.code == "not_found"
