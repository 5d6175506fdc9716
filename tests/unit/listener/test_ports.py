"""Listening sockets: real ones, on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from bus.errors import ConfigError
from bus.settings import Config, GlobalSettings, Service
from listener.ports import Port, Ports, change, silence, wanted


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def port(number: int, address: str = "127.0.0.1") -> Port:
    return Port("s", ip_address(address), number)


def by_name(*ports: Port) -> dict[str, Port]:
    return {one.name: one for one in ports}


@pytest.fixture
def ports() -> Iterator[Ports]:
    """Give no ports yet."""
    made = Ports()
    yield made
    for sock in made.sockets.values():
        silence(sock)
    made.close()


def answers(number: int, address: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((address, number), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


def test_every_service_listens_on_every_address() -> None:
    config = Config(
        **{"global": GlobalSettings(bind_address=(ip_address("127.0.0.1"), ip_address("::1")))},
        service=tuple(Service(name=f"s{n}", port=n, container_template="t") for n in (22, 80)),
    )
    assert list(wanted(config)) == ["tcp 127.0.0.1 22", "tcp ::1 22", "tcp 127.0.0.1 80", "tcp ::1 80"]


def test_a_changed_set_closes_what_is_gone_and_keeps_the_very_socket_of_what_stays(ports: Ports) -> None:
    stays, goes, comes = (port(free_port()) for _ in range(3))
    ports.apply(by_name(stays, goes))
    kept = ports.sockets[stays.name]
    ports.apply(by_name(stays, comes))
    assert ports.sockets[stays.name] is kept
    assert [answers(one.number) for one in (stays, goes, comes)] == [True, False, True]


def test_a_port_in_use_is_named_in_one_line_and_nothing_changes(ports: Ports) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = port(other.getsockname()[1])
        stays, comes = port(free_port()), port(free_port())
        ports.apply(by_name(stays))
        with pytest.raises(ConfigError) as problem:
            ports.apply(by_name(comes, taken))
        assert str(problem.value) == (
            f"service s: port {taken.number} on 127.0.0.1 can't be bound: Address already in use"
        )
        assert list(ports.sockets) == [stays.name]
        assert [answers(one.number) for one in (stays, comes)] == [True, False]


def test_trying_out_binds_nothing_for_good(ports: Ports) -> None:
    comes = port(free_port())
    ports.try_out(by_name(comes))
    assert not ports.sockets
    assert not answers(comes.number)


def test_an_address_may_widen_to_the_wildcard_on_the_same_port(ports: Ports) -> None:
    number = free_port()
    narrow, wide = port(number), port(number, "0.0.0.0")
    ports.apply(by_name(narrow))
    ports.try_out(by_name(wide))
    ports.apply(by_name(wide))
    assert list(ports.sockets) == [wide.name]
    assert answers(number, "127.0.0.2")


def test_a_widening_that_fails_lets_the_old_socket_listen_again(ports: Ports) -> None:
    number = free_port()
    with socket.create_server(("127.0.0.3", number)):
        ports.apply(by_name(port(number)))
        with pytest.raises(ConfigError):
            ports.apply(by_name(port(number, "0.0.0.0")))
        assert answers(number)


def test_ipv6_and_ipv4_wildcards_share_a_port(ports: Ports) -> None:
    number = free_port()
    ports.apply(by_name(port(number, "0.0.0.0"), port(number, "::")))
    assert answers(number)
    assert answers(number, "::1")


def test_parked_sockets_are_used_if_wanted_and_silenced_if_not(ports: Ports) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        kept, dropped = port(one.getsockname()[1]), port(other.getsockname()[1])
        ports.start(by_name(kept), {kept.name: one.dup(), dropped.name: other.dup()})
        assert [answers(kept.number), answers(dropped.number)] == [True, False]


def test_a_change_says_what_is_to_be_bound_and_what_closed() -> None:
    difference = change(by_name(port(1), port(2)), by_name(port(2), port(3)))
    assert (difference.added, difference.removed) == ((port(3),), (port(1),))
