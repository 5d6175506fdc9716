"""Which address a service sees its client come from: the attacker's own, unless that one can't cross. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_STAND_IN_V4 = IPv4Network("192.168.0.0/16")
_STAND_IN_V6 = 0xFD << 120


def shown_source(source: str, own: Collection[Address], inside: Collection[Network]) -> str:
    """Give the address to show for a source.

    Loopback, unspecified, multicast and link-local addresses can't cross into the container; the host's own (`own`)
    would name the host, and those of the container's networks (`inside`) clash. Such a source always gets the same
    stand-in: a neighbour's private address of the same family.
    """
    address = ip_address(source)
    stuck = address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local
    if not stuck and address not in own and not any(_holds(network, address) for network in inside):
        return str(address)
    return str(next(a for a in _stand_ins(address) if a not in own and not any(_holds(n, a) for n in inside)))


def _holds(network: Network, address: Address) -> bool:
    return network.version == address.version and address in network


def _stand_ins(address: Address) -> Collection[Address]:
    """Derive a few candidates from the address, always the same ones."""
    digests = [hashlib.sha256(b"%d %s" % (n, str(address).encode())).digest() for n in range(8)]
    if address.version == 4:  # noqa: PLR2004 - the family's own number
        return [_STAND_IN_V4[(d[0] << 8) + 2 + d[1] % 250] for d in digests]
    return [IPv6Address(_STAND_IN_V6 | int.from_bytes(d[:15], "big")) for d in digests]
