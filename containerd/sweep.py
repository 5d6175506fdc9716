"""Last-resort cleaning by hand: `python -m containerd.sweep --state DIR --instance NAME [--all]`.

For when no manager runs. Without --all, living containers are left to be adopted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bus.errors import HoneypotError
from containerd.container import release
from containerd.ending import list_ids, sweep
from containerd.spec import Roots


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep as the command line says; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m containerd.sweep", description="Clear what dead containers left.")
    parser.add_argument("--state", type=Path, required=True, help="the instance's state_dir")
    parser.add_argument("--instance", required=True, help="the instance's short name (of its control groups)")
    parser.add_argument("--all", action="store_true", help="end living containers too")
    arguments = parser.parse_args(argv)
    state = arguments.state.absolute()
    roots = Roots(containers=state / "containers", cache=state / "boot", instance=arguments.instance)
    try:
        for container in sweep(roots, everything=arguments.all):
            print(f"cleared {container}")  # noqa: T201 - an entry point
        if arguments.all and not list_ids(roots):
            release(roots)
    except (HoneypotError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - an entry point
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
