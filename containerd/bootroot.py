"""The throw-away root that systemd-nspawn is started on, with stage 1 and the filter in it. One for all containers.

Called by `container.py`. Compiles once; the directory's name is the digest of what it was made from, so a
changed source or profile makes another one and nothing is ever changed in place.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from pathlib import Path

from containerd import profile
from containerd.commands import run

_HERE = Path(__file__).parent
_FOLDERS = ("dev", "etc", "mnt", "proc", "run", "sys", "tmp", "usr", "var", "root", "opt")


def boot_root(cache: Path) -> Path:
    """Give the throw-away root, made now if it is not there; `CommandFailed` where there is no compiler."""
    place = cache / f"boot-{_digest()}"
    if place.is_dir():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as aside:
        made = Path(aside) / "root"
        _make(made)
        try:
            made.rename(place)
        except OSError:
            if not place.is_dir():  # else another thread was first
                raise
    return place


def _make(root: Path) -> None:
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True)
    (root / "etc/os-release").write_text("ID=none\n")  # nspawn wants something that looks like a system
    (root / "usr/keep").touch()
    with (root / "filter.bpf").open("wb") as file:
        profile.write_filter(file)
    run(
        ["gcc", "-Wall", "-Werror", "-O2", "-static", "-o", str(root / "stage1"), str(_HERE / "stage1.c")],
        timeout_s=120,
    )
    for path in (root, *root.iterdir()):
        path.chmod(0o755 if path.is_dir() or path.name == "stage1" else 0o644)


@functools.cache
def _digest() -> str:
    sources = [_HERE / "stage1.c", _HERE / "profile.py", _HERE / "bootroot.py", *sorted((_HERE / "profiles").iterdir())]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]
