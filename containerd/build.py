"""Builds templates from recipes: `python -m containerd.build NAME... --templates DIR [--recipes DIR]`.

Owns the order of a build and its progress. Called by a person through the command line. A build happens aside
and takes its place in one step at the end; a failure leaves what was there.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from bus.errors import HoneypotError
from bus.model import now
from containerd.commands import follow, run
from containerd.errors import CommandFailed, TemplateError
from containerd.finish import finish
from containerd.recipe import Recipe, digest, find_recipe, load_recipe
from containerd.templates import RECORD, Template, TemplateRecord, find_template, install

# How the root is made and finished; raise it when that changes, so that older builds are known to be stale.
_BUILDER = 3
# What mmdebstrap says when a step begins, how we name it, and how much of the build is over by then (measured).
_STEPS = (
    ("running apt-get update", "fetching package lists", 0.02),
    ("downloading packages", "downloading packages", 0.15),
    ("extracting archives", "unpacking the base", 0.40),
    ("installing essential", "installing the base", 0.45),
    ("installing remaining", "installing packages", 0.55),
    ("cleaning package lists", "cleaning up", 0.93),
)
Report = Callable[[str, float], None]


def build(name: str, templates: Path, recipes: Path | None, report: Report) -> Template:
    """Build a template unless this very one is there; `RecipeError` or `TemplateError` in one line.

    `report` is called with each step's name and the fraction done so far.
    """
    folder = find_recipe(name, recipes)
    recipe, recipe_sha256 = load_recipe(folder), _stamp(folder)
    if is_fresh(name, templates, recipe_sha256):
        report("already built", 1.0)
        return find_template(templates, name)
    templates.mkdir(parents=True, exist_ok=True)
    with _aside(templates, name) as place:
        root = place / "root"
        try:
            _bootstrap(recipe, root, report)
            report("making it look lived in", 0.95)
            finish(root, recipe, folder)
        except (CommandFailed, OSError) as error:
            raise TemplateError(f"template {name!r} can't be built: {error}") from error
        record = _record(recipe, recipe_sha256, root)
        (place / RECORD).write_text(record.model_dump_json(indent=1))
        install(place, templates, record)
    report("built", 1.0)
    return find_template(templates, name)


def is_fresh(name: str, templates: Path, recipe_sha256: str) -> bool:
    """Say whether the template there was built from this very recipe by this very builder."""
    try:
        return find_template(templates, name).record.recipe_sha256 == recipe_sha256
    except TemplateError:
        return False


def bootstrap_argv(recipe: Recipe, root: Path) -> list[str]:
    """Give the command that makes the bare root. Packages come from where mmdebstrap takes them by default."""
    return [
        "mmdebstrap",
        "--mode=root",
        "--format=directory",
        "--variant=minbase",
        '--aptopt=APT::Sandbox::User "root"',  # the _apt user can't use a /dev/null that some hosts have with mode 755
        "--dpkgopt=force-unsafe-io",
        *([f"--include={','.join(recipe.packages)}"] if recipe.packages else []),
        recipe.suite,
        str(root),
    ]


def _stamp(folder: Path) -> str:
    return hashlib.sha256(f"{_BUILDER} {digest(folder)}".encode()).hexdigest()


def _bootstrap(recipe: Recipe, root: Path, report: Report) -> None:
    def heard(line: str) -> None:
        for begins, step, fraction in _STEPS:
            if line.startswith(f"I: {begins}"):
                report(step, fraction)

    follow(bootstrap_argv(recipe, root), heard)


@contextmanager
def _aside(templates: Path, name: str) -> Iterator[Path]:
    """Make a directory for the build beside the templates; whatever is left of it is removed."""
    with tempfile.TemporaryDirectory(prefix=f".building-{name}-", dir=templates) as place:
        inner = Path(place) / name
        inner.mkdir(mode=0o755)
        yield inner


def _record(recipe: Recipe, recipe_sha256: str, root: Path) -> TemplateRecord:
    listing = run(["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W"])
    packages = hashlib.sha256(listing.encode()).hexdigest()
    image = hashlib.sha256(f"{recipe_sha256} {packages}".encode()).hexdigest()
    return TemplateRecord(
        name=recipe.name, image=image, built_at=now(), packages_sha256=packages,
        recipe_sha256=recipe_sha256, recipe=recipe,
    )  # fmt: skip


@contextmanager
def _shown(name: str) -> Iterator[Report]:
    """Show progress: a bar on a terminal, else a line for each step."""
    if not sys.stdout.isatty():
        yield lambda step, fraction: print(f"{name}: {fraction:4.0%} {step}", flush=True)  # noqa: T201 - an entry point
        return
    columns = TextColumn("{task.fields[name]}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.description}"), console=Console()) as bar:
        task = bar.add_task("starting", total=1.0, name=name)
        yield lambda step, fraction: bar.update(task, description=step, completed=fraction)


def main(argv: Sequence[str] | None = None) -> int:
    """Build the templates named on the command line; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m containerd.build", description="Build container templates.")
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--templates", type=Path, required=True, help="where built templates are kept")
    parser.add_argument("--recipes", type=Path, help="your own recipes, beside the shipped ones")
    arguments = parser.parse_args(argv)
    try:
        for name in arguments.names:
            with _shown(name) as report:
                build(name, arguments.templates, arguments.recipes, report)
    except HoneypotError as error:
        print(re.sub(r"\s+", " ", str(error)), file=sys.stderr)  # noqa: T201 - an entry point
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def missing_tools() -> list[str]:
    """Name the programs a build needs that this host lacks."""
    return [tool for tool in ("mmdebstrap", "chroot", "dpkg-query") if shutil.which(tool) is None]


if __name__ == "__main__":
    raise SystemExit(main())
