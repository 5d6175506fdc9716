"""Built templates on disk: DIR/NAME/{root,template.json}. Called by `build.py`, `container.py` and `service.py`.

A replaced template stays as DIR/.old-NAME-IMAGE, since containers may still stand on it, until `discard_unused`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from bus.model import Frozen, Instant
from containerd.errors import TemplateError
from containerd.recipe import Recipe

RECORD = "template.json"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class TemplateRecord(Frozen):
    """What template.json says. `image` names this very build: recipe, builder and package versions."""

    name: str
    image: str
    built_at: Instant
    packages_sha256: str
    recipe_sha256: str
    recipe: Recipe


class Template(Frozen):
    """A built template and where its root is."""

    record: TemplateRecord
    root: Path

    @property
    def name(self) -> str:
        """Give its name."""
        return self.record.name

    @property
    def recipe(self) -> Recipe:
        """Give the recipe it was built from."""
        return self.record.recipe


def find_template(directory: Path, name: str) -> Template:
    """Read a built template; `TemplateError` where it is missing or broken."""
    place = directory.absolute() / name
    try:
        record = TemplateRecord.model_validate_json((place / RECORD).read_bytes())
    except FileNotFoundError as error:
        raise TemplateError(f"template {name!r} is not built; run: honeypot template build {name}") from error
    except (OSError, ValidationError) as error:
        raise TemplateError(f"template {name!r} is broken ({_first_line(error)}); build it again") from error
    if not (place / "root" / "etc").is_dir():
        raise TemplateError(f"template {name!r} has no root; build it again")
    return Template(record=record, root=place / "root")


def list_templates(directory: Path) -> list[Template]:
    """List the built templates that can be used."""
    if not directory.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(directory) if not entry.name.startswith("."))
    return [find_template(directory, name) for name in names if (directory / name / RECORD).is_file()]


def install(built: Path, directory: Path, record: TemplateRecord) -> None:
    """Put a finished build in its place in one step; the one it replaces stays aside."""
    place = directory / record.name
    try:
        built.rename(place)
    except OSError:
        aside = directory / f".old-{record.name}-{_image_of(place)}"
        _exchange(built, place)
        shutil.rmtree(aside, ignore_errors=True)
        built.rename(aside)


def discard_unused(directory: Path, images: Collection[str]) -> list[str]:
    """Remove replaced templates that none of `images` (what living containers stand on) is; give their names."""
    old = [path for path in directory.glob(".old-*") if not any(path.name.endswith(image) for image in images)]
    for path in old:
        shutil.rmtree(path)
    return [path.name for path in old]


def _image_of(place: Path) -> str:
    try:
        return TemplateRecord.model_validate_json((place / RECORD).read_bytes()).image
    except (OSError, ValidationError):
        return "unknown"


def _exchange(one: Path, other: Path) -> None:
    """Swap two paths in one step, see renameat2(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
