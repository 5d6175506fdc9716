"""Which addresses are listened on: loopback and private ones, nothing else."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import ConfigError
from bus.settings import Address, WebuiSettings
from webui.lan import host_addresses, is_private, plan

HOST = [
    ip_address(text)
    for text in (
        "127.0.0.1", "::1", "192.168.1.5", "10.1.2.3", "172.31.0.1", "172.32.0.1", "203.0.113.9", "100.64.0.1",
        "169.254.3.4", "fe80::1%eth0", "fd00::5", "2001:db8::1",
    )
]  # fmt: skip


def chosen(*address: str, host: list[Address] = HOST) -> list[str]:
    return [str(each) for each in plan(WebuiSettings.model_validate({"address": address}), host)]


def test_lan_is_loopback_and_private_addresses() -> None:
    assert chosen("lan") == ["10.1.2.3", "127.0.0.1", "172.31.0.1", "192.168.1.5", "::1", "fd00::5"]


def test_named_addresses_are_taken_once_beside_lan() -> None:
    assert chosen("127.0.0.1") == ["127.0.0.1"]
    assert chosen("lan", "fe80::1%eth0", "::1", host=[ip_address("127.0.0.1")]) == ["127.0.0.1", "::1", "fe80::1%eth0"]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "203.0.113.9", "2001:db8::1", "100.64.0.1", "fe80::1"])
def test_an_address_that_is_not_private_is_one_line(address: str) -> None:
    with pytest.raises(ConfigError) as error:
        chosen("lan", address)
    assert str(error.value).startswith("webui.address: ")
    assert "\n" not in str(error.value)


def test_a_host_without_a_private_address_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"webui\.address"):
        chosen("lan", host=[ip_address("203.0.113.9")])


@given(st.lists(st.ip_addresses()))
def test_whatever_addresses_a_host_has_only_private_ones_are_chosen(addresses: list[Address]) -> None:
    for address in plan(WebuiSettings(), [ip_address("127.0.0.1"), *addresses]):
        assert is_private(address)
        assert not address.is_global
        assert not address.is_unspecified


def test_this_host_has_loopback() -> None:
    assert {IPv4Address("127.0.0.1"), IPv6Address("::1")} & host_addresses()
