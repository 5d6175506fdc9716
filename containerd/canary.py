"""Tries a template: `python -m containerd.canary NAME --state DIR --templates DIR`; `honeypot template check` runs it.

Makes one container of the template beside a running instance, in a place of its own, says how long each step took and
which guards hold, and ends it. Nobody is ever let into it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bus.errors import HoneypotError
from bus.model import new_id
from containerd.container import create, destroy, prepare, release
from containerd.ending import sweep
from containerd.guards import GUARDS
from containerd.spec import Roots, Spec
from containerd.templates import find_template


def main(argv: Sequence[str] | None = None) -> int:
    """Try one template; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m containerd.canary", description="Try a template out.")
    parser.add_argument("name")
    parser.add_argument("--state", type=Path, required=True, help="the instance's state_dir")
    parser.add_argument("--templates", type=Path, required=True, help="where built templates are")
    arguments = parser.parse_args(argv)
    state = arguments.state.absolute()
    with tempfile.TemporaryDirectory(prefix="canary-", dir=state) as place:
        roots = Roots(containers=Path(place) / "containers", cache=state / "boot", instance=f"canary-{new_id()[-8:]}")
        try:
            _try(arguments.name, arguments.templates, roots)
        except (HoneypotError, OSError) as error:
            print(f"{arguments.name}: {error}", file=sys.stderr)  # noqa: T201 - an entry point
            return 1
    return 0


def _try(name: str, templates: Path, roots: Roots) -> None:
    """Make a container, which confirms every guard or fails by its name; end it whatever happens."""
    template = find_template(templates, name)
    prepare(roots)
    try:
        made = create(Spec(id=new_id(), template=template, roots=roots))
        print(f"{name}: image {template.record.image[:12]}, built {template.record.built_at:%Y-%m-%d %H:%M} UTC")  # noqa: T201
        print(f"  up in {sum(ms for _, ms in made.steps):.0f} ms:", *(f"{step} {ms:.0f}" for step, ms in made.steps))  # noqa: T201
        answers = ", ".join(f"{answer.protocol} {answer.port}" for answer in template.recipe.answers)
        print(f"  answers on {answers}")  # noqa: T201
        print("  guards in place:", ", ".join(guard for guard, _ in GUARDS))  # noqa: T201
        destroy(made)
        made.close()
    finally:
        sweep(roots, everything=True)
        release(roots)


if __name__ == "__main__":
    raise SystemExit(main())
