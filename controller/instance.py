"""What every command of the command line begins with: which instance, where it is, and how a mistake is told.

Called by the `cli*.py` modules. Must never print a traceback's worth: a failure is a `Trouble` of two lines.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from bus.catalogue import Command
from bus.errors import HoneypotError, PeerDown, PeerSlow
from bus.layout import Layout
from bus.model import Frozen
from bus.rpc import call
from controller import config
from controller.probe import nobody_at

R = TypeVar("R", bound=Frozen)
_PLACES = ("config.toml", "/etc/honeypot/config.toml")
_TIMEOUT_S = 10.0


class Trouble(click.ClickException):
    """A failure as a person sees it: what is wrong, and what to do."""

    def __init__(self, what: str, todo: str = "") -> None:
        super().__init__(what)
        self._todo = todo

    def show(self, file: Any = None) -> None:
        """Print one line each to standard error."""
        click.echo("\n".join(filter(None, (self.message, self._todo))), err=True, file=file)


@dataclass(frozen=True)
class Instance:
    """One honeypot: its configuration file and its directories."""

    file: Path
    layout: Layout

    def ask(self, manager: str, command: Command[R], timeout_s: float = _TIMEOUT_S) -> R:
        """Ask a manager; `Trouble` says what is down and how to start it (at once, if the whole instance is down)."""
        path = self.layout.requests(manager)
        if nobody_at(path) and nobody_at(self.layout.supervisor):
            raise self.trouble(manager, PeerDown(f"{manager} is not running"))
        try:
            return asyncio.run(call(self.layout, manager, command, timeout_s))
        except HoneypotError as error:
            raise self.trouble(manager, error) from error

    def trouble(self, manager: str, error: HoneypotError) -> Trouble:
        """Say a manager's failure to a person."""
        if not isinstance(error, PeerDown | PeerSlow):
            return Trouble(str(error))
        if _forbidden(self.layout.requests(manager)):
            return Trouble(f"you may not ask {manager}", "run it as root, or join the group: adduser $USER honeypot")
        if isinstance(error, PeerSlow):
            return Trouble(str(error), f"see its log: {self.layout.log_dir}/{manager}.log")
        if manager != "controller" and self.layout.supervisor.exists():
            return Trouble(f"{manager} is not running", f"see why: {self.layout.log_dir}/{manager}.log")
        return Trouble(f"{manager} is not running", f"start it: honeypot up --config {self.file}")


def _forbidden(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM)
    return not os.access(path, os.W_OK)


def find_file(given: Path | None) -> Path:
    """Give the configuration file: as named, by HONEYPOT_CONFIG, in this directory, or under /etc."""
    named = given or os.environ.get("HONEYPOT_CONFIG")
    candidates = [Path(named)] if named else [Path(place) for place in _PLACES]
    for path in candidates:
        if path.is_file():
            return path.resolve()
    where = " or ".join(str(path) for path in candidates)
    raise Trouble(f"there is no configuration file at {where}", "name one: --config FILE (see config.toml.example)")


def find(given: Path | None) -> Instance:
    """Give the instance of a configuration file, of which only the directories need to be right."""
    file = find_file(given)
    try:
        return Instance(file, Layout.of(config.read_places(file)))
    except HoneypotError as error:
        raise Trouble(str(error), "correct the file; config.toml.example shows every key") from error


def config_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--config FILE`, as the parameter `file`."""
    return click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The instance's file (default: $HONEYPOT_CONFIG, ./config.toml, /etc/honeypot/config.toml).",
    )(function)


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json`, as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows in columns as wide as what is in them."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
