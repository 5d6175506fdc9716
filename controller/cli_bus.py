"""`honeypot events` and `honeypot bus call`: what is said on the bus, as it is."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from bus.catalogue import COMMANDS
from bus.events import subscribe
from bus.layout import MANAGERS, Layout
from controller import journal
from controller.instance import Instance, Trouble, config_option, find, json_option


@click.command()
@config_option
@json_option
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens from now, until Ctrl-C.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=50, show_default=True, help="How many of the last to show."
)
def events(file: Path | None, as_json: bool, follow: bool, limit: int) -> None:
    """Show the last events, oldest first."""
    instance = find(file)
    with suppress(KeyboardInterrupt):
        asyncio.run(_follow(instance.layout, limit, as_json) if follow else _show(instance, limit, as_json))


async def _show(instance: Instance, limit: int, as_json: bool) -> None:
    found = _last(instance.layout, limit)
    if not found and not instance.layout.supervisor.exists():
        raise Trouble("controller is not running", f"start it: honeypot up --config {instance.file}")
    for event in found:
        _print(event, as_json)


async def _follow(layout: Layout, limit: int, as_json: bool) -> None:
    """Subscribe first, then show the past, so that nothing falls between; what is in both is shown once."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: signal.raise_signal(signal.SIGINT))
    stream = subscribe(layout, MANAGERS)
    upcoming = asyncio.ensure_future(anext(stream))
    past = _last(layout, limit)
    for event in past:
        _print(event, as_json)
    shown = {_key(event) for event in past}
    while True:
        event = journal.line(await upcoming)
        upcoming = asyncio.ensure_future(anext(stream))
        if _key(event) not in shown:
            _print(event, as_json)


def _last(layout: Layout, limit: int) -> list[dict[str, Any]]:
    try:
        return list(deque(journal.read(layout.run_dir / "controller"), maxlen=limit))
    except PermissionError:
        raise Trouble("you may not read the events", "run it as root") from None


def _key(event: dict[str, Any]) -> tuple[str, str, int]:
    return event["manager"], event["boot"], event["sequence"]


def _print(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(event))
        return
    click.echo(f"{event['at'][11:23]} {event['manager']:<10} {event['event']:<22} {json.dumps(event['data'])}")


@click.group()
def bus() -> None:
    """Talk to a manager directly."""


@bus.command()
@config_option
@click.argument("manager", type=click.Choice(MANAGERS))
@click.argument("command")
@click.argument("parameters", required=False, default="{}")
@click.option("--timeout", "timeout_s", type=float, default=10.0, show_default=True, help="Seconds to wait.")
def call(file: Path | None, manager: str, command: str, parameters: str, timeout_s: float) -> None:
    """Send COMMAND with PARAMETERS (a JSON object) to MANAGER and print its answer as JSON."""
    if command not in COMMANDS:
        raise Trouble(f"there is no command {command}", f"there are: {', '.join(sorted(COMMANDS))}")
    try:
        request = COMMANDS[command].model_validate_json(parameters)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(COMMANDS[command].model_fields) or "none"
        raise Trouble(f"{command}: {where}: {first['msg']}".replace(": : ", ": "), f"parameters: {known}") from error
    click.echo(find(file).ask(manager, request, timeout_s).model_dump_json(indent=2, by_alias=True))
