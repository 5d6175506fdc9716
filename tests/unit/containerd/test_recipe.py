"""Recipes: what is accepted, and the one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from containerd.errors import RecipeError
from containerd.recipe import SHIPPED, Recipe, digest, find_recipe, load_recipe, recipe_names

_GOOD = '[[answers]]\nport = 22\n[[users]]\nname = "root"\npassword = "x"\n'


def _recipe(place: Path, text: str, name: str = "mine") -> Path:
    folder = place / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(text)
    return folder


@pytest.mark.parametrize("name", ["ssh-template", "http-template"])
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    assert recipe.name == name
    assert recipe.answers


def test_defaults_suit_debian(tmp_path: Path) -> None:
    recipe = load_recipe(_recipe(tmp_path, _GOOD))
    assert (recipe.name, recipe.suite, recipe.init) == ("mine", "bookworm", ("/sbin/init",))
    assert recipe.environ["TERM"] == "linux"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pakages = []\n" + _GOOD, "unknown key pakages (did you mean 'packages'?)"),
        (_GOOD + 'passwort = "x"\n', "unknown key users.0.passwort (did you mean 'password'?)"),
        ('[[answers]]\nprot = "tcp"\nport = 1\n', "unknown key answers.0.prot (did you mean 'port'?)"),
        ("[[answers]]\nport = 70000\n", "answers.0.port"),
        ('hostname = "a b"\n' + _GOOD, "hostname"),
        ('packages = ["x; rm -rf /"]\n' + _GOOD, "packages.0"),
        ('[[users]]\nname = "root"\npassword = "a\\nb:c"\n[[answers]]\nport = 1\n', "users.0.password"),
        ("", "answers"),
        ("answers = [", "recipe.toml"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(_recipe(tmp_path, text))
    assert says in str(error.value)
    assert "\n" not in str(error.value) or "recipe.toml" in says


def test_an_unknown_recipe_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'ssh-template'"):
        find_recipe("ssh-templat", tmp_path)


def test_ones_own_recipe_comes_before_a_shipped_one(tmp_path: Path) -> None:
    own = _recipe(tmp_path, _GOOD, "ssh-template")
    assert find_recipe("ssh-template", tmp_path) == own
    assert find_recipe("http-template", tmp_path) == SHIPPED / "http-template"
    assert recipe_names(tmp_path) == ["http-template", "ssh-template"]


def test_the_digest_sees_every_change(tmp_path: Path) -> None:
    folder = _recipe(tmp_path, _GOOD)
    digests = {digest(folder)}
    (folder / "files").mkdir()
    (folder / "files/motd").write_text("hello")
    digests.add(digest(folder))
    (folder / "files/motd").chmod(0o600)
    digests.add(digest(folder))
    (folder / "files/motd").unlink()
    (folder / "files/motd").symlink_to("/etc/issue")
    digests.add(digest(folder))
    assert len(digests) == 4


@pytest.mark.parametrize(("asked", "given"), [(22, 22), (2222, 22), (80, 80), (443, 22)])
def test_a_service_reaches_its_own_port_or_the_first(asked: int, given: int) -> None:
    recipe = Recipe.model_validate({"name": "x", "answers": [{"port": 22}, {"port": 80}]})
    assert recipe.container_port(asked) == given
