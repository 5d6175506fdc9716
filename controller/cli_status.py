"""`honeypot status`, `reload`, `containers`: the instance as its managers tell it."""

from __future__ import annotations

from pathlib import Path

import click

from bus.catalogue import ContainerStatus, GetStatus, ListContainers, ManagerStatus, Reload
from controller.instance import Trouble, config_option, find, json_option, print_table

_RELOAD_S = 90.0


@click.command()
@config_option
@json_option
def status(file: Path | None, as_json: bool) -> None:
    """Show how every manager is; exit status 1 if one is not healthy."""
    answer = find(file).ask("controller", GetStatus())
    if as_json:
        click.echo(answer.model_dump_json(indent=2))
    else:
        click.echo(f"sensor {answer.sensor}, configuration {answer.configuration}")
        print_table(("MANAGER", "STATE", "PID", "RESTARTS", "DETAIL"), [_manager_row(m) for m in answer.managers])
    if not all(manager.healthy for manager in answer.managers):
        raise SystemExit(1)


def _manager_row(manager: ManagerStatus) -> tuple[object, ...]:
    health = manager.health
    detail = manager.problem if not manager.healthy else health.detail if health else ""
    state = "healthy" if manager.healthy else "not healthy"
    return manager.manager, state, health.pid if health else "-", manager.restarts, detail or ""


@click.command()
@config_option
def reload(file: Path | None) -> None:
    """Apply the changed file: all of it, or nothing if anything in it is wrong."""
    instance = find(file)
    answer = instance.ask("controller", Reload(), _RELOAD_S)
    if answer.problem:
        raise Trouble(answer.problem, "nothing was changed")
    now = instance.ask("controller", GetStatus())
    click.echo(f"configuration {now.configuration} is in force")
    for manager in now.managers:
        if not manager.healthy:
            click.echo(f"{manager.manager} is not healthy; it gets the configuration when it comes up")


@click.command()
@config_option
@json_option
def containers(file: Path | None, as_json: bool) -> None:
    """List the containers that exist, and whom they serve."""
    found = find(file).ask("containerd", ListContainers()).containers
    if as_json:
        click.echo("[" + ",\n ".join(container.model_dump_json() for container in found) + "]")
        return
    print_table(
        ("CONTAINER", "TEMPLATE", "STATE", "SOURCE", "SESSIONS", "EXPIRES"), [_container_row(each) for each in found]
    )


def _container_row(status: ContainerStatus) -> tuple[object, ...]:
    expires = "-" if status.expires_in_s is None else f"in {status.expires_in_s:.0f} s"
    facts = status.container
    return facts.id, facts.template, status.state, status.source or "-", len(status.sessions), expires
