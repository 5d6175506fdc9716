"""What has to be there before supervisord starts: the users, and directories with the right owners and modes.

A plan (`directories`) and its execution (`make`), called by `cli_up.py` as root. Idempotent; never takes a mode away
from a directory that a person made: of the three roots, only missing ones are made.
"""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import bus
from bus.errors import ConfigError
from bus.layout import MANAGERS, Layout

HOME = Path(bus.__file__).resolve().parents[1]
DEPLOY = HOME / "deploy"
_OTHERS_MAY_PASS = 0o001


@dataclass(frozen=True)
class Directory:
    """A directory as it should be; a `root` one is left alone where it exists."""

    path: Path
    owner: str
    group: str
    mode: int
    root: bool = False


def user(manager: str) -> str:
    """Give the user a manager runs as."""
    return "root" if manager == "containerd" else f"hp-{manager}"


def directories(layout: Layout) -> Iterator[Directory]:
    """Give every directory of an instance, parents first."""
    yield Directory(layout.run_dir, "root", "root", 0o755, root=True)
    for manager in MANAGERS:
        yield Directory(layout.run_dir / manager, user(manager), "honeypot", 0o2750)
    yield Directory(layout.state_dir, "root", "root", 0o755, root=True)
    yield Directory(layout.spool, "hp-session", "hp-capture", 0o2770)
    yield Directory(layout.harvest, "root", "hp-capture", 0o2770)
    yield Directory(layout.blobs, "hp-storage", "honeypot", 0o700)
    yield Directory(layout.database.parent, "hp-storage", "honeypot", 0o700)
    yield Directory(layout.templates, "root", "root", 0o755)
    yield Directory(layout.containers, "root", "root", 0o700)
    yield Directory(layout.damaged, "hp-recorder", "honeypot", 0o700)
    yield Directory(layout.log_dir, "root", "honeypot", 0o750, root=True)


def make(planned: Iterable[Directory]) -> None:
    """Make what is missing and set owners and modes right."""
    for directory in planned:
        there = directory.path.is_dir()
        if there and directory.root:
            continue
        directory.path.mkdir(parents=True, exist_ok=True)
        os.chown(directory.path, pwd.getpwnam(directory.owner).pw_uid, grp.getgrnam(directory.group).gr_gid)
        directory.path.chmod(directory.mode)


def make_users() -> None:
    """Make the users and groups that are missing; `subprocess.CalledProcessError` says what went wrong."""
    if _users_exist():
        return
    command = ["systemd-sysusers", str(DEPLOY / "sysusers.conf")]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)


def _users_exist() -> bool:
    """Say whether every user is there, and in the group that lets it read captures."""
    try:
        members = set(grp.getgrnam("hp-capture").gr_mem)
        grp.getgrnam("honeypot")
        for manager in MANAGERS:
            pwd.getpwnam(user(manager))
    except KeyError:
        return False
    return {"hp-session", "hp-recorder"} <= members


def barrier(path: Path) -> Path | None:
    """Give the directory on the way to a path that users other than root can't pass; None if they can."""
    for parent in reversed(path.absolute().parents):
        if parent.is_dir() and not parent.stat().st_mode & _OTHERS_MAY_PASS:
            return parent
    return None


def check_reachable(file: Path, layout: Layout) -> None:
    """`ConfigError` if the managers' users could not get at the file, the code or their directories."""
    for what, path in (
        ("global.run_dir", layout.run_dir / "x"),
        ("global.state_dir", layout.state_dir / "x"),
        (str(file), file),
        (str(HOME), HOME / "x"),
    ):
        closed = barrier(path)
        if closed:
            raise ConfigError(f"{what}: users other than root can't enter {closed}")
    if not file.stat().st_mode & 0o004:
        raise ConfigError(f"{file}: the controller's user can't read it (chmod o+r {file})")
