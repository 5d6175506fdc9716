"""Which addresses the web interface listens on. `plan` is pure; `host_addresses` asks the kernel.

"lan" is loopback and the host's private addresses. Link-local ones are left out: they need a scope in every URL, which
browsers don't take, and they exist on every interface, also on those that were never meant as a local network.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network

import psutil

from bus.errors import ConfigError
from bus.settings import PRIVATE_NETWORKS, Address, WebuiSettings

_PRIVATE = tuple(ip_network(network) for network in PRIVATE_NETWORKS)
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def host_addresses() -> frozenset[Address]:
    """Give every address of this host's interfaces that are up; link-local ones carry their scope."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return frozenset(
        ip_address(address.address)
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if name in up and address.family in _FAMILIES
    )


def is_private(address: Address) -> bool:
    """Say whether an address is loopback's or in a private range."""
    return any(address in network for network in _PRIVATE)


def plan(settings: WebuiSettings, host: Iterable[Address]) -> tuple[Address, ...]:
    """Choose the addresses to listen on; `ConfigError` for one that is not private."""
    chosen: set[Address] = set()
    for wanted in settings.address:
        if wanted == "lan":
            chosen |= {address for address in host if is_private(address) and not address.is_link_local}
        elif not is_private(wanted):
            raise ConfigError(f'webui.address: {wanted} is not a private address; use "lan" or a private address')
        elif isinstance(wanted, IPv6Address) and wanted.is_link_local and not wanted.scope_id:
            raise ConfigError(f"webui.address: {wanted} is link-local and needs its interface, as in {wanted}%eth0")
        else:
            chosen.add(wanted)
    if not chosen:
        raise ConfigError("webui.address: this host has no loopback or private address to listen on")
    return tuple(sorted(chosen, key=lambda address: (address.version, address)))


def bind(address: Address, port: int) -> socket.socket:
    """Listen on exactly this address; `OSError`."""
    family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(socket.getaddrinfo(str(address), port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)[0][4])
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock
