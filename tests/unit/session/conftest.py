"""Fixtures: a zygote with relays, with and without an attach door."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.session.field import Field, battlefield


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Field]:
    """Give relays whose attach door is away."""
    with battlefield(tmp_path) as made:
        yield made


@pytest.fixture
def ready(bare: Field) -> Field:
    """Give relays with an attach door."""
    bare.open_door()
    return bare


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Field]:
    """Give one relay, never more, with an attach door."""
    with battlefield(tmp_path, spare=1, total=1) as made:
        made.open_door()
        yield made
