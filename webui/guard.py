"""Who is answered: the outermost WSGI layer, before any page or API code sees a request.

`judge` is pure and looks only at the socket's own address and at headers a browser can't be talked out of sending: a
page elsewhere must neither reach this API through a rebound DNS name (Host) nor by a cross-site request
(Sec-Fetch-Site, Origin). Adds the security headers to every answer, refusals included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bus.settings import Address, Network

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HEADERS = (
    (
        "Content-Security-Policy",
        (
            "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; "
            "base-uri 'none'"
        ),
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
_OWN_SITE = ("same-origin", "none")  # "none": typed, or from a bookmark
_PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Policy:
    """Whom to answer: clients in `networks` that name this host by one of `names` or `addresses`."""

    networks: tuple[Network, ...]
    names: frozenset[str]
    addresses: frozenset[Address]


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered."""

    status: str
    detail: str


def judge(environ: WSGIEnvironment, policy: Policy) -> Refusal | None:
    """Say why a request is refused, or None."""
    client = _address(environ.get("REMOTE_ADDR", ""))
    if client is None or not any(client in network for network in policy.networks):
        return Refusal("403 Forbidden", "clients at this address are not answered (webui.allow)")
    host = environ.get("HTTP_HOST", "")
    if not _is_ours(host, policy):
        return Refusal("421 Misdirected Request", "this host does not go by that name (webui.host_names)")
    origin = environ.get("HTTP_ORIGIN")
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in _OWN_SITE or origin not in (None, f"http://{host}"):
        return Refusal("403 Forbidden", "a request from another site is not answered; open this address directly")
    return None


def _address(text: str) -> Address | None:
    """Read an address; a mapped IPv4 address is IPv4's, and a scope is dropped."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_ours(host: str, policy: Policy) -> bool:
    """Say whether a Host header names this host; its port is of no concern."""
    try:
        parts = urlsplit(f"//{host}")
        name = parts.hostname or ""
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError:
        return False
    if parts.path or parts.query or parts.fragment or "@" in host or any(c.isspace() for c in host):
        return False
    return name in policy.names or _address(name) in policy.addresses


class Guard:
    """The WSGI layer; `policy` may be replaced while it serves."""

    def __init__(self, application: WSGIApplication, policy: Policy) -> None:
        self._application = application
        self.policy = policy

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Refuse, or pass on."""
        refusal = judge(environ, self.policy)
        if refusal is None:
            return self._application(environ, _guarded(start_response))
        status, _, title = refusal.status.partition(" ")
        problem = {"type": "about:blank", "title": title, "status": int(status), "detail": refusal.detail}
        body = json.dumps(problem).encode()
        headers = [("Content-Type", _PROBLEM), ("Content-Length", str(len(body))), *HEADERS]
        start_response(refusal.status, headers)
        return [body] if environ.get("REQUEST_METHOD") != "HEAD" else []


def _guarded(start_response: StartResponse) -> Callable[..., Any]:
    """Put our headers in place of the application's own of the same names."""
    ours = {name.lower() for name, _ in HEADERS}

    def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        kept = [(name, value) for name, value in headers if name.lower() not in ours]
        return start_response(status, [*kept, *HEADERS], *exc_info)

    return start
