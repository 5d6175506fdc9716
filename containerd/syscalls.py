"""The one door to raw system calls that Python's `os` lacks, and to threads that live in other namespaces.

Called by `tree.py`, `network.py` and `uidrange.py`. Every function raises `OSError` with the call's name.
What changes the calling thread (`unshare`, `setns`) must only be called in a thread of its own: use
`in_own_thread`.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CLONE_FS = 0x00000200
CLONE_NEWNET = 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE, MS_RELATIME = 1 << 12, 1 << 14, 1 << 18, 1 << 21
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

# The numbers are those of every architecture for calls newer than Linux 5.1 (asm-generic/unistd.h).
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_IDMAP = 0x1, 0x100000

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, call: str, subject: object) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", str(subject))
    return result


def mount(source: str, target: str | Path, kind: str, flags: int = 0, options: str = "") -> None:
    """Mount, see mount(2)."""
    arguments = (source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _checked(_libc.mount(*arguments), "mount", target)


def umount(target: str | Path, flags: int = 0) -> None:
    """Unmount, see umount2(2); never follows a symlink in the last place."""
    _checked(_libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW), "umount2", target)


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces, see unshare(2)."""
    _checked(_libc.unshare(flags), "unshare", hex(flags))


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread into a namespace, see setns(2)."""
    _checked(_libc.setns(descriptor, kind), "setns", descriptor)


def idmapped_bind(source: Path, target: Path, userns: int) -> None:
    """Bind `source` read-only at `target` with owners mapped through a user namespace, see mount_setattr(2)."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    tree = _checked(_libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags), "open_tree", source)
    try:
        wanted = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP | _MOUNT_ATTR_RDONLY, 0, 0, userns)
        result = _libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, wanted, ctypes.c_size_t(len(wanted)))
        _checked(result, "mount_setattr", source)
        arguments = (tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        _checked(_libc.syscall(_MOVE_MOUNT, *arguments), "move_mount", target)
    finally:
        os.close(tree)


def in_own_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread made for it, so that namespaces it joins end with it; its exception is raised here."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=body, name="namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def in_netns(path: Path, work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own in the network namespace held at `path`; its children are there too."""

    def joined() -> T:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(descriptor, CLONE_NEWNET)
        finally:
            os.close(descriptor)
        return work()

    return in_own_thread(joined)


def in_directory(path: Path, work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own whose working directory is `path`; no other thread's changes."""

    def moved() -> T:
        unshare(CLONE_FS)
        os.chdir(path)
        return work()

    return in_own_thread(moved)
