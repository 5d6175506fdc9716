"""What the API and the pages both ask for, with each manager's failure under that manager's name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import BadRequest, NotFound

from bus.catalogue import Command, FindSessions, GetSession, GetStatus, ListLive, LiveSessions, SessionPage, Status
from bus.errors import BusError
from bus.model import Frozen
from bus.records import SessionRecord
from webui.backend import Backend
from webui.problems import away

R = TypeVar("R", bound=Frozen)
_SESSION_ID = re.compile(r"[0-9a-f]{24}")
_FILTERS = ("service", "source", "since", "cursor")
_VALUE_MAX = 128


class Queries:
    """Asks the managers; raises `ManagerAway`, `Refused` or werkzeug's HTTP errors."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def status(self) -> Status:
        """How is everybody?"""
        return self._ask("controller", GetStatus())

    def live(self) -> LiveSessions:
        """Who is connected?"""
        return self._ask("session", ListLive())

    def sessions(self, arguments: MultiDict[str, str]) -> SessionPage:
        """Find sessions by a query string's values."""
        return self._ask("storage", read_question(arguments))

    def session(self, session: str) -> SessionRecord:
        """One session; 404 for what can't be an id too."""
        if not _SESSION_ID.fullmatch(session):
            raise NotFound("a session's id is 24 hex digits")
        return self._ask("storage", GetSession(session=session))

    def stream(self, record: SessionRecord) -> tuple[BinaryIO, int]:
        """Open a session's stream; the caller closes it."""
        if record.stream is None:
            raise NotFound("this session's stream is not stored yet")
        with _naming("storage"):
            return self._backend.open_blob(record.stream.sha256)

    def _ask(self, manager: str, command: Command[R]) -> R:
        with _naming(manager):
            return self._backend.ask(manager, command)


@contextmanager
def _naming(manager: str) -> Iterator[None]:
    try:
        yield
    except BusError as error:
        raise away(manager, error) from error


def read_question(arguments: MultiDict[str, str]) -> FindSessions:
    """Read a query string; 400 for what it can't mean. Storage judges the values themselves."""
    unknown = sorted(set(arguments) - {*_FILTERS, "limit"})
    if unknown:
        raise BadRequest(f"{unknown[0][:_VALUE_MAX]}: no such filter; there are {', '.join(_FILTERS)} and limit")
    given = {name: arguments[name].strip() for name in arguments}
    for name, value in given.items():
        if len(value) > _VALUE_MAX:
            raise BadRequest(f"{name}: longer than {_VALUE_MAX} characters")
    limit = given.pop("limit", "") or "50"
    if not (limit.isascii() and limit.isdigit()):
        raise BadRequest("limit: must be a whole number")
    values = {name: value for name, value in given.items() if value}
    return FindSessions(limit=int(limit), **values)
