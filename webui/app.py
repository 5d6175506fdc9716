"""The Flask application: routes, templates, error answers. `webui.guard` stands before it."""

from __future__ import annotations

from datetime import datetime

from flask import Flask
from jinja2 import StrictUndefined

from bus.model import iso
from webui import api, pages, problems
from webui.present import visible
from webui.queries import Queries


def create_app(queries: Queries) -> Flask:
    """Make the application."""
    app = Flask(__name__, static_url_path="/static")
    app.url_map.merge_slashes = False  # nothing is redirected
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.filters |= {"visible": visible, "moment": _moment, "size": _size}
    app.register_blueprint(api.blueprint(queries))
    app.register_blueprint(pages.blueprint(queries))
    problems.register(app)
    return app


def _moment(moment: datetime | None) -> str:
    """Write an instant for people: UTC, to the second."""
    return f"{iso(moment)[:19].replace('T', ' ')}Z" if moment else ""


def _size(size_bytes: float) -> str:
    """Write a size for people."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:  # noqa: PLR2004 - what the units mean
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"
