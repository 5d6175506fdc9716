"""The fault tests share the end-to-end tests' fixtures."""

from tests.e2e.conftest import fresh, running, templates

__all__ = ["fresh", "running", "templates"]
