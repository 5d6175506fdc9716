"""`honeypot template list|build|check`: runs containerd's own programs as processes; lists what lies on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from bus.errors import ConfigError
from bus.layout import Layout
from bus.settings import Config
from controller.config import built, read, recipes
from controller.instance import Trouble, config_option, find_file, json_option, print_table


@click.group()
def template() -> None:
    """Build and look at the systems that containers are made of."""


def _load(file: Path | None) -> tuple[Config, Layout]:
    try:
        config = read(find_file(file))
    except ConfigError as error:
        raise Trouble(str(error), "correct the file; config.toml.example shows every key") from error
    return config, Layout.of(config.global_)


@template.command("list")
@config_option
@json_option
def list_(file: Path | None, as_json: bool) -> None:
    """List the templates: built ones, and recipes that could be built."""
    config, layout = _load(file)
    rows = [_row(config, layout, name) for name in sorted({*built(layout.templates), *recipes(config.global_)})]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    print_table(
        ("TEMPLATE", "STATE", "BUILT", "IMAGE", "SERVICES"),
        [
            (
                row["template"],
                "built" if row["image"] else "not built",
                (row["built_at"] or "-")[:19],
                (row["image"] or "-")[:12],
                ", ".join(row["services"]) or "-",
            )
            for row in rows
        ],
    )


def _row(config: Config, layout: Layout, name: str) -> dict[str, Any]:
    try:
        record = json.loads((layout.templates / name / "template.json").read_bytes())
    except (OSError, ValueError):
        record = {}
    services = [service.name for service in config.service if service.container_template == name]
    return {
        "template": name,
        "image": record.get("image"),
        "built_at": record.get("built_at"),
        "recipe": name in recipes(config.global_),
        "services": services,
    }


@template.command()
@config_option
@click.argument("names", nargs=-1)
def build(file: Path | None, names: tuple[str, ...]) -> None:
    """Build templates (default: those the configuration uses) unless they are up to date. Needs root."""
    config, layout = _load(file)
    if os.geteuid() != 0:
        raise Trouble("building a template needs root", "run it with sudo")
    wanted = list(names or dict.fromkeys(service.container_template for service in config.service))
    if wanted:
        places = ["--templates", str(layout.templates), "--recipes", str(config.global_.recipe_dir)]
        _run("containerd.build", [*wanted, *places])


@template.command()
@config_option
@click.argument("names", nargs=-1)
def check(file: Path | None, names: tuple[str, ...]) -> None:
    """Try templates (default: those the configuration uses): start a container, confirm every guard. Needs root."""
    config, layout = _load(file)
    wanted = list(names or dict.fromkeys(service.container_template for service in config.service))
    missing = [name for name in wanted if name not in built(layout.templates)]
    unknown = [name for name in missing if name not in recipes(config.global_)]
    if unknown:
        there = ", ".join(recipes(config.global_))
        raise Trouble(f"there is no recipe for {', '.join(unknown)}", f"recipes are: {there}")
    if missing:
        raise Trouble(f"not built: {', '.join(missing)}", f"build them: honeypot template build {' '.join(missing)}")
    if os.geteuid() != 0:
        raise Trouble("starting a container needs root", "run it with sudo")
    places = ["--state", str(layout.state_dir), "--templates", str(layout.templates)]
    for name in wanted:
        _run("containerd.canary", [name, *places])


def _run(program: str, arguments: list[str]) -> None:
    """Run one of containerd's programs; its own lines and progress bar are the output."""
    done = subprocess.run([sys.executable, "-P", "-m", program, *arguments], check=False)
    if done.returncode:
        raise SystemExit(1)
