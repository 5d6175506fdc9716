"""container.json: what is on disk of a container, and all that adoption and clean-up go by. Written in one step.

Called by `container.py`, `guards.py` and `sweep.py`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from bus.model import Frozen, Instant
from containerd.launch import Process
from containerd.spec import Spec

FILE = "container.json"


class Record(Frozen):
    """One container. `ready` is False until every guard was confirmed; before that it is never handed out."""

    spec: Spec
    base: int
    created_at: Instant
    nspawn: Process | None = None
    leader: Process | None = None
    ready: bool = False

    @property
    def is_alive(self) -> bool:
        """Say whether both its processes live."""
        return all(process is not None and process.is_alive for process in (self.nspawn, self.leader))

    def write(self) -> None:
        """Write it to its directory, whole or not at all."""
        draft = self.spec.directory / f".{FILE}"
        draft.write_text(self.model_dump_json())
        draft.replace(self.spec.directory / FILE)


def read_record(directory: Path) -> Record | None:
    """Read a container's record; None when there is none that can be read."""
    try:
        return Record.model_validate_json((directory / FILE).read_bytes())
    except (OSError, ValidationError):
        return None
