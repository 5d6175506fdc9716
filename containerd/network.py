"""A container's network: its only neighbour is a gateway namespace that nothing leaves.

Plans are text first, then carried out. Called by `container.py`, `guards.py` and `attach.py`. The gateway has
`v0`, the container `eth0` with a private IPv4 and an IPv6 address. In the gateway every address is local, so that
a socket there can be the attacker's own address and port (IP_TRANSPARENT); only packets that belong to such a
socket pass, all else that the container sends is counted and dropped.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from containerd import syscalls
from containerd.commands import run
from containerd.errors import CommandFailed, Unreachable
from containerd.spec import Addresses

_IPV6_TRANSPARENT = 75  # linux/in6.h
_IP_TRANSPARENT = 19  # linux/in.h
_PORT_TAKEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_SYSCTLS = (
    ("ipv4/ip_forward", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
)

RULESET = """
table inet gate {
  counter dropped {}
  chain arrivals {
    type filter hook prerouting priority mangle; policy drop;
    iif lo accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept
    meta l4proto { tcp, udp } socket transparent 1 accept
    counter name dropped
  }
}
"""


class Endpoint(NamedTuple):
    """An address and a port."""

    address: str
    port: int


@dataclass(frozen=True)
class GatewayState:
    """What a gateway is found to have, for the guards."""

    interfaces: tuple[str, ...]
    policy: str | None
    accepts: int


def gateway_script(at: Addresses, container_pid: int) -> str:
    """Give what `ip -batch` does in the gateway.

    Routes are in the local table so that the longest prefix wins without rules: the container itself by v0, every
    other address is ours. The container's link address is written down, since asking for it would show the attacker's
    address as a neighbour.
    """
    return f"""link set lo up
link add v0 address {at.gateway_mac} type veth peer name eth0 address {at.mac} netns {container_pid}
addr add {at.v4_gateway}/{at.v4.network.prefixlen} dev v0
addr add {at.v6_gateway}/{at.v6.network.prefixlen} dev v0 nodad
link set v0 up
neigh replace {at.v4.ip} lladdr {at.mac} dev v0 nud permanent
neigh replace {at.v6.ip} lladdr {at.mac} dev v0 nud permanent
route add unicast {at.v4.ip}/32 dev v0 table local
route add local 0.0.0.0/0 dev lo table local
route add unicast {at.v6.ip}/128 dev v0 table local
route add unicast fe80::/64 dev v0 table local
route add local ::/0 dev lo table local
"""


def container_script(at: Addresses) -> str:
    """Give what `ip -batch` does in the container."""
    return f"""link set lo up
link set eth0 up
addr add {at.v4} brd + dev eth0
addr add {at.v6} dev eth0 nodad
route add default via {at.v4_gateway}
route add default via {at.v6_gateway}
neigh replace {at.v4_gateway} lladdr {at.gateway_mac} dev eth0 nud reachable
"""


def hold_gateway(path: Path) -> None:
    """Make the gateway's empty namespace, closed by its ruleset, and hold it by a mount at `path`."""
    path.touch(mode=0o400)

    def make() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        syscalls.mount("/proc/thread-self/ns/net", path, "", syscalls.MS_BIND)
        for name, value in _SYSCTLS:
            (Path("/proc/sys/net") / name).write_text(value)
        run(["nft", "-f", "-"], given=RULESET)

    syscalls.in_own_thread(make)


def join(gateway: Path, container_pid: int, at: Addresses) -> None:
    """Lay the cable between a gateway and the namespace of a container's process, and address both ends."""
    syscalls.in_netns(gateway, lambda: run(["ip", "-batch", "-"], given=gateway_script(at, container_pid)))
    inside = Path(f"/proc/{container_pid}/ns/net")
    syscalls.in_netns(inside, lambda: run(["ip", "-batch", "-"], given=container_script(at)))


def inspect(gateway: Path) -> GatewayState:
    """Look at what a gateway has."""

    def look() -> GatewayState:
        names = tuple(sorted(name for _, name in socket.if_nameindex()))
        try:
            listed = json.loads(run(["nft", "-j", "list", "chain", "inet", "gate", "arrivals"]))["nftables"]
        except CommandFailed:
            return GatewayState(names, None, 0)
        policy = next((item["chain"].get("policy") for item in listed if "chain" in item), None)
        return GatewayState(names, policy, sum("accept" in rule for item in listed for rule in _verdicts(item)))

    return syscalls.in_netns(gateway, look)


def _verdicts(item: dict[str, dict[str, list[dict[str, object]]]]) -> list[dict[str, object]]:
    return item.get("rule", {}).get("expr", [])


def dropped_packets(gateway: Path) -> int:
    """Count what the container sent that went nowhere."""
    listed = syscalls.in_netns(gateway, lambda: run(["nft", "-j", "list", "counter", "inet", "gate", "dropped"]))
    return int(next(item["counter"]["packets"] for item in json.loads(listed)["nftables"] if "counter" in item))


def open_socket(
    gateway: Path, source: Endpoint, destination: Endpoint, kind: Literal["tcp", "udp"] = "tcp", timeout_s: float = 5
) -> socket.socket:
    """Connect to a container's service as the attacker; give a blocking, non-inheritable socket.

    The source port is the attacker's own unless it is still in use; `Unreachable` where nobody answers.
    """

    def connect() -> socket.socket:
        try:
            return _connected(source, destination, kind, timeout_s)
        except OSError as error:
            if error.errno not in _PORT_TAKEN:
                raise
        return _connected(Endpoint(source.address, 0), destination, kind, timeout_s)

    try:
        return syscalls.in_netns(gateway, connect)
    except OSError as error:
        raise Unreachable(f"{destination.address} port {destination.port}: {error.strerror or error}") from error


def _connected(source: Endpoint, destination: Endpoint, kind: str, timeout_s: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in destination.address else socket.AF_INET
    with contextlib.ExitStack() as undo:
        made = undo.enter_context(socket.socket(family, _KINDS[kind]))
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"v0")
        made.bind(source)
        made.settimeout(timeout_s)
        made.connect(destination)
        made.settimeout(None)
        undo.pop_all()
        return made
