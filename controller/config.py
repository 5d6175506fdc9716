"""From a TOML file to a checked `Config`, or a `ConfigError` of one line that names the key and the nearest right one.

Called by the controller (start, reload) and the command line. Must never start or change anything.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import bus
from bus.errors import ConfigError
from bus.layout import Layout
from bus.settings import Config, GlobalSettings, Service
from controller.explain import explain

_DIGEST_LENGTH = 12
_SHIPPED_RECIPES = Path(bus.__file__).resolve().parents[1] / "containerd" / "recipes"


def load(file: Path) -> Config:
    """Read a file and check everything, built templates included."""
    config = read(file)
    layout = Layout.of(config.global_)
    _complain(file, template_problems(config, built(layout.templates), recipes(config.global_)))
    return config


def read(file: Path) -> Config:
    """Read a file and check what can be checked without looking at the host."""
    data = _toml(file)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{file}: {explain(error, data)}") from None
    _complain(file, problems(config))
    config = config.model_copy(update={"global_": _absolute(config.global_, file)})
    try:
        Layout.of(config.global_)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    return config


def _absolute(settings: GlobalSettings, file: Path) -> GlobalSettings:
    """Take relative directories from where the file is, whoever reads it from wherever."""
    place = file.absolute().parent
    paths = ("log_dir", "state_dir", "run_dir", "recipe_dir")
    return settings.model_copy(update={name: place / getattr(settings, name) for name in paths})


def read_places(file: Path) -> GlobalSettings:
    """Read only where an instance's directories are, however wrong the rest of the file is (to take it down)."""
    table = _toml(file).get("global", {})
    known = ("state_dir", "run_dir", "log_dir")
    places = {key: table[key] for key in known if key in table} if isinstance(table, dict) else {}
    try:
        return _absolute(GlobalSettings.model_validate(places), file)
    except ValidationError as error:
        raise ConfigError(f"{file}: {explain(error, {'global': table}, ('global',))}") from None


def digest(config: Config) -> str:
    """Name a configuration by what it says: two files that mean the same have the same digest."""
    canonical = json.dumps(config.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:_DIGEST_LENGTH]


def problems(config: Config) -> Iterator[str]:
    """Say what is wrong between the parts of a configuration that are right by themselves."""
    yield from _twice(config.service, "name", lambda service: service.name)
    yield from _twice(config.service, "port", lambda service: f"{service.protocol} port {service.port}")
    for service in config.service:
        if service.port == config.webui.port:
            yield f'service "{service.name}": port: tcp port {service.port} is used by webui.port already'
    first: dict[str, Service] = {}
    for service in config.service:
        other = first.setdefault(service.container_template, service)
        if other.container != service.container:
            yield (
                f'service "{service.name}": container: differs from that of service "{other.name}", and both use '
                f"template {service.container_template}; the containers of one template have one set of limits"
            )


def _twice(services: Iterable[Service], key: str, value: Callable[[Service], str]) -> Iterator[str]:
    first: dict[str, Service] = {}
    for number, service in enumerate(services, 1):
        other = first.setdefault(value(service), service)
        if other is service:
            continue
        if key == "name":
            yield f'service[{number}].name: "{service.name}" is the name of another service already'
        else:
            yield f'service "{service.name}": {key}: {value(service)} is used by service "{other.name}" already'


def template_problems(config: Config, built_ones: Iterable[str], recipe_names: Iterable[str]) -> Iterator[str]:
    """Say which services name a template that is not built, and what would help."""
    known, buildable = list(built_ones), set(recipe_names)
    for service in config.service:
        name = service.container_template
        if name in known:
            continue
        nearest = difflib.get_close_matches(name, [*known, *buildable], n=1, cutoff=0.4)
        if name in buildable:
            hint = f"build it: honeypot template build {name}"
        elif nearest:
            hint = f'the nearest is "{nearest[0]}"'
        else:
            hint = f"there are: {', '.join(sorted({*known, *buildable})) or 'none'}"
        where = f'service "{service.name}": container_template'
        yield f'{where}: "{name}" is not a built template; {hint}'


def built(templates: Path) -> list[str]:
    """List the built templates by name."""
    return sorted(path.parent.name for path in templates.glob("*/template.json") if path.parent.name[0] != ".")


def recipes(settings: GlobalSettings) -> list[str]:
    """List the recipes there are, shipped and a person's own, by name."""
    places = (_SHIPPED_RECIPES, settings.recipe_dir)
    return sorted({path.parent.name for place in places for path in place.glob("*/recipe.toml")})


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: can't be read: {error.strerror}") from None


def _complain(file: Path, found: Iterator[str]) -> None:
    for problem in found:
        raise ConfigError(f"{file}: {problem}")
