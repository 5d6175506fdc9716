"""Turns pydantic's complaint about a configuration into one line: the key, what is wrong, what is allowed or nearest.

Pure; called by `config.py`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bus.settings import Config

# What counts most comes first: a misspelt key also makes the right one missing.
_URGENCY = {"extra_forbidden": 0, "too_short": 3, "missing": 2}
_ALLOWED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "ip_v4_address": "an IPv4 or IPv6 address",
    "ip_v6_address": "an IPv4 or IPv6 address",
    "ip_v4_network": "a network such as 192.168.0.0/16 or fd00::/8",
    "ip_v6_network": "a network such as 192.168.0.0/16 or fd00::/8",
    "model_type": "a table",
    "path_type": "a path",
    "string_pattern_mismatch": "lower-case letters, digits and hyphens",
    "string_type": "text",
    "too_short": "at least one value",
    "tuple_type": "a list ([[service]] begins each service)",
}
_BOUND = re.compile(r"Input should be (.*)")
_SHOWN_LENGTH = 60


def explain(error: ValidationError, data: Any, below: tuple[str, ...] = ()) -> str:
    """Give the line for the most telling complaint; `below` is where in the file the validated part stands."""
    complaints = error.errors(include_url=False, include_context=True)
    worst = min(complaints, key=lambda complaint: _URGENCY.get(complaint["type"], 1))
    alike = [other for other in complaints if _path(other) == _path(worst) and other["input"] == worst["input"]]
    path = (*below, *_path(worst))
    return f"{_name(path, data)}: {_say(worst, path, alike)}"


def _say(complaint: ErrorDetails, path: Sequence[str | int], alike: Sequence[ErrorDetails]) -> str:
    kind = complaint["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return complaint["msg"].removeprefix("Value error, ")
    allowed = " or ".join(dict.fromkeys(_allowed(other) for other in alike))
    return f"{_shown(complaint['input'])} is not allowed; allowed: {allowed}{_nearest_literal(complaint)}"


def _unknown_key(path: Sequence[str | int]) -> str:
    *place, key = path
    known = keys_at(place)
    nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
    return f'unknown key; the nearest is "{nearest[0]}"' if nearest else f"unknown key; there are: {', '.join(known)}"


def keys_at(place: Sequence[str | int]) -> list[str]:
    """List the keys a configuration may have at a place such as ("service", 0, "pool")."""
    model: type[BaseModel] = Config
    for part in place:
        if isinstance(part, str):
            field = next((f for name, f in model.model_fields.items() if part in (f.alias, name)), None)
            inner = _models(field.annotation) if field else []
            if not inner:
                return []
            model = inner[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _path(complaint: ErrorDetails) -> tuple[str | int, ...]:
    """Cut what pydantic appends for the branches of a union; list indices stay."""
    path: list[str | int] = []
    for part in complaint["loc"]:
        if isinstance(part, str) and ("[" in part or "(" in part):
            break
        path.append(part)
    return tuple(path)


def _name(path: Sequence[str | int], data: Any) -> str:
    """Write a place as a person knows it: services by name, other lists by position."""
    if len(path) > 1 and path[0] == "service" and isinstance(path[1], int):
        rest = _dotted(path[2:])
        name = _service_name(data, path[1])
        head = f'service "{name}"' if name else f"service[{path[1] + 1}]"
        return f"{head}: {rest}" if rest else head
    return _dotted(path)


def _dotted(path: Sequence[str | int]) -> str:
    return "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _service_name(data: Any, index: int) -> str | None:
    try:
        name = data["service"][index]["name"]
    except (KeyError, IndexError, TypeError):
        return None
    return name if isinstance(name, str) else None


def _allowed(complaint: ErrorDetails) -> str:
    kind = complaint["type"]
    if kind in _ALLOWED:
        return _ALLOWED[kind]
    if kind == "literal_error":
        return str(complaint["ctx"]["expected"])
    bound = _BOUND.match(complaint["msg"])
    return bound[1] if bound else complaint["msg"]


def _nearest_literal(complaint: ErrorDetails) -> str:
    if complaint["type"] != "literal_error":
        return ""
    choices = re.findall(r"'([^']*)'", str(complaint["ctx"]["expected"]))
    nearest = difflib.get_close_matches(str(complaint["input"]), choices, n=1)
    return f"; the nearest is '{nearest[0]}'" if nearest and len(choices) > 1 else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."
