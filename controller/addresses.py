"""What a person may try once everything is up: a line for each service, and the dashboard's addresses.

Reads the host's addresses and the templates' records; changes nothing. Called by `cli_up.py`.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Iterator

import psutil

from bus.layout import Layout
from bus.settings import PRIVATE_NETWORKS, Address, Config, Service

_KNOWN = {"ssh": "ssh -p {port} root@{host}", "http": "curl http://{bracketed}:{port}/"}


def lines(config: Config) -> Iterator[str]:
    """Give the lines to print."""
    if not config.service:
        yield "no service is configured: add a [[service]] and do: honeypot reload"
    host = _reachable(config.global_.bind_address)
    for service in config.service:
        line = f"{service.name:<12} {attempt(service, host)}"
        password = root_password(config, service) if "ssh" in line else None
        yield f"{line}   (password: {password})" if password else line
    for address in dashboard(config):
        yield f"{'dashboard':<12} http://{_bracketed(address)}:{config.webui.port}/"


def attempt(service: Service, host: str) -> str:
    """Give a command line that reaches a service, as far as its name or template tells what it is."""
    for word, command in _KNOWN.items():
        if word in service.container_template or word in service.name:
            return command.format(port=service.port, host=host, bracketed=_bracketed(host))
    return f"nc {host} {service.port}"


def root_password(config: Config, service: Service) -> str | None:
    """Give the password that a service's template lets root in with, if it is a built one's."""
    file = Layout.of(config.global_).templates / service.container_template / "template.json"
    try:
        users = json.loads(file.read_text())["recipe"]["users"]
        return next((str(user["password"]) for user in users if user["name"] == "root" and user["password"]), None)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def dashboard(config: Config) -> list[str]:
    """Give the addresses the dashboard answers on."""
    given = config.webui.address
    if "lan" not in given:
        return [str(address) for address in given]
    return ["127.0.0.1", *(address for address in host_addresses() if is_private(address))]


def host_addresses() -> list[str]:
    """Give this host's own addresses but loopback and link-local ones."""
    found = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    ]
    parsed = [ipaddress.ip_address(address.partition("%")[0]) for address in found]
    return [str(address) for address in parsed if not address.is_loopback and not address.is_link_local]


def is_private(address: str) -> bool:
    """Say whether an address is in a private range."""
    parsed = ipaddress.ip_address(address)
    return any(parsed in ipaddress.ip_network(network) for network in PRIVATE_NETWORKS)


def _reachable(bound: tuple[Address, ...]) -> str:
    """Give an address to try: the host's own where every address is bound."""
    for address in bound:
        if not address.is_unspecified:
            return str(address)
    return next((address for address in host_addresses() if ":" not in address), "127.0.0.1")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
