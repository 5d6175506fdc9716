"""Every guard of a container holds, and one that does not is named."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from containerd import cgroup, guards, procfs, syscalls
from containerd.container import Container
from containerd.errors import GuardMissing
from tests.e2e.yard import Yard


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "100"])


OUTSIDE_GUARDS = (
    "user ids",
    "namespaces",
    "capabilities",
    "system calls",
    "control group",
    "mounts",
    "root",
    "interfaces",
)


def test_every_guard_holds_and_a_process_of_the_host_passes_none(yard: Yard) -> None:
    """All guards pass for a container; each that looks at its first process refuses a plain one of the host."""
    inside = yard.create()
    guards.check(inside.record)
    sleeper = _sleeper()
    try:
        impostor = guards.Subject(inside.record, sleeper.pid, sleeper.pid)
        refused = {name for name, guard in guards.GUARDS if guard(impostor)}
    finally:
        sleeper.kill()
        sleeper.wait()
    assert refused == set(OUTSIDE_GUARDS)


def _in_leader_mounts(inside: Container, work: Callable[[], None]) -> None:
    def joined() -> None:
        syscalls.unshare(syscalls.CLONE_FS)
        descriptor = os.open(f"/proc/{inside.leader_pid}/ns/mnt", os.O_RDONLY)
        syscalls.setns(descriptor, 0x20000)
        os.close(descriptor)
        work()

    syscalls.in_own_thread(joined)


def _loosen_limit(inside: Container) -> None:
    settings = cgroup.group(inside.spec.roots.instance, inside.id).settings(inside.spec.limits)
    next(setting.file for setting in settings if setting.file.name == "pids.max").write_text("max")


def _loosen_cpu(inside: Container) -> None:
    settings = cgroup.group(inside.spec.roots.instance, inside.id).settings(inside.spec.limits)
    late = next(setting for setting in settings if setting.late)
    late.file.write_text("max 100000" if late.file.name == "cpu.max" else "-1")


def _leave_group(inside: Container) -> None:
    (cgroup.detect().unified / "cgroup.procs").write_text(str(inside.leader_pid))


def _grow_disk(inside: Container) -> None:
    subprocess.run(["mount", "-o", "remount,size=1g", str(inside.directory / "disk")], check=True)


def _mount_inside(inside: Container) -> None:
    _in_leader_mounts(inside, lambda: syscalls.mount("none", "/mnt", "tmpfs"))


def _uplink(inside: Container) -> None:
    add = ["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1"]
    subprocess.run(["nsenter", f"--net={inside.directory}/netns", *add], check=True)


def _second_interface(inside: Container) -> None:
    add = ["ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth2"]
    subprocess.run(["nsenter", f"--net=/proc/{inside.leader_pid}/ns/net", *add], check=True)


def _nft(inside: Container, *words: str) -> None:
    subprocess.run(["nsenter", f"--net={inside.directory}/netns", "nft", *words], check=True)


def _accept_all(inside: Container) -> None:
    _nft(inside, "add", "rule", "inet", "gate", "arrivals", "accept")


def _no_policy(inside: Container) -> None:
    _nft(inside, "add", "chain", "inet", "gate", "arrivals", "{ policy accept; }")


def _no_firewall(inside: Container) -> None:
    _nft(inside, "flush", "ruleset")


def _die(inside: Container) -> None:
    os.kill(inside.leader_pid, signal.SIGKILL)
    assert procfs.ended(inside.pidfd, 10)


@pytest.mark.parametrize(
    ("spoil", "guard"),
    [
        (_loosen_limit, "limits"), (_loosen_cpu, "limits"), (_leave_group, "control group"), (_grow_disk, "disk size"),
        (_mount_inside, "mounts"), (_uplink, "gateway"), (_second_interface, "interfaces"), (_accept_all, "gateway"),
        (_no_policy, "gateway"), (_no_firewall, "gateway"), (_die, "processes"),
    ],
)  # fmt: skip
def test_a_spoiled_guard_is_named(yard: Yard, spoil: Callable[[Container], None], guard: str) -> None:
    inside = yard.create()
    guards.check(inside.record)
    spoil(inside)
    with pytest.raises(GuardMissing) as refused:
        guards.check(inside.record)
    assert refused.value.guard == guard
    if spoil is _leave_group:  # or nothing would find it again
        os.kill(inside.leader_pid, signal.SIGKILL)
