"""Plans are data: what would be mounted, run and written can be read before anything is done."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from containerd import cgroup, launch, network, syscalls, tree
from containerd.cgroup import Group, Hierarchies
from containerd.commands import run
from containerd.errors import CommandFailed
from containerd.spec import Addresses, Limits, Spec


def test_the_tree_is_planned_before_it_is_made(spec: Spec) -> None:
    lines = [step.describe() for step in tree.plan(spec, 0x10000000)]
    assert "mount -t overlay -o lowerdir=l,upperdir=u,workdir=w /dev/vda1 ../root" in lines
    assert f"mount --bind -o ro,X-mount.idmap=0:268435456:65536 {spec.template.root} l" in lines
    assert "crw-rw-rw- 268435456:268435456 0x103 ../dev/null" in lines
    assert "ln -s /proc/self/fd ../dev/fd" in lines
    assert not any("5, 1" in line or "0x501 " in line for line in lines)  # the host's console


def test_all_tmpfs_together_fit_into_the_memory(spec: Spec) -> None:
    sizes = [s.options for s in tree.plan(spec, 0) if isinstance(s, tree.Mount) and s.kind == "tmpfs"]
    total_kib = sum(int(part[5:-1]) for options in sizes for part in options.split(",") if part.startswith("size="))
    assert total_kib << 10 < spec.limits.memory_bytes / 2


def test_the_command_starts_nspawn_in_its_groups_and_hands_it_nothing_of_ours(spec: Spec) -> None:
    group = Group(Hierarchies(Path("/cg/unified"), (("pids", Path("/cg/pids")),)), "honeypot-unit", "c1")
    command = launch.command(spec, 0x10000000, Path("/boot root"), group)
    line = command.argv[2]
    assert line.startswith("umask 022 && cd / && echo 0 > /cg/unified/honeypot-unit/c1/cgroup.procs && ")
    assert "echo 0 > /cg/pids/honeypot-unit/c1/cgroup.procs && exec unshare --time" in line
    for word in ("--private-users=268435456:65536", "--private-network", "'--directory=/boot root'", "--read-only"):
        assert word in line
    assert line.endswith("/stage1 a00425ff 612 'A=b c' -- /sbin/init")
    assert {name for name, _ in command.environ} >= {"PATH", "SYSTEMD_SECCOMP"}
    assert all(name == "PATH" or name.startswith("SYSTEMD_") for name, _ in command.environ)


def test_v2_limits_are_written_and_checked_and_what_is_late_comes_late(tmp_path: Path) -> None:
    """The V2 backend over plain files, as this host may have V1 only: what it writes is what it reads back."""
    group = Group(Hierarchies(tmp_path), "honeypot-unit", "c1")
    limits = Limits(memory_bytes=(64 << 20) + 5, pids=33, cpu_percent=25)
    group.create(limits)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert (group.unified / "memory.max").read_text() == str(64 << 20)
    assert (group.unified / "pids.max").read_text() == "33"
    assert "cpu.max is missing" in str(group.unmet(limits))
    group.confine(limits)
    assert (group.unified / "cpu.max").read_text() == "25000 100000"
    assert group.unmet(limits) is None
    (group.unified / "pids.max").write_text("max")
    assert "pids.max is max, not 33" in str(group.unmet(limits))


def test_v1_and_v2_ask_for_the_same_limits(tmp_path: Path) -> None:
    split = tuple((name, tmp_path / name) for name in ("memory", "pids", "cpu"))
    old = {s.file.name: s.value for s in Group(Hierarchies(tmp_path, split), "p", "c").settings(Limits())}
    new = {s.file.name: s.value for s in Group(Hierarchies(tmp_path), "p", "c").settings(Limits())}
    assert old["memory.limit_in_bytes"] == new["memory.max"]
    assert old["pids.max"] == new["pids.max"]
    assert f"{old['cpu.cfs_quota_us']} {old['cpu.cfs_period_us']}" == new["cpu.max"]


def test_a_group_is_made_killed_and_removed() -> None:
    """On the real hierarchies: a process in the group dies with it, and the parent goes when it is empty."""
    group = cgroup.group("unittest", "c1")
    group.create(Limits())
    try:
        joins = " && ".join(f"echo 0 > {directory}/cgroup.procs" for directory in group.directories)
        with subprocess.Popen(
            ["/bin/sh", "-c", f"{joins} && echo in && exec sleep 100"], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"in\n"
            assert group.members() == [child.pid]
            assert group.strays(child.pid) is None
            assert cgroup.list_groups("unittest") == ["c1"]
            group.kill()
            assert child.wait(10) == -9
    finally:
        group.kill()
        group.remove()
    assert not any(directory.parent.exists() for directory in group.directories)


def test_the_network_scripts_and_the_ruleset_are_what_the_tools_understand(tmp_path: Path) -> None:
    """Both scripts run in two fresh namespaces, and the two ends then reach each other."""
    gateway, at = tmp_path / "gateway", Addresses()
    network.hold_gateway(gateway)
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 100"], stdout=subprocess.PIPE) as inside:
        try:
            assert inside.stdout is not None
            inside.stdout.readline()
            network.join(gateway, inside.pid, at)
            state = network.inspect(gateway)
            assert state == network.GatewayState(("lo", "v0"), "drop", network.RULESET.count("accept"))
            shown = syscalls.in_netns(
                gateway, lambda: run(["ip", "route", "get", "198.51.100.1", "from", str(at.v4.ip), "iif", "v0"])
            )
            assert shown.startswith("local 198.51.100.1")
        finally:
            inside.kill()
            syscalls.umount(gateway)


def test_a_program_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(CommandFailed, match="sh: second"):
        run(["sh", "-c", "echo first >&2; echo second >&2; echo >&2; exit 3"])
    with pytest.raises(CommandFailed, match="no-such-program"):
        run(["no-such-program"])
