"""The one door to child processes that are waited for. Called by the modules that build and plumb.

Must never start anything that outlives the call: `launch.py` alone does that.
"""

from __future__ import annotations

import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from containerd.errors import CommandFailed

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(argv: Sequence[str], *, given: str = "", env: Mapping[str, str] | None = None, timeout_s: float = 30) -> str:
    """Run a program with `given` as its input and give what it printed; `CommandFailed` carries its last error line.

    The child has a plain environment and, when called in a thread that joined a namespace, that thread's namespaces.
    """
    try:
        done = subprocess.run(
            argv, input=given, capture_output=True, text=True, check=False, timeout=timeout_s,
            env={"PATH": _PATH, "LC_ALL": "C", **(env or {})},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandFailed(f"{argv[0]}: {error}") from error
    if done.returncode != 0:
        raise CommandFailed(f"{argv[0]}: {last_line(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


def last_line(text: str) -> str:
    """Give the last line that says something; what `ip` says of a failed script stands in the line before."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-2:] if lines and lines[-1].startswith("Command failed") else lines[-1:])


def follow(argv: Sequence[str], each_line: Callable[[str], None]) -> None:
    """Run a program, handing on each line it says on either stream; `CommandFailed` carries its last error line."""
    said: deque[str] = deque(maxlen=20)
    try:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env={"PATH": _PATH, "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as error:
        raise CommandFailed(f"{argv[0]}: {error}") from error
    with child:
        try:
            for line in child.stdout or ():
                said.append(line.rstrip())
                each_line(line.rstrip())
        except BaseException:
            child.terminate()
            raise
    if child.returncode != 0:
        complaints = [line for line in said if line.startswith("E:") and "failed" not in line] or list(said)
        raise CommandFailed(f"{argv[0]}: {last_line(chr(10).join(complaints)) or f'exit code {child.returncode}'}")
