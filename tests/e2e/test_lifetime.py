"""A container ends with its lifetime, is harvested, and leaves nothing; `down` leaves nothing at all."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.e2e.test_sessions import PASSWORD
from tests.e2e.world import World, processes, wait_for


def footprint(world: World) -> Counter[str]:
    """Count what a honeypot may leave behind: processes, mounts, namespaces, cgroups and sockets."""
    root = str(world.root)
    mounts = [
        line for line in Path("/proc/self/mounts").read_text().splitlines() if root in line and "/net/" not in line
    ]
    namespaces = subprocess.run(["lsns", "-n", "-o", "NS,TYPE"], capture_output=True, text=True, check=True).stdout
    cgroups = [p for p in Path("/sys/fs/cgroup").rglob("*honeypot*") if p.is_dir()]
    return Counter(
        processes=sum(root in command or "nspawn" in command for _, command in processes()),
        mounts=len(mounts),
        namespaces=len(namespaces.splitlines()),
        cgroups=len(cgroups),
        sockets=sum(path.is_socket() for path in (world.root / "run").rglob("*"))
        if (world.root / "run").exists()
        else 0,
    )


def test_after_its_lifetime_a_container_is_gone_and_its_harvest_holds_the_file(fresh: World) -> None:
    """The file an attacker left is in the stored harvest; the container's cgroups and mounts are gone."""
    fresh.configure(lifetime_s=2)
    fresh.up()
    attacker = fresh.attacker("198.51.100.7")
    assert (
        attacker.ssh("echo kept > /root/kept; rm /etc/motd; ln -s /etc/shadow /root/trap", password=PASSWORD).returncode
        == 0
    )
    (session,) = fresh.stored(1)
    container = session["container"]["id"]
    wait_for(lambda: container not in str(fresh.ask("containers")), "the container to end")
    assert not (fresh.root / "state" / "containers" / container).exists()
    assert container not in Path("/proc/self/mounts").read_text()
    assert not list(Path("/sys/fs/cgroup").rglob(f"*{container}*"))

    def harvested() -> Any:
        done = fresh.honeypot("bus", "call", "storage", "storage.container", f'{{"container": "{container}"}}')
        return json.loads(done.stdout) if done.returncode == 0 else None

    record = wait_for(harvested, "the harvest in storage")
    assert record["source"] == "198.51.100.7"
    assert record["sessions"] == [session["id"]]
    assert "etc/motd" in {path.lstrip("/") for path in record["deleted"]}
    with tarfile.open(fileobj=io.BytesIO(fresh.blob(record["harvest"]["sha256"]))) as tar:
        names = {name.lstrip("./"): name for name in tar.getnames()}
        kept = tar.extractfile(names["root/kept"])
        assert kept
        assert kept.read() == b"kept\n"
        assert tar.getmember(names["root/trap"]).issym()
        assert tar.getmember(names["root/kept"]).uid == 0
    assert fresh.attacker("198.51.100.8").ssh("true", password=PASSWORD).returncode == 0


def test_down_leaves_nothing(fresh: World) -> None:
    """Process, container, mount, namespace, cgroup, socket: as many after as before, with a session still open."""
    attacker = fresh.attacker("198.51.100.7")
    before = footprint(fresh)
    fresh.up()
    during = footprint(fresh)
    assert all(during[kind] > before[kind] for kind in during), during
    open_session = subprocess.Popen(
        attacker.argv("sshpass", "-p", PASSWORD, "ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o",
                      "UserKnownHostsFile=/dev/null", "root@203.0.113.80", "echo in; cat"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert open_session.stdout
    assert open_session.stdout.readline() == b"in\n"
    fresh.down()
    open_session.communicate(timeout=10)
    assert footprint(fresh) == before
    fresh.up()
    (session,) = fresh.stored(1)
    assert session["end_reason"] == "shutdown"
    fresh.down()
    assert footprint(fresh) == before
