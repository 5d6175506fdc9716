"""Writes `config.toml.example` from the settings' models: every key, its default, one sentence.

Run as `python -m controller.example > config.toml.example`; a test compares the two. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bus.settings import GlobalSettings, Service, StorageSettings, WebuiSettings

_SERVICES = (
    Service(name="fake-ssh", port=2222, container_template="ssh-template"),
    Service(name="fake-http", port=8080, container_template="http-template"),
)
_HEAD = """\
# Every setting there is. A line that begins with "#" and a key shows the default; the file may be as short as one
# [[service]]. Check it with `honeypot config check FILE`, apply a change with `honeypot reload`."""


def example() -> str:
    """Give the whole file."""
    first, *others = _SERVICES
    parts = [_HEAD]
    parts.append(_table("global", GlobalSettings(sensor="sensor")))
    parts.append("\n".join(["[[service]]", *_lines(first, shown=True)]))
    parts += ["\n".join(["[[service]]", *_required(other)]) for other in others]
    parts.append(_table("storage", StorageSettings()))
    parts.append(_table("webui", WebuiSettings()))
    return "\n\n".join(parts) + "\n"


def _table(name: str, value: BaseModel) -> str:
    return "\n".join([f"[{name}]", *_lines(value)])


def _lines(value: BaseModel, prefix: str = "", *, shown: bool = False) -> Iterator[str]:
    """Give a line for each key; required ones are set (with `shown`), the rest are commented defaults."""
    for name, field in type(value).model_fields.items():
        current = getattr(value, name)
        if isinstance(current, BaseModel):
            yield f"# {field.description}:"
            yield from _lines(current, f"{prefix}{name}.")
            continue
        mark = "" if shown and field.is_required() else "#"
        yield _line(f"{mark}{prefix}{name} = {_toml(name, field, current)}", field)


def _line(setting: str, field: FieldInfo) -> str:
    return f"{setting}  # {field.description}"


def _required(service: Service) -> Iterator[str]:
    for name, field in Service.model_fields.items():
        if field.is_required():
            yield f"{name} = {_toml(name, field, getattr(service, name))}"


def _toml(name: str, field: FieldInfo, value: Any) -> str:
    """Write a value as TOML; JSON's writing of these few types is TOML's."""
    if value is None:
        return "22" if name.endswith("port") else '""'
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(name, field, item) for item in value)}]"
    if isinstance(value, Path | IPv4Address | IPv6Address | IPv4Network | IPv6Network):
        value = str(value)
    return json.dumps(value)


if __name__ == "__main__":
    print(example(), end="")  # noqa: T201 - it is what this program does
