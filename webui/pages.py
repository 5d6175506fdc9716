"""The pages for people: server-rendered, no script, nothing from elsewhere. The same facts as the API."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TypeVar

from flask import Blueprint, render_template, request
from werkzeug.datastructures import MultiDict

from bus.errors import Refused, SpoolError
from bus.records import SessionRecord
from bus.spool import frames
from webui.backend import ManagerAway
from webui.present import Row, rows
from webui.queries import Queries

T = TypeVar("T")
_SHOWN_BYTES = 64 << 10
_SHOWN_FRAMES = 2000
_LATEST = MultiDict([("limit", "10")])


def blueprint(queries: Queries) -> Blueprint:
    """Make the pages' routes."""
    pages = Blueprint("pages", __name__)

    @pages.get("/")
    def overview() -> str:
        status, status_problem = _try(queries.status)
        live, live_problem = _try(queries.live)
        latest, latest_problem = _try(lambda: queries.sessions(_LATEST))
        return render_template(
            "overview.html",
            status=status,
            live=live.sessions if live else (),
            latest=latest.sessions if latest else (),
            problems=[each for each in (status_problem, live_problem, latest_problem) if each],
        )

    @pages.get("/sessions")
    def sessions() -> str:
        page = queries.sessions(request.args)
        filters = {name: value for name, value in request.args.items() if value and name != "cursor"}
        return render_template("sessions.html", page=page, filters=filters)

    @pages.get("/sessions/<session_id>")
    def session(session_id: str) -> str:
        record = queries.session(session_id)
        as_hex = request.args.get("view") == "hex"
        shown, problem = _try(lambda: _stream_rows(queries, record, as_hex=as_hex)) if record.stream else ([], "")
        return render_template(
            "session.html", record=record, rows=shown, problem=problem, as_hex=as_hex, limit_kib=_SHOWN_BYTES >> 10
        )

    return pages


def _try(question: Callable[[], T]) -> tuple[T | None, str]:
    """Give an answer, or why there is none: one manager's absence must not hide the others."""
    try:
        return question(), ""
    except (ManagerAway, Refused, SpoolError) as error:
        return None, str(error)


def _stream_rows(queries: Queries, record: SessionRecord, *, as_hex: bool) -> list[Row]:
    file, _ = queries.stream(record)
    started_ns = int(record.started_at.timestamp() * 1e9)
    with file:
        return list(rows(islice(frames(file), _SHOWN_FRAMES), started_ns, _SHOWN_BYTES, as_hex=as_hex))
