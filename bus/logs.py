"""Logging for every manager: one JSON line an entry on standard output, where supervisord keeps and rotates it.

`log.info("text", extra={"session": id, "container": id, "service": name, "source": address})` puts those fields on the
line. `render` turns a line back into text for a person in the foreground.
"""

from __future__ import annotations

import json
import logging
import sys

from bus.model import instant, iso

FIELDS = ("service", "source", "session", "container", "template")
_SHORT_ID = 8


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: at, level, manager, message, the known fields, and a traceback if any."""

    def __init__(self, manager: str) -> None:
        super().__init__()
        self._manager = manager

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        entry = {
            "at": iso(instant(int(record.created * 1e9))),
            "level": record.levelname.lower(),
            "manager": self._manager,
            "message": record.getMessage(),
        }
        entry |= {name: str(record.__dict__[name]) for name in FIELDS if name in record.__dict__}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def start(manager: str, level: str = "info") -> None:
    """Send this process's log to standard output; a reader that went away is no error."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(manager))
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    set_level(level)


def set_level(level: str) -> None:
    """Log this much from now on: debug, info, warning or error."""
    logging.getLogger().setLevel(level.upper())


def render(line: str) -> str:
    """Turn one JSON line into text for a person; what is no such line stays as it is."""
    try:
        entry = json.loads(line)
        ids = " ".join(f"{name}={_short(name, entry[name])}" for name in FIELDS if name in entry)
        text = f"{entry['at'][11:23]} {entry['level']:<7} {entry['manager']:<10} {entry['message']}"
    except (ValueError, KeyError, TypeError):
        return line.rstrip("\n")
    return "\n".join(filter(None, (f"{text}  {ids}".rstrip(), entry.get("traceback"))))


def _short(name: str, value: str) -> str:
    """Cut an id to the part that tells neighbours apart."""
    return value[-_SHORT_ID:] if name in ("session", "container") else value
