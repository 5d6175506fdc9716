"""Errors as answers: RFC 9457 problem documents for the API, a plain page for people. Never a traceback."""

from __future__ import annotations

import logging
from http import HTTPStatus

from flask import Flask, Response, json, render_template, request
from werkzeug.exceptions import HTTPException

from bus.errors import BusError, PeerDown, PeerNonsense, PeerSlow, Refused, SpoolError
from webui.backend import ManagerAway

log = logging.getLogger(__name__)
_REFUSALS = {"not_found": HTTPStatus.NOT_FOUND, "bad_request": HTTPStatus.BAD_REQUEST}


def away(manager: str, error: BusError) -> BusError:
    """Put the manager's name on an error that says it gave no usable answer; leave its own refusals as they are."""
    if isinstance(error, PeerDown | PeerSlow | PeerNonsense) or getattr(error, "code", "") not in _REFUSALS:
        return ManagerAway(manager, str(error))
    return error


def problem(status: int, detail: str, code: str = "") -> Response:
    """Answer with a problem: a document under /api/, else a page."""
    title = HTTPStatus(status).phrase
    if request.path.startswith("/api/"):
        document = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        if code:
            document["code"] = code
        return Response(json.dumps(document), status, content_type="application/problem+json")
    return Response(render_template("problem.html", title=title, status=status, detail=detail), status)


def register(app: Flask) -> None:
    """Give every error an answer."""

    @app.errorhandler(HTTPException)
    def _http(error: HTTPException) -> Response:
        answer = problem(error.code or 500, error.description or error.name)
        allow = getattr(error, "valid_methods", None)
        if allow:
            answer.headers["Allow"] = ", ".join(sorted(allow))
        return answer

    @app.errorhandler(Refused)
    def _refused(error: Refused) -> Response:
        return problem(_REFUSALS.get(error.code, HTTPStatus.SERVICE_UNAVAILABLE), str(error), error.code)

    @app.errorhandler(ManagerAway)
    def _away(error: ManagerAway) -> Response:
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), error.code)

    @app.errorhandler(SpoolError)
    def _stream(error: SpoolError) -> Response:
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), error.code)

    @app.errorhandler(Exception)
    def _other(error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the web interface failed; its log says why")
