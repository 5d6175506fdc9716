"""The last events, as JSON lines in RUN/controller: what `honeypot events` shows of the time before it was asked.

Owned by the controller (`service.py` writes); the command line reads. Lost with the run directory, on purpose: events
are a doorbell, the records are in storage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bus.events import Received

_SIZE_MAX = 1 << 20


def line(received: Received) -> dict[str, Any]:
    """Write an event with its envelope as JSON types."""
    envelope = received.envelope.model_dump(mode="json")
    return {**envelope, "event": received.event.name, "data": received.event.model_dump(mode="json", by_alias=True)}


class Journal:
    """Appends events; at 1 MiB the file becomes the older one, and the older one goes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "events.jsonl"
        self._file = self._path.open("a", buffering=1)

    def note(self, received: Received) -> None:
        """Append one."""
        self._file.write(json.dumps(line(received)) + "\n")
        if self._file.tell() > _SIZE_MAX:
            self.close()
            self._path.rename(_older(self._path))
            self._file = self._path.open("a", buffering=1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(directory: Path) -> Iterator[dict[str, Any]]:
    """Give what is there, oldest first."""
    path = directory / "events.jsonl"
    for each in (_older(path), path):
        if each.is_file():
            yield from (json.loads(text) for text in each.read_text().splitlines() if text.endswith("}"))


def _older(path: Path) -> Path:
    return path.with_suffix(".older.jsonl")
