"""Real clients reach real services, and what is stored is what was on the wire."""

from __future__ import annotations

import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import containerd
from tests.e2e.tap import flows, stream, tap
from tests.e2e.world import SENSOR_V4, SENSOR_V6, World

RECIPES = Path(containerd.__file__).parent / "recipes"
SSH = tomllib.loads((RECIPES / "ssh-template" / "recipe.toml").read_text())
PASSWORD = next(user["password"] for user in SSH["users"] if user["name"] == "root")


@pytest.mark.parametrize(("address", "target"), [("198.51.100.10", SENSOR_V4), ("2001:db8:bad::10", SENSOR_V6)])
def test_an_ssh_session_is_stored_byte_for_byte(running: World, tmp_path: Path, address: str, target: str) -> None:
    """A login with the template's password runs a command; the stored stream equals a tap on the client's wire."""
    attacker = running.attacker(address)
    with tap(attacker, tmp_path / "ssh.pcap"):
        done = attacker.ssh("echo left > /root/left; cat /root/left; id -un", password=PASSWORD, target=target)
    assert (done.stdout, done.returncode) == (b"left\nroot\n", 0), done.stderr
    (session,) = running.stored(1, source=address)
    assert session["service"] == "fake-ssh"
    assert session["source"]["address"] == address
    assert session["destination"] == {"address": target, "port": 22}
    assert session["end_reason"] == "closed"
    assert session["container"]["template"] == "ssh-template"
    assert session["started_at"] < session["ended_at"]
    on_the_wire = flows(tmp_path / "ssh.pcap", 22)
    assert stream(running.blob(session["stream"]["sha256"])) == on_the_wire
    assert (session["bytes_in"], session["bytes_out"]) == tuple(map(len, on_the_wire))


def test_a_web_page_is_fetched_and_stored_byte_for_byte(running: World, tmp_path: Path) -> None:
    """`curl` gets the template's page; the stored stream equals a tap on the client's wire."""
    attacker = running.attacker("198.51.100.20")
    with tap(attacker, tmp_path / "http.pcap"):
        done = attacker.run("curl", "-sS", "-i", f"http://{SENSOR_V4}/")
    assert b"200 OK" in done.stdout, done.stderr
    assert b"Server: nginx" in done.stdout
    (session,) = running.stored(1, source="198.51.100.20")
    assert session["service"] == "fake-http"
    assert stream(running.blob(session["stream"]["sha256"])) == flows(tmp_path / "http.pcap", 80)


def test_the_service_sees_the_attackers_own_address_and_port(running: World) -> None:
    """In the container `ss`, sshd's environment and log, and nginx's log show the attacker, and nobody else."""
    attacker = running.attacker("198.51.100.30")
    done = attacker.ssh("echo $SSH_CLIENT; ss -Htn; cat /var/log/auth.log", password=PASSWORD)
    client, *rest = done.stdout.decode().splitlines()
    (session,) = running.stored(1, source="198.51.100.30", service="fake-ssh")
    peer = f"{session['source']['address']}:{session['source']['port']}"
    assert client.split()[:2] == peer.split(":")
    connections = [line for line in rest if line.startswith("ESTAB")]
    assert [line.split()[4] for line in connections] == [peer]
    accepted = [line for line in rest if "Accepted password for root" in line]
    assert [line for line in accepted if f"from {client.split()[0]} port {client.split()[1]}" in line] == accepted != []

    attacker.run("curl", "-sS", f"http://{SENSOR_V4}/")
    running.stored(1, source="198.51.100.30", service="fake-http")
    (web,) = [
        c for c in running.ask("containers") if c["source"] == "198.51.100.30" and "http" in c["container"]["template"]
    ]
    access = Path(f"/proc/{web['leader_pid']}/root/var/log/nginx/access.log").read_text()
    assert {line.split()[0] for line in access.splitlines()} == {"198.51.100.30"}


def test_nothing_of_the_host_answers_in_the_container(running: World) -> None:
    """From inside, the gateway and the world stay silent, and no process but the container's own is seen."""
    attacker = running.attacker("198.51.100.40")
    probe = "timeout 3 bash -c 'exec 3<>/dev/tcp/192.0.2.1/80'; echo $?; ps -e -o comm=; ip -o link"
    lines = attacker.ssh(probe, password=PASSWORD).stdout.decode().splitlines()
    assert lines[0] == "124"
    assert not {"python3", "systemd-nspawn", "supervisord"} & set(lines)
    assert sorted(line.split(": ")[1].split("@")[0] for line in lines if ": <" in line) == ["eth0", "lo"]


def test_the_same_address_finds_its_files_and_another_does_not(running: World) -> None:
    """A source keeps its container, across connections; another source gets another."""
    first, second = running.attacker("198.51.100.50"), running.attacker("198.51.100.51")
    assert first.ssh("echo mine > /root/mine", password=PASSWORD).returncode == 0
    assert first.ssh("cat /root/mine", password=PASSWORD).stdout == b"mine\n"
    assert second.ssh("cat /root/mine", password=PASSWORD).returncode == 1
    mine = running.stored(2, source="198.51.100.50")
    other = running.stored(1, source="198.51.100.51")
    assert len({session["container"]["id"] for session in mine}) == 1
    assert mine[0]["container"]["id"] != other[0]["container"]["id"]


def test_services_of_one_template_share_a_sources_container(fresh: World) -> None:
    """What an attacker leaves by one port he finds by another, and a connection from the sensor itself works too."""
    second = '[[service]]\nname = "second-ssh"\nport = 2022\ncontainer_template = "ssh-template"\n'
    fresh.config.write_text(fresh.config.read_text() + second)
    fresh.up()
    attacker = fresh.attacker("198.51.100.7")
    assert attacker.ssh("echo one > /root/one", password=PASSWORD).returncode == 0
    assert attacker.ssh("cat /root/one", password=PASSWORD, port=2022).stdout == b"one\n"
    assert len({session["container"]["id"] for session in fresh.stored(2)}) == 1
    seen = fresh.sensor.ssh("echo $SSH_CLIENT", password=PASSWORD, target="127.0.0.1").stdout.decode()
    assert seen.startswith("192.168."), seen
    assert fresh.stored(1, source="127.0.0.1")[0]["source"]["address"] == "127.0.0.1"


def test_half_close_passes_through(running: World) -> None:
    """A client that has finished sending still gets its answer."""
    attacker = running.attacker("198.51.100.60")
    request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 20 nc -N 203.0.113.80 80"
    assert b"200 OK" in attacker.run("bash", "-c", request).stdout


def test_fifty_addresses_at_once_get_fifty_containers(running: World) -> None:
    """50 different addresses at once: nothing lost, none refused."""
    addresses = [f"198.51.100.{n}" for n in range(100, 150)]
    crowd = running.attacker(*addresses)
    with ThreadPoolExecutor(50) as pool:
        done = list(
            pool.map(
                lambda a: crowd.ssh(f"echo {a} > /root/who; cat /root/who", password=PASSWORD, source=a, timeout_s=110),
                addresses,
            )
        )
    assert [d.stdout.decode().strip() for d in done] == addresses, {d.stderr for d in done}
    sessions = [session for address in addresses for session in running.stored(1, source=address)]
    assert len({session["container"]["id"] for session in sessions}) == 50
    assert {session["end_reason"] for session in sessions} == {"closed"}
