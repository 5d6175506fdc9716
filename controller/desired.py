"""The configuration in force: where it comes from at start, and how another one takes its place everywhere or nowhere.

Called by `service.py`. A configuration in force is kept in RUN/controller/applied.json, so that a controller that is
restarted goes on with it, whatever has been written into the file since. `honeypot up` removes it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from bus.catalogue import Applied, Apply, Command, Configuration
from bus.errors import ConfigError, HoneypotError, PeerDown, PeerSlow
from bus.layout import MANAGERS, Layout
from bus.settings import Config
from controller.config import digest, load
from controller.probe import nobody_at

log = logging.getLogger(__name__)

FILE_VARIABLE = "HONEYPOT_CONFIG"
FIXED = (
    "global.sensor",
    "global.state_dir",
    "global.run_dir",
    "global.log_dir",
    "storage",
    "webui.address",
    "webui.port",
)
_OTHERS = tuple(name for name in MANAGERS if name not in ("controller", "listener"))
_APPLY_S = 20.0


async def fetch(layout: Layout) -> Configuration:
    """Give the configuration to begin with: the one in force if an earlier life left it, else the file's."""
    try:
        return Configuration.model_validate_json(_applied(layout).read_bytes())
    except (FileNotFoundError, ValidationError):
        configuration = from_file()
        keep(layout, configuration)
        return configuration


def from_file() -> Configuration:
    """Load and check the file that HONEYPOT_CONFIG names."""
    config = load(Path(os.environ[FILE_VARIABLE]))
    return Configuration(config=config, configuration=digest(config))


def keep(layout: Layout, configuration: Configuration) -> None:
    """Write down what is in force, in one step."""
    path = _applied(layout)
    temporary = path.with_suffix(".new")
    temporary.write_text(configuration.model_dump_json(by_alias=True))
    temporary.rename(path)


def forget(layout: Layout) -> None:
    """Have the next controller begin with the file."""
    _applied(layout).unlink(missing_ok=True)


def _applied(layout: Layout) -> Path:
    return layout.run_dir / "controller" / "applied.json"


def changes_refused(old: Config, new: Config) -> str | None:
    """Name the first setting whose change needs a restart, and say so; None if there is none."""
    for key in FIXED:
        before, after = _at(old, key), _at(new, key)
        if before != after:
            return f"{key}: can't change while running ({before} -> {after}); do: honeypot down, then honeypot up"
    return None


def _at(config: Config, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, "global_" if part == "global" else part)
    return value


class Caller(Protocol):
    """What `everywhere` needs of the bus."""

    @property
    def layout(self) -> Layout:
        """Where the others' sockets are."""

    async def call(self, manager: str, command: Command[Applied], timeout_s: float = 5) -> Applied:
        """Ask a manager."""


async def everywhere(bus: Caller, old: Configuration, new: Configuration) -> str | None:
    """Apply to every manager, or to none and say in one line why.

    First all are asked whether they could; then the listener goes first, since its ports can be taken by others. One
    that is down gets the new configuration when it comes up, so it can't object.
    """
    problem = await _first_problem(bus, ("listener", *_OTHERS), _apply(new, dry=True))
    if problem:
        return problem
    problem = await _first_problem(bus, ("listener",), _apply(new))
    problem = problem or await _first_problem(bus, _OTHERS, _apply(new))
    if problem:
        log.error("%s; going back to the configuration before", problem)
        again = await _first_problem(bus, ("listener", *_OTHERS), _apply(old))
        return f"{problem}; and going back failed: {again}" if again else problem
    await _first_problem(bus, ("controller",), _apply(new))
    return None


def _apply(configuration: Configuration, *, dry: bool = False) -> Apply:
    return Apply(config=configuration.config, configuration=configuration.configuration, dry=dry)


async def _first_problem(bus: Caller, managers: Iterable[str], apply: Apply) -> str | None:
    answers = await asyncio.gather(*(_ask(bus, manager, apply) for manager in managers))
    return next(filter(None, answers), None)


async def _ask(bus: Caller, manager: str, apply: Apply) -> str | None:
    if nobody_at(bus.layout.requests(manager)):
        log.warning("%s is not running; it gets the new configuration when it comes up", manager)
        return None
    try:
        applied = await bus.call(manager, apply, timeout_s=_APPLY_S)
    except (PeerDown, PeerSlow) as error:
        log.warning("%s; it gets the new configuration when it comes up", error)
        return None
    except HoneypotError as error:
        return f"{manager}: {error}"
    return f"{manager}: {applied.problem}" if applied.problem else None


async def reload(bus: Caller, old: Configuration) -> Configuration:
    """Read the file again and put it in force; `ConfigError` with one line, and nothing changed."""
    new = await asyncio.to_thread(from_file)
    problem = changes_refused(old.config, new.config) or await everywhere(bus, old, new)
    if problem:
        raise ConfigError(problem)
    keep(bus.layout, new)
    return new
