"""A yard for tests of containers by themselves: made and ended without a honeypot around them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from containerd import cgroup, container, procfs
from containerd.container import Container
from containerd.ending import sweep
from containerd.network import Endpoint
from containerd.spec import Roots, Spec
from containerd.templates import find_template
from tests.e2e.world import TEMPLATES

ATTACKER = Endpoint("198.51.100.77", 51234)
_OPEN_DOOR = (
    "import socket,sys; from pathlib import Path; from containerd.network import Endpoint, open_socket;"
    "s = open_socket(Path(sys.argv[1]), Endpoint(sys.argv[2], int(sys.argv[3])), Endpoint(sys.argv[4], 22));"
    "socket.send_fds(socket.socket(fileno=1), [b'x'], [s.fileno()])"
)


@dataclass
class Yard:
    """A place for containers of one test, swept at its end."""

    roots: Roots
    made: list[Container] = field(default_factory=list)

    def spec(self, template: str = "ssh-template", **changes: object) -> Spec:
        """Give the spec of one more container."""
        name = f"c{len(self.made)}-{time.monotonic_ns():x}"
        spec = Spec(id=name, template=find_template(TEMPLATES, template), roots=self.roots)
        return spec.model_copy(update=changes)

    def create(self, template: str = "ssh-template", **changes: object) -> Container:
        """Make one more container."""
        made = container.create(self.spec(template, **changes))
        self.made.append(made)
        return made


@pytest.fixture(name="yard")
def make_yard(templates: None, tmp_path: Path) -> Iterator[Yard]:  # noqa: ARG001 - only its effect is wanted
    roots = Roots(containers=tmp_path / "containers", cache=tmp_path / "cache", instance=f"t{time.monotonic_ns():x}")
    container.prepare(roots)
    yard = Yard(roots)
    try:
        yield yard
    finally:
        sweep(roots, everything=True)
        for made in yard.made:
            with contextlib.suppress(OSError):
                made.close()
        container.release(roots)


def ssh(inside: Container, script: str, source: Endpoint = ATTACKER, timeout_s: float = 60) -> str:
    """Log in as root with OpenSSH from an address of the attacker's and give what a script prints there."""
    spec = inside.spec
    password = next(user.password for user in spec.template.recipe.users if user.name == "root")
    door = [str(inside.directory / "netns"), *map(str, source), spec.addresses.facing(source.address)]
    proxy = f'{sys.executable} -P -c "{_OPEN_DOOR}" {" ".join(door)}'
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ProxyUseFdpass=yes"]
    flags = [flag for option in [*options, f"ProxyCommand={proxy}"] for flag in ("-o", option)]
    done = subprocess.run(
        ["sshpass", "-p", str(password), "ssh", "-F", "none", *flags, "root@container", "bash -s 2>&1"],
        input=script, capture_output=True, text=True, timeout=timeout_s, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, errors="replace",
    )  # fmt: skip
    assert done.returncode != 255, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Left:
    """What a container has outside its directory and in it."""

    mounts: list[str]
    groups: list[Path]
    processes: list[int]
    files: list[str]
    ranges: list[str]


def left_of(roots: Roots) -> Left:
    place = str(roots.containers.resolve())
    hierarchies = cgroup.detect()
    parents = [root / f"honeypot-{roots.instance}" for root in (hierarchies.unified, *(p for _, p in hierarchies.v1))]
    return Left(
        mounts=[m.point for m in procfs.mounts() if m.point.startswith(place) and m.point != place],
        groups=[parent for parent in parents if parent.exists()],
        processes=[int(p.name) for p in Path("/proc").glob("[0-9]*") if place in (procfs.read(p / "cmdline") or "")],
        files=[p.name for p in roots.containers.iterdir() if p.name != ".ranges"],
        ranges=[p.name for p in (roots.containers / ".ranges").glob("*")],
    )


NOTHING = Left([], [], [], [], [])
