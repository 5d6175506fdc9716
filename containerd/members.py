"""A container's place in this host's household: whose it is, who is in it, until when; kept on disk beside it.

Owned by `service.py`; `assignment.json` is what a restarted containerd knows a container's owner by.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from bus.model import Frozen
from bus.records import ContainerFacts
from containerd.container import Container
from containerd.errors import ContainerError
from containerd.pool import State

_FILE = "assignment.json"


class Assignment(Frozen):
    """assignment.json: the source address a container was given to, and every session that came to it."""

    source: str
    lifetime_s: float
    sessions: tuple[str, ...] = ()


@dataclass(eq=False)
class Member:
    """A living container. Times are the event loop's."""

    container: Container
    assignment: Assignment | None = None
    live: set[str] = field(default_factory=set)  # sessions
    expires_at: float | None = None
    leaving: asyncio.Task[None] | None = None

    @property
    def facts(self) -> ContainerFacts:
        """What records say of it."""
        template = self.container.spec.template
        return ContainerFacts(id=self.container.id, template=template.name, image=template.record.image)

    @property
    def state(self) -> State:
        """Where in its life it is."""
        if self.leaving:
            return State.LEAVING
        return State.ASSIGNED if self.assignment else State.READY

    def assign(self, source: str, lifetime_s: float) -> None:
        """Give it to a source, for good; `ContainerError` if that can't be written down, as for `enter`."""
        self._write(Assignment(source=source, lifetime_s=lifetime_s))

    def enter(self, session: str, lifetime_s: float) -> None:
        """Note that a session uses it; its lifetime runs from the last one's end, the longest asked for."""
        if self.assignment is None:
            raise RuntimeError("a session entered a container that is nobody's")
        sessions = dict.fromkeys((*self.assignment.sessions, session))
        longest = max(lifetime_s, self.assignment.lifetime_s)
        self._write(Assignment(source=self.assignment.source, lifetime_s=longest, sessions=tuple(sessions)))
        self.live.add(session)
        self.expires_at = None

    def leave(self, session: str, now: float) -> None:
        """Note that a session is over."""
        self.live.discard(session)
        self.touch(now)

    def touch(self, now: float, at_least_s: float = 0.0) -> None:
        """Let the lifetime run from now if nobody is in it."""
        if self.assignment and not self.live:
            self.expires_at = now + max(self.assignment.lifetime_s, at_least_s)

    def _write(self, assignment: Assignment) -> None:
        if assignment != self.assignment:
            temporary = self.container.directory / f".{_FILE}"
            try:
                temporary.write_text(assignment.model_dump_json())
                temporary.rename(self.container.directory / _FILE)
            except OSError as error:
                raise ContainerError(f"whose container it is can't be written down: {error.strerror}") from error
        self.assignment = assignment


def read_assignment(directory: Path) -> Assignment | None:
    """Read whose a container is; None if nobody's."""
    try:
        return Assignment.model_validate_json((directory / _FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
