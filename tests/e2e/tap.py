"""A tap on the attacker's side of the wire: tcpdump in his namespace, flows put together by tcpflow."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bus import spool
from bus.spool import Direction, Kind
from tests.e2e.world import Host, wait_for


@contextmanager
def tap(host: Host, pcap: Path) -> Iterator[None]:
    """Capture everything on a host's interface while the block runs, and what was on its way when it ended."""
    command = ["tcpdump", "-i", "e0", "-w", str(pcap), "-U", "--immediate-mode", "-Z", "root", "tcp"]
    dumping = subprocess.Popen(host.argv(*command), stderr=subprocess.PIPE)
    assert dumping.stderr
    try:
        while b"listening on" not in dumping.stderr.readline():
            assert dumping.poll() is None, "tcpdump ended"
        yield
        wait_for(lambda: _both_finished(pcap), "both FINs in the capture")
    finally:
        dumping.terminate()
        dumping.communicate()


def _both_finished(pcap: Path) -> bool:
    """Say whether the capture holds a FIN or RST of each side."""
    flags = "tcp[tcpflags] & (tcp-fin|tcp-rst) != 0 or (ip6 proto 6 and ip6[53] & 5 != 0)"
    lines = subprocess.run(["tcpdump", "-n", "-r", str(pcap), flags], capture_output=True, text=True, check=False)
    return len({line.split()[2] for line in lines.stdout.splitlines()}) > 1


def flows(pcap: Path, port: int) -> tuple[bytes, bytes]:
    """Give what went in to a port and what came out of it, as the client's side of the wire carried it."""
    directory = pcap.with_suffix(".flows")
    directory.mkdir()
    subprocess.run(["tcpflow", "-r", str(pcap), "-o", str(directory)], check=True, capture_output=True)
    suffix = f".{port:05d}"
    inbound = [path.read_bytes() for path in directory.iterdir() if path.name.endswith(suffix)]
    outbound = [path.read_bytes() for path in directory.iterdir() if f"{suffix}-" in path.name]
    assert (len(inbound), len(outbound)) == (1, 1), sorted(path.name for path in directory.iterdir())
    return inbound[0], outbound[0]


def stream(data: bytes) -> tuple[bytes, bytes]:
    """Give a stored stream's bytes in and out."""
    frames = [frame for frame in spool.frames(io.BytesIO(data)) if frame.kind is Kind.DATA]
    sides = (b"".join(f.payload for f in frames if f.direction is side) for side in Direction)
    return next(sides), next(sides)
