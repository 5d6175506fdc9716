"""The `honeypot` command: the group, and how every command ends. Entry point `main`.

Runs other packages' programs as processes, never as imports.
"""

from __future__ import annotations

import sys

import click

from bus.errors import HoneypotError
from controller import cli_bus, cli_config, cli_sessions, cli_status, cli_templates, cli_up
from controller.cli_doctor import doctor
from controller.instance import Trouble


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Run and look at a honeypot of real services in ephemeral containers."""


for command in (
    cli_up.up,
    cli_up.down,
    cli_status.status,
    cli_status.reload,
    doctor,
    cli_config.config,
    cli_templates.template,
    cli_sessions.sessions,
    cli_sessions.session,
    cli_status.containers,
    cli_bus.events,
    cli_bus.bus,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; a mistake ends in its two lines and exit status 1 (2 for a wrong usage)."""
    try:
        cli.main(prog_name="honeypot", standalone_mode=True)
    except HoneypotError as error:
        Trouble(str(error)).show()
        sys.exit(1)


if __name__ == "__main__":
    main()
