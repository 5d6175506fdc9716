"""Who is answered: judged by the socket's address, the Host and what a browser says of a request's origin."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.settings import WebuiSettings
from webui.guard import Policy, Refusal, judge

POLICY = Policy(
    WebuiSettings().allow,
    frozenset({"localhost", "sensor", "pot.example"}),
    frozenset({ip_address("127.0.0.1"), ip_address("192.168.1.5"), ip_address("fd00::5"), ip_address("::1")}),
)


def verdict(client: str = "192.168.1.77", host: str = "192.168.1.5:8000", **headers: str) -> Refusal | None:
    environ: dict[str, Any] = {"REMOTE_ADDR": client, "HTTP_HOST": host}
    environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    return judge(environ, POLICY)


def status(refusal: Refusal | None) -> int:
    return int(refusal.status[:3]) if refusal else 200


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("127.0.0.1", 200), ("::1", 200), ("10.0.0.1", 200), ("::ffff:192.168.1.1", 200), ("fe80::1%eth0", 200),
        ("198.51.100.7", 403), ("2001:db8::1", 403), ("::ffff:198.51.100.7", 403), ("172.32.0.1", 403), ("", 403),
        ("localhost", 403),
    ],
)  # fmt: skip
def test_only_private_clients_are_answered(client: str, expected: int) -> None:
    assert status(verdict(client)) == expected


def test_no_header_makes_a_client_private() -> None:
    for name in ("x_forwarded_for", "forwarded", "x_real_ip", "true_client_ip"):
        assert status(verdict("198.51.100.7", **{name: "127.0.0.1"})) == 403


@pytest.mark.parametrize(
    "host",
    [
        "192.168.1.5",
        "192.168.1.5:8000",
        "[fd00::5]:8000",
        "[fd00:0::5]",
        "localhost:1",
        "LOCALHOST",
        "pot.example:8000",
    ],
)
def test_this_hosts_names_are_known(host: str) -> None:
    assert verdict(host=host) is None


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "evil.example:8000", "localhost.evil.example", "192.168.1.6", "[fd00::6]", "localhost@evil",
        "evil@localhost", "localhost/evil", "localhost?x", "localhost#x", "localhost:x", "localhost, evil.example",
        "[::1", "[localhost]", "0x7f.1", "2130706433", "127.1", "localhost:99999999", "localhost\t",
    ],
)  # fmt: skip
def test_other_names_are_not(host: str) -> None:
    assert status(verdict(host=host)) == 421


@given(st.text())
def test_any_text_as_a_host_has_a_verdict(host: str) -> None:
    assert status(verdict(host=host)) in (200, 421)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"sec_fetch_site": "none"}, 200),
        ({"sec_fetch_site": "same-origin", "origin": "http://192.168.1.5:8000"}, 200),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://192.168.1.5:9000"}, 403),
    ],
)
def test_other_sites_requests_are_refused(headers: dict[str, str], expected: int) -> None:
    assert status(verdict(**headers)) == expected
