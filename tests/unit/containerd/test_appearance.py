"""Attackers' own addresses are shown; those that can't cross get a stand-in."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd.appearance import shown_source

OWN = {ip_address("203.0.113.80"), ip_address("2001:db8::80")}
INSIDE = [ip_network("10.20.30.0/24"), ip_network("fd00:1::/64")]


@pytest.mark.parametrize("source", ["198.51.100.7", "10.9.8.7", "2001:db8:bad::7"])
def test_an_attackers_own_address_is_shown(source: str) -> None:
    assert shown_source(source, OWN, INSIDE) == source


@pytest.mark.parametrize(
    "source", ["127.0.0.1", "127.8.8.8", "203.0.113.80", "10.20.30.40", "169.254.1.1", "::1", "2001:db8::80", "fe80::1"]
)
def test_what_can_not_cross_gets_a_private_stand_in_of_its_family(source: str) -> None:
    shown = ip_address(shown_source(source, OWN, INSIDE))
    assert shown.version == ip_address(source).version
    assert shown.is_private
    assert shown not in OWN
    assert not any(shown in network for network in INSIDE if network.version == shown.version)


@given(st.ip_addresses())
def test_the_same_source_is_always_shown_the_same(source: object) -> None:
    assert shown_source(str(source), OWN, INSIDE) == shown_source(str(source), OWN, INSIDE)
