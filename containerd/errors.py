"""What can go wrong with templates and containers, as a tree with stable codes.

    HoneypotError
    ├── RecipeError         recipe           a recipe is wrong; the message names the key
    ├── TemplateError       template         a template is missing or can't be built
    └── ContainerError      container        a container could not be made, reached or ended
        ├── CommandFailed   command          a program that was run said no; the message has its last line
        ├── GuardMissing    guard            a guard is not in place, so the container is refused; names the guard
        ├── NotReady        not_ready        the container's services did not answer in time, or it ended first
        ├── Unreachable     unreachable      a socket into the container can't be had
        └── StillAlive      still_alive      a process of the container would not die

Owned here, raised by the modules of this package, caught by `service.py` and the entry points. Imports only the root.
"""

from __future__ import annotations

from bus.errors import HoneypotError


class RecipeError(HoneypotError):
    """A recipe can't be used; the message names the key and what would be right."""

    code = "recipe"


class TemplateError(HoneypotError):
    """A template is missing, broken or can't be built."""

    code = "template"


class ContainerError(HoneypotError):
    """A container could not be made, reached or ended."""

    code = "container"


class CommandFailed(ContainerError):
    """A program that was run ended with a failure."""

    code = "command"


class GuardMissing(ContainerError):
    """A guard is not in place; `guard` is its name."""

    code = "guard"

    def __init__(self, guard: str, found: str) -> None:
        super().__init__(f"guard {guard} is not in place: {found}")
        self.guard = guard


class NotReady(ContainerError):
    """The container's services did not answer in time, or it ended first."""

    code = "not_ready"


class Unreachable(ContainerError):
    """A socket into the container can't be had."""

    code = "unreachable"


class StillAlive(ContainerError):
    """A process of the container would not die."""

    code = "still_alive"
