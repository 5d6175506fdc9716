"""A spec that needs no template on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.model import now
from containerd.recipe import Recipe
from containerd.spec import Roots, Spec
from containerd.templates import Template, TemplateRecord


@pytest.fixture
def template(tmp_path: Path) -> Template:
    recipe = Recipe.model_validate({"name": "small", "answers": [{"port": 22}], "environ": {"A": "b c"}})
    record = TemplateRecord(
        name="small", image="0" * 64, built_at=now(), packages_sha256="", recipe_sha256="", recipe=recipe
    )
    (tmp_path / "small/root").mkdir(parents=True)
    return Template(record=record, root=tmp_path / "small/root")


@pytest.fixture
def spec(template: Template, tmp_path: Path) -> Spec:
    (tmp_path / "containers").mkdir()
    roots = Roots(containers=tmp_path / "containers", cache=tmp_path / "cache", instance="unit")
    return Spec(id="c1", template=template, roots=roots)
