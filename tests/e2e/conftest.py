"""Fixtures of the end-to-end tests: built templates, and one running honeypot that most of them share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.world import TEMPLATES, World, world
from tests.e2e.yard import make_yard

__all__ = ["make_yard"]


@pytest.fixture(scope="session")
def templates() -> None:
    """Build both default templates where they are not built yet."""
    TEMPLATES.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "containerd.build", "ssh-template", "http-template"]
    subprocess.run([*command, "--templates", str(TEMPLATES)], check=True, timeout=600)


@pytest.fixture
def fresh(templates: None) -> Iterator[World]:  # noqa: ARG001 - only its effect is wanted
    """Give a world whose honeypot is not started."""
    with world() as made:
        yield made


@pytest.fixture(scope="module")
def running(templates: None) -> Iterator[World]:  # noqa: ARG001 - only its effect is wanted
    """Give a world with a running honeypot, shared by a module's tests."""
    with world() as made:
        made.up()
        yield made
