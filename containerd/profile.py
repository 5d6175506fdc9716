"""The hardening profile: which capabilities and system calls a container has. One for all containers.

Owns profiles/*.txt and turns them into the compiled filter that `stage1.c` loads. Called by `bootroot.py`
(once) and `guards.py` (what is expected). An allow-list: what nobody wrote down does not exist. Must never
weaken with the host: a name that libseccomp does not know is left out of the allowed, and an unknown refused
one needs no refusing.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import IO

import pyseccomp

_FOLDER = Path(__file__).parent / "profiles"
# linux/capability.h, in order of their numbers
_CAPABILITIES = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
]
# linux/sched.h: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NAMESPACE_FLAGS = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET, _AF_END = 1, 2, 10, 16, 17, 46
_NETLINK_ROUTE, _NETLINK_AUDIT, _NETLINK_END = 0, 9, 23
_NETLINK_ALLOWED = (_NETLINK_ROUTE, 4, 15)  # 4: socket diagnosis (ss), 15: device events
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, Linux 32, uname 2.6, both, "which is it?"


def kept_capabilities() -> int:
    """Give the set of kept capabilities as in /proc/PID/status."""
    return sum(1 << _CAPABILITIES.index(name) for name in _words("capabilities.txt"))


def write_filter(file: IO[bytes]) -> None:
    """Compile the profile and write it as an array of BPF instructions (struct sock_filter, seccomp(2))."""
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    # Calls of the 32-bit and x32 ABIs: a rarely walked, often broken path into the kernel.
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ERRNO(errno.ENOSYS))
    rules.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree
    for name in _known("allow.txt"):
        rules.add_rule(pyseccomp.ALLOW, name)
    for name in _known("refuse.txt"):
        rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
    _limit_clone(rules)
    _limit_socket(rules)
    for kind in _PERSONALITIES:
        rules.add_rule(pyseccomp.ALLOW, "personality", pyseccomp.Arg(0, pyseccomp.EQ, kind))
    rules.export_bpf(file)


def _limit_clone(rules: pyseccomp.SyscallFilter) -> None:
    """Allow clone without new namespaces. clone3 stays unknown: a filter can't see its flags; libc falls back."""
    every = sum(_NAMESPACE_FLAGS)
    rules.add_rule(pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, every, 0))
    for flag in _NAMESPACE_FLAGS:
        rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))


def _limit_socket(rules: pyseccomp.SyscallFilter) -> None:
    """Allow Unix and Internet sockets and harmless netlink. AF_VSOCK, for one, would reach past every namespace."""
    for family in range(_AF_END):
        is_family = pyseccomp.Arg(0, pyseccomp.EQ, family)
        if family in (_AF_UNIX, _AF_INET, _AF_INET6):
            rules.add_rule(pyseccomp.ALLOW, "socket", is_family)
        elif family == _AF_PACKET:
            rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "socket", is_family)
        elif family != _AF_NETLINK:
            rules.add_rule(pyseccomp.ERRNO(errno.EAFNOSUPPORT), "socket", is_family)
    for protocol in range(_NETLINK_END):
        both = (pyseccomp.Arg(0, pyseccomp.EQ, socket.AF_NETLINK), pyseccomp.Arg(2, pyseccomp.EQ, protocol))
        if protocol in _NETLINK_ALLOWED:
            rules.add_rule(pyseccomp.ALLOW, "socket", *both)
        else:
            rules.add_rule(pyseccomp.ERRNO(errno.EPROTONOSUPPORT), "socket", *both)


def _words(name: str) -> list[str]:
    lines = (_FOLDER / name).read_text().splitlines()
    return [word for line in lines if not line.startswith("#") for word in line.split()]


def _known(name: str) -> list[str]:
    """List the calls of a file that this host's libseccomp has a number for."""
    return [word for word in _words(name) if pyseccomp.resolve_syscall(pyseccomp.system_arch(), word) >= 0]
