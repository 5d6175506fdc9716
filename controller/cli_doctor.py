"""`honeypot doctor`: the checks as a table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from bus.errors import ConfigError
from bus.settings import Config
from controller.config import read
from controller.doctor import Check, checks
from controller.instance import Trouble, config_option, find_file, json_option, print_table


@click.command()
@config_option
@json_option
def doctor(file: Path | None, as_json: bool) -> None:
    """Show what this host lacks and how to get it; exit status 1 if nothing runs without it."""
    found = list(checks(_config(file)))
    if as_json:
        click.echo(json.dumps([asdict(check) for check in found], indent=2))
    else:
        print_table(("CHECK", "", "FOUND", "HOW"), [_row(check) for check in found])
    if any(check.hard and not check.ok for check in found):
        raise SystemExit(1)


def _row(check: Check) -> tuple[str, ...]:
    state = "ok" if check.ok else "missing" if check.hard else "better"
    return check.name, state, check.detail, "" if check.ok else check.how


def _config(file: Path | None) -> Config:
    """Read the configuration; the defaults do where there is none yet."""
    try:
        return read(find_file(file))
    except Trouble:
        if file:
            raise
        return Config()
    except ConfigError as error:
        raise Trouble(str(error), "correct the file; config.toml.example shows every key") from error
