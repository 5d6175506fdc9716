"""Gives every container 65536 host user ids of its own. Called by `container.py` and `tree.py`.

A claim is a symlink CONTAINERS/.ranges/BASE -> container id: made by the kernel in one step, so neither
threads nor crashes can give one range twice.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from containerd.errors import ContainerError

SIZE = 65536
_FIRST, _LAST = 0x1000, 0x6FFF  # in units of SIZE: far from what distributions give to people and services
_TRIES = 1000


def claim(containers: Path, container: str) -> int:
    """Take a range nobody has; give its first id."""
    folder = containers / ".ranges"
    folder.mkdir(mode=0o700, exist_ok=True)
    for _ in range(_TRIES):
        base = random.randint(_FIRST, _LAST) * SIZE  # noqa: S311 - not a secret; spreads instances over one host
        try:
            (folder / f"{base:08x}").symlink_to(container)
        except FileExistsError:
            continue
        return base
    raise ContainerError("no user id range is free")


def release(containers: Path, container: str) -> None:
    """Give back whatever a container claimed."""
    for link, owner in claims(containers):
        if owner == container:
            link.unlink(missing_ok=True)


def claims(containers: Path) -> Iterator[tuple[Path, str]]:
    """Give every claim and whose it is; one that is given back meanwhile is passed over."""
    for link in (containers / ".ranges").glob("*"):
        with suppress(FileNotFoundError):
            yield link, str(link.readlink())


@contextmanager
def user_namespace(base: int) -> Iterator[int]:
    """Give a descriptor of a user namespace that maps the range; it lives only to be handed to mount_setattr.

    A helper process makes it, since a process with threads can't enter one; its echo says that it is there.
    """
    with subprocess.Popen(
        ["/usr/bin/unshare", "--user", "/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as holder:
        if holder.stdin is None or holder.stdout is None:
            raise AssertionError("pipes were asked for")
        holder.stdin.write(b"\n")
        if holder.stdout.read(1) != b"\n":
            raise ContainerError("a user namespace can't be made")
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{kind}").write_text(f"0 {base} {SIZE}\n")
        descriptor = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        holder.stdin.close()
        try:
            yield descriptor
        finally:
            os.close(descriptor)
