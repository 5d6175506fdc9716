"""What a host needs to run a honeypot, and how to get what it lacks. Only looks; called by `cli_doctor.py` and `up`.

Each check is a function that gives `Check`s; nothing here is changed or started.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bus.errors import HoneypotError
from bus.layout import Layout
from bus.settings import Config
from controller.config import built
from controller.prepare import DEPLOY, HOME, barrier
from controller.supervisor import Supervisor

_KERNEL_NEEDED = (5, 19)  # overlayfs over an idmapped lower layer
_DISK_MIB = 2048
_MEMORY_MIB = 1024
_FILES = 4096
_FOR_ALL = 0o666
_CONTROLLERS = ("memory", "pids", "cpu")
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_IP_TRANSPARENT = 19  # linux/in.h


@dataclass(frozen=True)
class Check:
    """One thing looked at: `hard` if nothing runs without it; `how` to get it where it is not `ok`."""

    name: str
    ok: bool
    detail: str
    how: str = ""
    hard: bool = True


def checks(config: Config) -> Iterator[Check]:
    """Make every check."""
    root = Check("root", os.geteuid() == 0, f"user id {os.geteuid()}", "run it with sudo")
    yield root
    yield from _programs()
    yield from _kernel()
    yield from _cgroups()
    if root.ok:
        yield _transparent()
    yield from _devices()
    yield from _room(config)
    yield _code()
    yield from _templates(config)
    yield from _ports(config)


def _programs() -> Iterator[Check]:
    """Look for the programs by what package brings them; one check names all that are missing."""
    wanted = {
        "systemd-nspawn": "systemd-container",
        "systemd-sysusers": "systemd",
        "mmdebstrap": "mmdebstrap",
        "nft": "nftables",
        "ip": "iproute2",
        "setpriv": "util-linux",
        "nsenter": "util-linux",
        "gcc": "gcc",
    }
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
    missing = [program for program in wanted if not shutil.which(program, path=path)]
    packages = " ".join(sorted({wanted[program] for program in missing}))
    detail = f"missing: {', '.join(missing)}" if missing else ", ".join(wanted)
    yield Check("programs", not missing, detail, f"apt-get install {packages}")
    headers = Path("/usr/include/stdio.h").exists()
    yield Check("C headers", headers, "/usr/include/stdio.h", "apt-get install libc6-dev")
    listed = [line.split()[0] for line in (DEPLOY / "packages.txt").read_text().splitlines() if line[:1] != "#"]
    lacking = _not_installed(listed)
    detail = f"not installed: {', '.join(lacking)}" if lacking else "all installed"
    yield Check("Debian packages", not lacking, detail, f"apt-get install {' '.join(lacking)}", hard=False)


def _not_installed(packages: list[str]) -> list[str]:
    if not shutil.which("dpkg-query"):
        return []
    command = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    there = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in there]


def _kernel() -> Iterator[Check]:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    newer = "a newer kernel: apt-get install linux-image-amd64, then reboot"
    yield Check("kernel", numbers >= _KERNEL_NEEDED, f"{release} (5.19 or newer: idmapped overlay)", newer)
    known = Path("/proc/filesystems").read_text().split()
    yield Check("overlay filesystem", "overlay" in known or _module("overlay"), "overlay", "modprobe overlay")
    missing = [kind for kind in ("user", "net", "time", "cgroup") if not Path(f"/proc/self/ns/{kind}").exists()]
    yield Check("namespaces", not missing, f"missing: {missing}" if missing else "user, net, time, cgroup", newer)
    limit = _number(Path("/proc/sys/user/max_user_namespaces"))
    yield Check("user namespaces", limit > 0, f"at most {limit}", "sysctl user.max_user_namespaces=65536")
    yield Check("seccomp filters", _seccomp(), "CONFIG_SECCOMP_FILTER", newer)


def _module(name: str) -> bool:
    """Say whether the kernel could load a module."""
    command = ["modprobe", "--dry-run", "--quiet", name]
    try:
        return subprocess.run(command, check=False, timeout=10).returncode == 0
    except FileNotFoundError:
        return False


def _seccomp() -> bool:
    """Ask for a filter at address 0: EFAULT where filters are known, EINVAL where not (seccomp(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, 0, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


def _cgroups() -> Iterator[Check]:
    v2 = Path("/sys/fs/cgroup/cgroup.controllers")
    here = v2.read_text().split() if v2.exists() else []
    missing = [name for name in _CONTROLLERS if name not in here and not _v1(name)]
    how = "boot with systemd.unified_cgroup_hierarchy=1 cgroup_enable=memory"
    kind = "v2" if v2.exists() else "v1"
    detail = f"missing: {', '.join(missing)}" if missing else f"{', '.join(_CONTROLLERS)} ({kind})"
    yield Check("cgroup controllers", not missing, detail, how)


def _v1(controller: str) -> bool:
    return any(path.is_dir() for path in Path("/sys/fs/cgroup").glob(f"*{controller}*"))


def _transparent() -> Check:
    """Try to make a socket that may be bound to another's address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        except OSError as error:
            return Check("transparent sockets", False, str(error.strerror), "run it as root with CAP_NET_ADMIN")
    return Check("transparent sockets", True, "IP_TRANSPARENT")


def _devices() -> Iterator[Check]:
    null = Path("/dev/null").stat().st_mode & 0o777
    yield Check("/dev/null", null == _FOR_ALL, f"mode {null:o}", "chmod 666 /dev/null")
    limit = int(subprocess.run(["sh", "-c", "ulimit -Hn"], capture_output=True, check=False).stdout or 0)
    yield Check("open files", limit >= _FILES, f"at most {limit} a process", f"ulimit -Hn {_FILES * 16}", hard=False)


def _room(config: Config) -> Iterator[Check]:
    place = config.global_.state_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free >> 20
    how = "make room, or name another global.state_dir"
    yield Check("free disk", free >= _DISK_MIB, f"{free} MiB at {place} (a template has 400)", how, hard=False)
    memory = next(
        int(line.split()[1]) >> 10
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    yield Check("free memory", memory >= _MEMORY_MIB, f"{memory} MiB", "stop something, or add memory", hard=False)


def _code() -> Check:
    closed = barrier(HOME / "x")
    detail = f"users other than root can't enter {closed}" if closed else str(HOME)
    return Check("code readable", closed is None, detail, "deploy/run or deploy/install puts a copy under /opt")


def _templates(config: Config) -> Iterator[Check]:
    there = built(Layout.of(config.global_).templates)
    for name in dict.fromkeys(service.container_template for service in config.service):
        yield Check(f"template {name}", name in there, str(config.global_.state_dir), f"honeypot template build {name}")


def _ports(config: Config) -> Iterator[Check]:
    """Try each port, unless this very honeypot has them."""
    try:
        Supervisor(Layout.of(config.global_).supervisor).pid()
    except HoneypotError:
        for service in config.service:
            problem = _bind(config, service.port)
            yield Check(
                f"port {service.port}", problem is None, problem or "free", f"stop it: ss -ltnp sport = {service.port}"
            )
        problem = _bind_one("127.0.0.1", config.webui.port)
        yield Check(f"port {config.webui.port}", problem is None, problem or "free", "name another webui.port")


def _bind(config: Config, port: int) -> str | None:
    problems = (_bind_one(str(address), port) for address in config.global_.bind_address)
    return next((problem for problem in problems if problem), None)


def _bind_one(address: str, port: int) -> str | None:
    """Bind as the listener will; say what keeps it from that (no IPv6 at all is none)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, port))
            sock.listen(1)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        return f"{address}: {error.strerror}"
    return None


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 1  # not told: not limited
