"""A real zygote and relays between a test's own attacker and service: both ends of the copy are in the test's hand.

The attach door is a thread that connects to the test's listening socket, as containerd would to a container's.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bus import descriptors
from bus.model import new_id, now
from bus.records import AttachReply, AttachRequest, ContainerFacts, Endpoint, Handoff, Identity
from bus.settings import Limits, Service, SessionLimits
from bus.spool import Direction, Ending, Frame, Kind, frames, load
from session.reports import Happened, Report, Sizes

DEADLINE_S = 20.0
CONTAINER = ContainerFacts(id="c" * 24, template="t", image="i")


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Await a condition; give its first true value."""
    until = time.monotonic() + deadline_s
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < until, f"waited in vain for {what}"
        pause.wait(0.01)
    return value


class Door:
    """An attach door at a path; `refusal` makes it say no, `mute` makes it hang up without an answer."""

    def __init__(self, path: Path, service: tuple[str, int]) -> None:
        self.requests: list[AttachRequest] = []
        self.refusal: str | None = None
        self.mute = False
        self._closed = False
        self._service = service
        self._server = descriptors.listen(path)
        self._stop, self._stopper = os.pipe()
        self._kept: dict[int, socket.socket] = {}
        self._thread = threading.Thread(target=self._serve, name="door")
        self._thread.start()

    @property
    def kept(self) -> int:
        return len(self._kept)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        os.write(self._stopper, b"x")
        self._thread.join()
        for sock in (self._server, *self._kept.values()):
            sock.close()
        descriptors.close_all([self._stop, self._stopper])

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        poll.register(self._server, select.POLLIN)
        while True:
            for ready, _ in poll.poll():
                if ready == self._stop:
                    return
                if ready == self._server.fileno():
                    connection, _ = self._server.accept()
                    self._kept[connection.fileno()] = connection
                    poll.register(connection, select.POLLIN)
                elif not self._answer(self._kept[ready]):
                    poll.unregister(ready)
                    self._kept.pop(ready).close()

    def _answer(self, connection: socket.socket) -> bool:
        with suppress(ConnectionError):
            message, _ = descriptors.receive(connection)
            if not message or self.mute:
                return False
            request = AttachRequest.unpack(message)
            self.requests.append(request)
            if self.refusal:
                descriptors.send(connection, AttachReply(error=self.refusal).pack())
            elif request.container:
                descriptors.send(connection, AttachReply(container=CONTAINER).pack())
            else:
                with socket.create_connection(self._service) as upstream:
                    descriptors.send(connection, AttachReply(container=CONTAINER).pack(), [upstream.fileno()])
            return True
        return False


@dataclass
class Connection:
    """One attacker's connection that was handed over."""

    id: str
    attacker: socket.socket
    link: socket.socket
    spool: Path

    @property
    def over(self) -> bool:
        """Say whether the relay has let go."""
        return bool(select.select([self.link], [], [], 0)[0])

    def ending(self) -> Ending:
        """Await the end as the spool has it."""
        wait_for((self.spool / "end.json").exists, "end.json")
        entry = load(self.spool)
        assert entry
        assert entry.ending
        return entry.ending

    def frames(self) -> list[Frame]:
        with (self.spool / "stream").open("rb") as stream:
            return list(frames(stream))

    def recorded(self, direction: Direction) -> bytes:
        return b"".join(frame.payload for frame in self.frames() if frame.direction is direction)

    def marks(self) -> list[tuple[Direction, Kind]]:
        return [(frame.direction, frame.kind) for frame in self.frames() if frame.kind is not Kind.DATA]

    def relay(self) -> int:
        """Await the opening; tell the relay's process."""
        wait_for((self.spool / "session.json").exists, "session.json")
        entry = load(self.spool)
        assert entry
        return entry.opening.relay.pid


