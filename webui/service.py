"""The web interface's manager: binds, serves, and follows the configuration and the host's addresses.

Started by `__main__` through `bus.manager`. The bus lives in the main thread's loop, the pages in waitress's threads.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

from bus.catalogue import Command, Configuration
from bus.errors import ConfigError
from bus.manager import Node
from bus.rpc import Handler
from bus.settings import Address, WebuiSettings
from webui.app import create_app
from webui.backend import Backend
from webui.guard import Guard, Policy
from webui.lan import bind, host_addresses, plan
from webui.queries import Queries
from webui.server import WebServer

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 15.0
_GONE = (errno.EADDRNOTAVAIL, errno.ENODEV)


class Webui:
    """Owns the listening addresses and the running server."""

    def __init__(self, backend: Backend, settings: WebuiSettings) -> None:
        self.handlers: Mapping[type[Command[Any]], Handler] = {}
        self._settings = settings
        self._guard = Guard(create_app(Queries(backend)), policy(settings, frozenset()))
        self._listening: tuple[Address, ...] = ()
        self._server: WebServer | None = None
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """Start serving; `ConfigError`."""
        async with self._changing:
            await self._serve(self._settings)

    async def close(self) -> None:
        """Stop serving."""
        server, self._server, self._listening = self._server, None, ()
        if server:
            await asyncio.to_thread(server.stop)

    async def apply(self, configuration: Configuration, *, dry: bool) -> str | None:
        """Listen elsewhere, or answer others; a setting that can't be taken leaves everything as it was."""
        settings = configuration.config.webui
        try:
            if settings != self._settings:
                self._check(settings)
                if not dry:
                    async with self._changing:
                        await self._change(settings)
        except ConfigError as error:
            return str(error)
        return None

    async def follow_addresses(self) -> None:
        """Notice when the host gets or loses an address, for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            async with self._changing:
                if not self._server or not self._server.alive:
                    raise RuntimeError("the web server's thread has ended")
                try:
                    await self._follow()
                except ConfigError as error:
                    log.warning("the addresses are left as they are: %s", error)

    def health(self) -> tuple[str, dict[str, float]]:
        """Where it listens."""
        return f"listening on {urls(self._listening, self._settings.port)}", {"addresses": len(self._listening)}

    def _check(self, settings: WebuiSettings) -> None:
        """Find out whether these settings can be taken, by binding what is not bound; `ConfigError`."""
        wanted = plan(settings, host_addresses())
        own = self._listening if settings.port == self._settings.port else ()
        new = tuple(address for address in wanted if address not in own)
        for sock in bind_all(new, settings.port).values() if new else ():
            sock.close()

    async def _follow(self) -> None:
        host = host_addresses()
        self._guard.policy = policy(self._settings, host)
        if plan(self._settings, host) != self._listening:
            await self._change(self._settings)

    async def _change(self, settings: WebuiSettings) -> None:
        """Serve with other settings; if that fails, serve with the old ones again."""
        before = self._settings
        await self.close()
        try:
            await self._serve(settings)
        except ConfigError:
            await self._serve(before)
            raise

    async def _serve(self, settings: WebuiSettings) -> None:
        host = host_addresses()
        bound = bind_all(plan(settings, host), settings.port)
        self._guard.policy = policy(settings, host)
        self._settings, self._listening = settings, tuple(bound)
        self._server = WebServer(self._guard, list(bound.values()))
        self._server.start()
        log.info("the web interface is at %s", urls(self._listening, settings.port))


def policy(settings: WebuiSettings, host: frozenset[Address]) -> Policy:
    """Say whom to answer, by the settings and the host's addresses."""
    own = socket.gethostname().lower()
    names = {"localhost", own, own.split(".")[0], *(name.lower() for name in settings.host_names)}
    unscoped = frozenset(ip_address(str(address).partition("%")[0]) for address in host)
    return Policy(settings.allow, frozenset(names), unscoped)


def bind_all(addresses: tuple[Address, ...], port: int) -> dict[Address, socket.socket]:
    """Bind every address; one that has just gone is left out, any other failure is a `ConfigError`."""
    bound: dict[Address, socket.socket] = {}
    for address in addresses:
        try:
            bound[address] = bind(address, port)
        except OSError as error:
            if error.errno in _GONE and len(addresses) > 1:
                log.warning("%s can't be listened on: %s", address, error.strerror)
                continue
            for sock in bound.values():
                sock.close()
            raise ConfigError(f"webui.port: {address} port {port} can't be listened on: {error.strerror}") from error
    if not bound:
        raise ConfigError("webui.address: none of its addresses can be listened on")
    return bound


def urls(addresses: tuple[Address, ...], port: int) -> str:
    """Write addresses as a browser takes them."""
    hosts = (f"[{address}]" if address.version == 6 else str(address) for address in addresses)  # noqa: PLR2004 - IPv6
    return ", ".join(f"http://{host}:{port}/" for host in hosts)


@asynccontextmanager
async def start(node: Node, configuration: Configuration) -> AsyncIterator[Webui]:
    """Serve, and follow the host's addresses."""
    webui = Webui(Backend(node, asyncio.get_running_loop()), configuration.config.webui)
    await webui.open()
    following = node.spawn(webui.follow_addresses(), "addresses")
    try:
        yield webui
    finally:
        following.cancel()
        await webui.close()
