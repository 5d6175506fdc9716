"""Turns a freshly unpacked root into a machine that looks installed weeks ago and starts fast in a container.

Called by `build.py` alone, on a root that nothing runs in yet. Every step is one function of the root and the
recipe. Must never leave a word about how the root was made.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from containerd.commands import run
from containerd.recipe import Recipe, User

_DAY_S = 86400
# Nothing that runs before the services is needed: it sets up hardware, disks and networks. Nor is this that runs beside
# them; and bootmisc.sh forbids logins until rmnologin allows them again, which may be after the service listens.
_BOOT = "rcS.d"
_SERVICES = "rc2.d"
_SERVICES_DROPPED = {"bootlogs", "console-setup.sh", "keyboard-setup.sh", "rc.local", "rmnologin", "sudo"}
_TRACES = (
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "usr/sbin/policy-rc.d",
    "var/cache/apt/archives/lock",
    "var/lib/apt/lists",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
    "var/log/alternatives.log",
    "var/log/apt",
    "var/cache/apt",
)
_EMPTY = ("var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "var/log/apt")


def finish(root: Path, recipe: Recipe, folder: Path) -> None:
    """Do every step; `CommandFailed` or `OSError` where one can't be done."""
    began_s = time.time() - _DAY_S  # nothing in a package is younger than a day, all that the build wrote is
    if (folder / "files").is_dir():
        shutil.copytree(folder / "files", root, symlinks=True, dirs_exist_ok=True)
    for user in recipe.users:
        _account(root, user)
    _name(root, recipe.hostname)
    if (folder / "setup.sh").is_file():
        run(["chroot", str(root), "/bin/sh", "-s"], given=(folder / "setup.sh").read_text(), timeout_s=300)
    _host_keys(root)
    _quiet_boot(root)
    _quiet_log(root)
    _forget_build(root)
    _age(root, began_s, time.time() - (recipe.uptime_days + 0.1) * _DAY_S)


def _account(root: Path, user: User) -> None:
    """Make the account and set its password the distribution's way (its hash, its cost)."""
    chroot = ["chroot", str(root)]
    if f"{user.name}:" not in [f"{line.split(':')[0]}:" for line in (root / "etc/passwd").read_text().splitlines()]:
        number = ["--uid", str(user.uid)] if user.uid is not None else []
        run([*chroot, "useradd", "--create-home", "--shell", user.shell, *number, user.name])
    else:
        run([*chroot, "usermod", "--shell", user.shell, user.name])
    if user.groups:
        run([*chroot, "usermod", "--append", "--groups", ",".join(user.groups), user.name])
    if user.password is not None:
        run([*chroot, "chpasswd"], given=f"{user.name}:{user.password}\n")


def _name(root: Path, hostname: str) -> None:
    """Write who and where the machine is, as Debian's installer does."""
    texts = {
        "etc/default/locale": "LANG=C.UTF-8\n",
        "etc/hostname": f"{hostname}\n",
        "etc/hosts": f"127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n\n"
        "# The following lines are desirable for IPv6 capable hosts\n"
        "::1     localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n",
        "etc/resolv.conf": "nameserver 1.1.1.1\nnameserver 8.8.8.8\n",
        "etc/fstab": "# /etc/fstab: static file system information.\n#\n"
        "# <file system> <mount point>   <type>  <options>       <dump>  <pass>\n"
        "/dev/vda1       /               ext4    errors=remount-ro 0     1\n",
        "etc/machine-id": f"{secrets.token_hex(16)}\n",
    }
    for path, text in texts.items():
        (root / path).unlink(missing_ok=True)  # it may be a symlink to the host's
        (root / path).write_text(text)
        (root / path).chmod(0o644)


def _host_keys(root: Path) -> None:
    if (root / "usr/bin/ssh-keygen").exists():
        run(["chroot", str(root), "ssh-keygen", "-A"], timeout_s=120)


def _quiet_boot(root: Path) -> None:
    """Drop what fails or waits in a container: hardware set-up and terminals that are not there."""
    inittab = root / "etc/inittab"
    if not inittab.exists():
        return
    dropped = _started(root, _BOOT) | (_started(root, _SERVICES) & _SERVICES_DROPPED)
    for script in sorted(dropped):
        run(["chroot", str(root), "update-rc.d", "-f", script, "remove"])
    inittab.write_text(re.sub(r"(?m)^(\d:\d+:respawn:/sbin/getty)", r"#\1", inittab.read_text()))


def _started(root: Path, level: str) -> set[str]:
    return {link.name[3:] for link in (root / "etc" / level).glob("S??*")}


def _quiet_log(root: Path) -> None:
    """Keep the system log from complaining that there is no kernel log to read."""
    config = root / "etc/rsyslog.conf"
    if config.exists():
        config.write_text(re.sub(r'(?m)^(module\(load="imklog"\))', r"#\1", config.read_text()))


def _forget_build(root: Path) -> None:
    """Remove what the build left behind: caches, logs, settings of its own."""
    for path in _TRACES:
        place = root / path
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
    for path in _EMPTY:
        (root / path).mkdir(parents=True, exist_ok=True)
    for place in (
        *(root / "dev").iterdir(),
        *(root / "tmp").iterdir(),
        *(root / "var/tmp").iterdir(),
        *(root / "run").iterdir(),
    ):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()


def _age(root: Path, since_s: float, installed_s: float) -> None:
    """Date everything that the build wrote to the day the machine was installed, passwords included."""
    shadow = root / "etc/shadow"
    day = str(int(installed_s // _DAY_S))
    lines = [line.split(":") for line in shadow.read_text().splitlines()]
    shadow.write_text("".join(":".join([*f[:2], day, *f[3:]]) + "\n" for f in lines))
    (root / "etc/shadow-").write_text(shadow.read_text())
    for path in _everything(root):
        if path.stat(follow_symlinks=False).st_mtime > since_s:
            os.utime(path, (installed_s, installed_s), follow_symlinks=False)
    os.utime(root, (installed_s, installed_s))


def _everything(place: Path) -> Iterator[os.DirEntry[str]]:
    """Walk the root, the contents of a directory before the directory, never through a symlink."""
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _everything(Path(entry.path))
            yield entry
