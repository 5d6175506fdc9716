"""`honeypot config check FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from bus.errors import ConfigError
from controller.config import digest, load
from controller.instance import Trouble, find_file


@click.group()
def config() -> None:
    """Check configuration files."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--config", "named", type=click.Path(path_type=Path, dir_okay=False), help="Another way to name FILE.")
def check(file: Path | None, named: Path | None) -> None:
    """Say whether FILE could be used, and if not, which key is wrong. Changes nothing."""
    path = find_file(file or named)
    try:
        found = load(path)
    except ConfigError as error:
        raise Trouble(str(error), "correct the file; config.toml.example shows every key") from error
    click.echo(f"{path}: good ({len(found.service)} services, configuration {digest(found)})")
