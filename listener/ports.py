"""Listening sockets: which there are to be, and how to get from those there are to those.

`wanted` and `change` are pure; `Ports` owns the sockets. Called by `manager`. Never accepts.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address

from bus.errors import ConfigError
from bus.settings import Address, Config

log = logging.getLogger(__name__)

_BACKLOG = 4096
_NO_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


@dataclass(frozen=True)
class Port:
    """One address and port a service answers on; `name` is what its socket is parked under."""

    service: str
    address: Address
    number: int

    @property
    def name(self) -> str:
        """Name the socket, whatever service it serves."""
        return f"tcp {self.address} {self.number}"

    @property
    def optional(self) -> bool:
        """Say whether a host without its address family is no error: the IPv6 wildcard."""
        return self.address == IPv6Address(0)

    def overlaps(self, other: Port) -> bool:
        """Say whether the kernel takes both for the same: one is the wildcard of the other."""
        same = self.number == other.number and self.address.version == other.address.version
        return same and (self.address.is_unspecified or other.address.is_unspecified)


def wanted(config: Config) -> dict[str, Port]:
    """Derive every port by its name."""
    ports = [
        Port(service.name, address, service.port)
        for service in config.service
        for address in config.global_.bind_address
    ]
    return {port.name: port for port in ports}


@dataclass(frozen=True)
class Change:
    """What to bind and what to close. Of `added`, those in the way of which something stands that is to be closed."""

    added: tuple[Port, ...]
    removed: tuple[Port, ...]

    def blockers(self, port: Port) -> list[Port]:
        """Give what has to be closed before a port can be bound."""
        return [old for old in self.removed if old.overlaps(port)]


def change(now: Mapping[str, Port], then: Mapping[str, Port]) -> Change:
    """Compare two sets of ports."""
    return Change(
        tuple(port for name, port in then.items() if name not in now),
        tuple(port for name, port in now.items() if name not in then),
    )


def bind(port: Port) -> socket.socket | None:
    """Listen, non-blocking; None where the host lacks an optional address family. `ConfigError` in one line."""
    family = socket.AF_INET6 if port.address.version == 6 else socket.AF_INET  # noqa: PLR2004 - it says IPv6
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((str(port.address), port.number))
        sock.listen(_BACKLOG)
    except OSError as error:
        if sock:
            sock.close()
        if port.optional and error.errno in _NO_FAMILY:
            log.warning("this host has no IPv6", extra={"service": port.service})
            return None
        reason = os.strerror(error.errno or 0)
        message = f"service {port.service}: port {port.number} on {port.address} can't be bound: {reason}"
        raise ConfigError(message) from error
    return sock


class Ports:
    """The sockets that listen now, by name."""

    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}
        self.ports: dict[str, Port] = {}

    def start(self, then: Mapping[str, Port], parked: Mapping[str, socket.socket]) -> None:
        """Use parked sockets, bind the missing; `ConfigError` if one can't be, and then none is open."""
        for name, sock in parked.items():
            if name in then:
                self.sockets[name] = sock
                self.ports[name] = then[name]
            else:
                silence(sock)
                sock.close()
        self.apply(then)

    def try_out(self, then: Mapping[str, Port]) -> None:
        """Find out whether `apply` would succeed, as far as that can be without closing anything."""
        with contextlib.ExitStack() as trial:
            difference = change(self.ports, then)
            for port in difference.added:
                if not difference.blockers(port):
                    sock = bind(port)
                    if sock:
                        trial.enter_context(sock)

    def apply(self, then: Mapping[str, Port]) -> None:
        """Bind what is new, then close what is not wanted; `ConfigError` and nothing changed if a port can't be had."""
        difference = change(self.ports, then)
        fresh: dict[str, socket.socket] = {}
        quiet: list[socket.socket] = []
        try:
            for port in difference.added:
                for blocker in difference.blockers(port):
                    if blocker.name in self.sockets:
                        silence(self.sockets[blocker.name])
                        quiet.append(self.sockets[blocker.name])
                sock = bind(port)
                if sock:
                    fresh[port.name] = sock
        except ConfigError:
            _undo(fresh.values(), quiet)
            raise
        for port in difference.removed:
            self._close(port.name)
        self.sockets |= fresh
        self.ports = dict(then)

    def close(self) -> None:
        """Let go of every socket; parked copies keep listening."""
        for sock in self.sockets.values():
            sock.close()
        self.sockets.clear()

    def _close(self, name: str) -> None:
        sock = self.sockets.pop(name, None)
        if sock:
            silence(sock)
            sock.close()


def silence(sock: socket.socket) -> None:
    """Stop listening, in every process that has a copy; waiting connections are reset."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _undo(fresh: Iterable[socket.socket], quiet: Iterable[socket.socket]) -> None:
    """Close what was bound and let listen again what was silenced."""
    for sock in fresh:
        silence(sock)
        sock.close()
    for sock in quiet:
        sock.listen(_BACKLOG)
