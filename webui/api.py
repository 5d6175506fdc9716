"""The REST API under /api/v1: what other programs read. Names are the records' own (`bus.records`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from flask import Blueprint, Response, request
from werkzeug.exceptions import BadRequest

from bus.model import Frozen
from bus.spool import Direction, frames
from webui.present import payloads
from webui.queries import Queries

_CHUNK = 1 << 16


def blueprint(queries: Queries) -> Blueprint:
    """Make the API's routes."""
    api = Blueprint("api", __name__, url_prefix="/api/v1")

    @api.get("/status")
    def status() -> Response:
        return _json(queries.status())

    @api.get("/sessions")
    def sessions() -> Response:
        return _json(queries.sessions(request.args))

    @api.get("/sessions/<session_id>")
    def session(session_id: str) -> Response:
        return _json(queries.session(session_id))

    @api.get("/sessions/<session_id>/stream")
    def stream(session_id: str) -> Response:
        direction = _direction(request.args.get("direction"))
        file, size = queries.stream(queries.session(session_id))
        if direction is None:
            return _download(file, _chunks(file), f"{session_id}.stream", size)
        return _download(file, payloads(frames(file), direction), f"{session_id}.{direction.name.lower()}", None)

    return api


def _json(value: Frozen) -> Response:
    return Response(value.model_dump_json(), content_type="application/json")


def _direction(text: str | None) -> Direction | None:
    if text is None:
        return None
    try:
        return {"in": Direction.IN, "out": Direction.OUT}[text]
    except KeyError:
        raise BadRequest("direction: must be in or out") from None


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _download(file: BinaryIO, body: Iterator[bytes], name: str, size: int | None) -> Response:
    """Answer with bytes as they are read; the file is closed when the answer is over, however it ends."""
    answer = Response(body, content_type="application/octet-stream")
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    if size is not None:
        answer.content_length = size
    answer.call_on_close(file.close)
    return answer
