"""What a template is made of: a folder NAME/ with recipe.toml, files/ (laid over the root) and setup.sh (run in it).

Owns the recipe's format and its error lines. Called by `build.py`, and by the controller's checks through
`service.py`. Pure reading: must never change anything.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError

from bus.model import Frozen
from containerd.errors import RecipeError

SHIPPED = Path(__file__).parent / "recipes"
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+:~_-]*$")]
Line = Annotated[str, Field(pattern=r"^[^\n:]*$")]

# What Debian's initramfs leaves in the environment of PID 1.
_ENVIRON = {
    "HOME": "/",
    "init": "/sbin/init",
    "TERM": "linux",
    "BOOT_IMAGE": "/boot/vmlinuz-6.1.0-37-amd64",
    "drop_caps": "",
    "PATH": "/sbin:/usr/sbin:/bin:/usr/bin",
    "PWD": "/",
    "rootmnt": "/root",
}


class User(Frozen):
    """`[[users]]`: one account. `root` is there already; its password and shell may be set."""

    name: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
    password: Line | None = None
    shell: Line = "/bin/bash"
    groups: tuple[Word, ...] = ()
    uid: Annotated[int, Field(ge=0, le=60000)] | None = None


class Answer(Frozen):
    """`[[answers]]`: a port that a service of the template listens on; the container is ready when all do."""

    port: Annotated[int, Field(ge=1, le=65535)]
    protocol: Literal["tcp", "udp"] = "tcp"


class Recipe(Frozen):
    """A whole recipe.toml."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    suite: Word = "bookworm"
    packages: tuple[Word, ...] = ()
    users: tuple[User, ...] = ()
    hostname: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] = "debian"
    init: Annotated[tuple[str, ...], Field(min_length=1)] = ("/sbin/init",)
    answers: Annotated[tuple[Answer, ...], Field(min_length=1)]
    environ: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(
        default_factory=lambda: dict(_ENVIRON)
    )
    uptime_days: Annotated[float, Field(ge=0, le=3650)] = 41.0

    def container_port(self, port: int) -> int:
        """Give the port that answers for a service on `port`: the same one if the template has it, else its first."""
        ports = [answer.port for answer in self.answers]
        return port if port in ports else ports[0]


def find_recipe(name: str, own: Path | None = None) -> Path:
    """Give the folder of a recipe: a person's own first, then a shipped one; `RecipeError` names the nearest."""
    for place in (own, SHIPPED):
        if place is not None and (place / name / "recipe.toml").is_file():
            return place / name
    known = recipe_names(own)
    raise RecipeError(f"no recipe is named {name!r}{_nearest(name, known)}; known: {', '.join(known)}")


def recipe_names(own: Path | None = None) -> list[str]:
    """List the names of every recipe there is."""
    places = [place for place in (own, SHIPPED) if place is not None and place.is_dir()]
    return sorted({file.parent.name for place in places for file in place.glob("*/recipe.toml")})


def load_recipe(folder: Path) -> Recipe:
    """Read and check a recipe; `RecipeError` is one line that names the key."""
    file = folder / "recipe.toml"
    try:
        given = tomllib.loads(file.read_text())
        return Recipe.model_validate({"name": folder.name, **given})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{file}: {error}") from error
    except ValidationError as error:
        raise RecipeError(f"{file}: {_explain(error)}") from error


def digest(folder: Path) -> str:
    """Give the SHA-256 of everything in a recipe's folder: paths, modes, contents."""
    total = hashlib.sha256()
    for path in sorted(_everything(folder)):
        mode = path.lstat().st_mode
        total.update(f"{path.relative_to(folder)}\0{mode:o}\0".encode())
        if stat.S_ISLNK(mode):
            total.update(os.fsencode(path.readlink()))
        elif stat.S_ISREG(mode):
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _everything(folder: Path) -> Iterator[Path]:
    return folder.rglob("*")


def _explain(error: ValidationError) -> str:
    """Turn the first complaint into one line: where, what, and for an unknown key the nearest known one."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg']}"
    return f"unknown key {where}{_nearest(str(first['loc'][-1]), _known_keys(first['loc'][:-1]))}"


def _known_keys(place: Sequence[int | str]) -> list[str]:
    """List the keys of the model at a place such as ("users", 0)."""
    model: type[BaseModel] = Recipe
    for part in place:
        if isinstance(part, str):
            inner = [kind for kind in _models_in(model.model_fields[part].annotation) if kind is not None]
            model = inner[0]
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Find the models named anywhere in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
