"""What lies in the spool and in the harvest, and what is to be done about each. Reads; changes nothing.

Called by `recorder.service` once a sweep. Whatever is not a directory with an id for a name (lost+found, our own
`.done-*`) is nobody's capture and is left alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from bus.errors import SpoolError
from bus.process import Mark
from bus.spool import MAGIC, Entry, load

_ID = re.compile(r"[0-9a-f]{24}")
_FORMING_S = 60.0  # a relay writes session.json right after it made the directory


class State(Enum):
    """What a directory is."""

    FORMING = auto()  # too young to say
    LIVE = auto()  # storage knows it as it is
    NEWS = auto()  # live, and storage does not know, or not its container
    ENDED = auto()  # whole
    TORN = auto()  # its relay died before it could end it
    HARVESTED = auto()  # a destroyed container's, whole
    ABANDONED = auto()  # its relay died before there was a session
    DAMAGED = auto()
    UNREADABLE = auto()  # the operating system refused


COMPLETE = frozenset({State.ENDED, State.TORN, State.HARVESTED})


@dataclass(frozen=True)
class Seen:
    """A live session as it was told to storage."""

    relay: Mark
    changed_ns: int


@dataclass(frozen=True)
class Found:
    """A directory and its state; `seen` and `entry` with NEWS, `problem` where there is one."""

    path: Path
    state: State
    seen: Seen | None = None
    entry: Entry | None = None
    problem: str = ""


def survey(spool: Path, harvest: Path, told: Mapping[str, Seen]) -> list[Found]:
    """Look at every directory, oldest session first, then containers."""
    sessions = [_look(path, told.get(path.name)) for path in _directories(spool)]
    containers = (_look_at_harvest(path) for path in _directories(harvest))
    return sessions + [found for found in containers if found.state is not State.FORMING]


def _directories(root: Path) -> Iterator[Path]:
    """Give the directories that are named by an id, in order of time."""
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if _ID.fullmatch(path.name) and path.is_dir():
            yield path


def _look(path: Path, seen: Seen | None) -> Found:
    try:
        return _session(path, seen)
    except SpoolError as error:
        return Found(path, State.DAMAGED, problem=str(error))
    except FileNotFoundError:
        return Found(path, State.FORMING)  # it vanished as we looked
    except OSError as error:
        return Found(path, State.UNREADABLE, problem=f"{error.filename}: {error.strerror}")


def _session(path: Path, seen: Seen | None) -> Found:
    """Classify a session's directory; the order of the questions matters, as its relay may answer them meanwhile."""
    ending = path / "end.json"
    if ending.exists():
        return Found(path, State.ENDED)
    changed_ns = path.stat().st_mtime_ns
    if seen and seen.changed_ns == changed_ns and seen.relay.alive:
        return Found(path, State.LIVE)
    entry = load(path)
    if entry is None:
        return _unopened(path)
    relay = entry.opening.relay
    if relay.alive and not entry.ending:
        return Found(path, State.NEWS, Seen(relay, changed_ns), entry)
    return Found(path, State.ENDED if ending.exists() else State.TORN)  # it may have ended just before it died


def _unopened(path: Path) -> Found:
    """Classify a directory without a session.json."""
    if time.time() - path.stat().st_mtime < _FORMING_S:
        return Found(path, State.FORMING)
    stream = path / "stream"
    if stream.exists() and stream.stat().st_size > len(MAGIC):
        return Found(path, State.DAMAGED, problem=f"{path} has a stream but no session.json")
    return Found(path, State.ABANDONED)


def _look_at_harvest(path: Path) -> Found:
    """A container's directory counts once containerd has written its record, which it does last."""
    try:
        return Found(path, State.HARVESTED if (path / "container.json").exists() else State.FORMING)
    except OSError as error:
        return Found(path, State.UNREADABLE, problem=f"{error.filename}: {error.strerror}")
