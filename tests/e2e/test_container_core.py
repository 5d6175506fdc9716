"""Containers by themselves: reached, closed, limited; real templates, real OpenSSH."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest

from containerd import cgroup, container, guards, network
from containerd.network import Endpoint
from containerd.spec import Limits
from tests.e2e.world import wait_for
from tests.e2e.yard import ATTACKER, NOTHING, Yard, left_of, ssh


@pytest.mark.parametrize("source", [ATTACKER, Endpoint("2001:db8:bad::77", 51234)])
def test_sshd_answers_and_sees_the_attackers_own_address_and_port(yard: Yard, source: Endpoint) -> None:
    inside = yard.create()
    seen = ssh(inside, "echo $SSH_CLIENT; id -un", source)
    assert seen.splitlines() == [f"{source.address} {source.port} 22", "root"]


def test_a_second_connection_from_the_same_port_gets_another_port(yard: Yard) -> None:
    inside = yard.create()
    with inside.connect(ATTACKER, 22) as first, inside.connect(ATTACKER, 22) as second:
        assert first.recv(4) == second.recv(4) == b"SSH-"
        assert first.getsockname() == ATTACKER
        assert second.getsockname()[0] == ATTACKER.address
        assert not os.get_inheritable(second.fileno())


def test_nginx_serves_its_page(yard: Yard) -> None:
    inside = yard.create("http-template")
    with inside.connect(ATTACKER, 80) as client, client.makefile("rb") as answer:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        page = answer.read()
    assert page.startswith(b"HTTP/1.1 200 OK\r\nServer: nginx")
    assert b"<title>" in page
    log = Path(f"/proc/{inside.leader_pid}/root/var/log/nginx/access.log")
    assert wait_for(log.read_text, "nginx logs it").startswith("198.51.100.77 ")


def test_real_programs_work_under_the_profile(yard: Yard) -> None:
    """su, sudo, cron, dpkg, apt, python3 with threads, perl, useradd, ping of itself, a pipe that breaks quietly."""
    said = ssh(
        yard.create(),
        """su admin -c 'id -un'
        echo admin | su admin -c 'sudo -S -p "" id -un'
        pgrep -x cron >/dev/null && echo cron runs
        dpkg -l openssh-server | tail -1 | cut -c1-18
        apt-get check >/dev/null 2>&1 && echo apt works
        python3 -c 'import threading; t = threading.Thread(target=print, args=("python works",)); t.start(); t.join()'
        perl -e 'print "perl works\\n"'
        useradd -m eve && echo eve:x | chpasswd && su eve -c 'id -un'
        ping -c1 -W2 127.0.0.1 >/dev/null && echo ping works
        yes | head -1
        cut -d. -f1 /proc/uptime""",
    ).splitlines()
    assert said[:-1] == [
        "admin", "root", "cron runs", "ii  openssh-server", "apt works", "python works", "perl works", "eve",
        "ping works", "y",
    ]  # fmt: skip
    assert int(said[-1]) > 41 * 86400


CLOSED = {
    "mount": ("165, 0, 0, 0, 0, 0", "EPERM"),
    "unshare of a user namespace": ("272, 0x10000000", "EPERM"),
    "clone into a user namespace": ("56, 0x10000000, 0, 0, 0, 0", "EPERM"),
    "clone3": ("435, 0, 0", "ENOSYS"),
    "setns": ("308, 0, 0", "EPERM"),
    "bpf": ("321, 0, 0, 0", "EPERM"),
    "io_uring_setup": ("425, 1, 0", "ENOSYS"),
    "keyctl": ("250, 0, 0, 0, 0, 0", "ENOSYS"),
    "userfaultfd": ("323, 0", "EPERM"),
    "a call nobody knows": ("9999", "ENOSYS"),
    "an x32 call": ("0x40000027", "ENOSYS"),
    "AF_VSOCK": ("41, 40, 1, 0", "EAFNOSUPPORT"),
    "AF_ALG": ("41, 38, 5, 0", "EAFNOSUPPORT"),
    "AF_PACKET": ("41, 17, 3, 0", "EPERM"),
    "netlink audit": ("41, 16, 3, 9", "EPROTONOSUPPORT"),
    "netlink netfilter": ("41, 16, 3, 12", "EPROTONOSUPPORT"),
    "netlink xfrm": ("41, 16, 3, 6", "EPROTONOSUPPORT"),
    "reboot": ("169, 0, 0, 0, 0", "EPERM"),
}


def test_what_the_profile_closes_is_closed(yard: Yard) -> None:
    """Each call answers as written down, and a call that is allowed works by the same road."""
    lines = [
        f"perl -MErrno -e 'my $r = syscall({call}); print $r < 0 ? $!+0 : 0, qq(\\n)'" for call, _ in CLOSED.values()
    ]
    answers = ssh(yard.create(), "\n".join([*lines, "perl -e 'print syscall(39) > 0 ? 0 : 1, qq(\\n)'"])).split()

    found = {name: errno.errorcode.get(int(a), a) for name, a in zip(CLOSED, answers, strict=False)}
    assert found == {name: wanted for name, (_, wanted) in CLOSED.items()}
    assert answers[-1] == "0"


def test_nothing_of_ours_or_of_nspawn_shows(yard: Yard) -> None:
    said = ssh(
        yard.create(),
        "tr '\\0' '\\n' </proc/1/environ; cat /proc/self/mountinfo /proc/self/cgroup; env; ls -d /run/host;"
        "ls -d /run/systemd; cat /proc/1/comm; ls /proc/1/fd; dmesg; grep -rIl mmdebstrap /etc /var /usr/share",
    )
    for word in ("nspawn", "container=", "NOTIFY_SOCKET", "honeypot", "mmdebstrap", "stage1"):
        assert word not in said, said
    assert "/dev/vda1 rw,lowerdir=l,upperdir=u,workdir=w" in said
    assert "/run/host': No such file" in said


def test_nothing_gets_out(yard: Yard) -> None:
    """Connections, datagrams and pings out of the container meet silence, and are counted."""
    inside = yard.create()
    before = network.dropped_packets(inside.directory / "netns")
    said = ssh(
        inside,
        """for target in 192.0.2.1 10.20.0.1 127.0.0.53; do timeout 1 bash -c "echo >/dev/tcp/$target/80"; echo $?; done
        echo x >/dev/udp/192.0.2.1/53
        for target in 192.0.2.1 2001:db8::1; do ping -c1 -W1 $target >/dev/null; echo $?; done""",
    ).split("\n")
    codes = [line for line in said if line.isdigit()]
    assert codes == ["124", "124", "1", "1", "1"]  # the third is refused by the container itself
    assert network.dropped_packets(inside.directory / "netns") > before


HOGS = {
    "fork bomb": "bomb() { bomb | bomb & }; bomb; sleep 2",
    "memory hog": "perl -e 'my @a; push @a, \"x\" x 1048576 while 1'",
    "disk filler": "dd if=/dev/zero of=/var/fill bs=1M count=4000; dd if=/dev/zero of=/dev/shm/fill bs=1M count=4000",
    "open files": 'perl -e \'my @f; while (open(my $h, "<", "/etc/passwd")) { push @f, $h } print scalar @f, qq(\\n)\'',
    "device folder filler": "for f in /dev/fill /run/fill; do dd if=/dev/zero of=$f bs=1M count=4000; done",
}


@pytest.mark.parametrize("hog", HOGS)
def test_a_hog_stays_inside(yard: Yard, hog: str) -> None:
    """The hog's container hits its own limit; a neighbour answers meanwhile; nothing is left of either."""
    limits = Limits(memory_bytes=128 << 20, pids=48, disk_bytes=32 << 20)
    victim, neighbour = yard.create(limits=limits), yard.create(limits=limits)

    def go() -> None:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):  # its shell may fall to its own limits
            ssh(victim, HOGS[hog], timeout_s=30)

    hogging = threading.Thread(target=go)
    hogging.start()
    try:
        assert ssh(neighbour, "echo fine", Endpoint("198.51.100.8", 40000)) == "fine\n"
        wait_for(lambda: not hogging.is_alive(), "the hog ends", 60)
        guards.check(neighbour.record)
        assert len(cgroup.group(yard.roots.instance, victim.id).members()) <= 48
    finally:
        container.destroy(victim)
        container.destroy(neighbour)
        hogging.join()
    assert left_of(yard.roots) == NOTHING