@dataclass
class Field:
    """Everything around the relays."""

    root: Path
    spool: Path
    zygote: subprocess.Popen[bytes]
    control: socket.socket
    service: socket.socket
    undo: ExitStack
    door: Door | None = None
    said: list[Report] = field(default_factory=list)

    def open_door(self) -> Door:
        self.door = Door(self.root / "attach", self.service.getsockname())
        self.undo.callback(self.door.close)
        return self.door

    def close_door(self) -> None:
        assert self.door
        self.door.close()
        self.door = None

    def connect(self, **settings: Any) -> Connection:
        """Connect an attacker and hand the other end over."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            attacker = socket.create_connection(server.getsockname())
            client, peer = server.accept()
        self.undo.callback(attacker.close)
        attacker.settimeout(DEADLINE_S)
        here = client.getsockname()
        service = Service(
            name="s",
            port=22,
            container_template="t",
            session=SessionLimits(**settings.get("session", {})),
            limits=Limits(**settings.get("limits", {})),
        )
        identity = Identity(
            id=new_id(),
            sensor="x",
            service="s",
            protocol="tcp",
            source=Endpoint(address=peer[0], port=peer[1]),
            destination=Endpoint(address=here[0], port=here[1]),
            started_at=now(),
        )
        handoff = Handoff(
            identity=identity,
            service=service,
            min_free_mib=settings.get("min_free_mib", 0),
            configuration="d",
        )
        link = descriptors.connect(self.root / "handoff")
        self.undo.callback(link.close)
        with client:
            descriptors.send(link, handoff.pack(), [client.fileno()])
        return Connection(identity.id, attacker, link, self.spool / identity.id)

    def accept(self) -> socket.socket:
        """Take the connection that the door made to the service."""
        far, _ = self.service.accept()
        self.undo.callback(far.close)
        far.settimeout(DEADLINE_S)
        return far

    def pair(self, **settings: Any) -> tuple[Connection, socket.socket]:
        """Give one session with both its ends."""
        connection = self.connect(**settings)
        return connection, self.accept()

    def reports(self) -> list[Report]:
        """Give everything the zygote has passed on so far."""
        with suppress(BlockingIOError):
            while self.control.fileno() >= 0 and (message := self.control.recv(65536)):
                self.said.append(Report.model_validate_json(message))
        return self.said

    def relays(self) -> set[int]:
        return {int(pid) for pid in children(self.zygote.pid)}

    def idle(self) -> set[int]:
        """Tell which relays are idle, as they say themselves."""
        last = {report.relay: report.what for report in self.reports()}
        return {pid for pid, what in last.items() if what is Happened.IDLE}


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def start_zygote(root: Path, directory: Path, handoff: socket.socket) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a zygote as the manager does."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        zygote = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "session.zygote"),
                *("--handoff", str(handoff.fileno()), "--control", str(theirs.fileno())),
                *("--spool", str(directory), "--door", str(root / "attach")),
            ],
            pass_fds=(handoff.fileno(), theirs.fileno()),
            start_new_session=True,
        )
    control.setblocking(False)
    return zygote, control


@contextmanager
def battlefield(root: Path, directory: Path | None = None, spare: int = 4, total: int = 200) -> Iterator[Field]:
    """Run a zygote; everything it forked is gone afterwards."""
    directory = directory or root / "spool"
    directory.mkdir(exist_ok=True)
    with ExitStack() as undo:
        handoff = undo.enter_context(descriptors.listen(root / "handoff"))
        zygote, control = start_zygote(root, directory, handoff)
        service = undo.enter_context(socket.create_server(("127.0.0.1", 0), backlog=200))
        service.settimeout(DEADLINE_S)
        control.send(Sizes(spare=spare, total=total).model_dump_json().encode())
        made = Field(root, directory, zygote, control, service, undo)
        try:
            yield made
        finally:
            control.close()
            undo.close()
            with suppress(subprocess.TimeoutExpired):
                zygote.wait(5)
            zygote.kill()
            zygote.wait()
            _end(root)


def _end(root: Path) -> None:
    """Kill what relays of this field are left, known or not."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(ProcessLookupError, FileNotFoundError):
            if f"{root}/".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
