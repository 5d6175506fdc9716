"""The zygote: preloads what relays need, forks them ahead of need and buries them. Started by the manager (`fleet`).

Owns the writing end of the life pipe, by which relays know that it lives, and the reading end of their reports, which
it passes to the manager. Single-threaded; never accepts, so it never holds an attacker's descriptor; never imports
ZeroMQ or asyncio. It ends when the manager does (control connection at its end).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from session.herd import Herd
from session.relay import Inherited, run
from session.reports import Happened, Lines, Report, Sizes

_PIPE_BYTES = 1 << 20
_UNSAID_MAX = 10000  # reports kept for a manager that does not listen; then the oldest go


class Zygote:
    """Forks, listens and buries, until the manager is gone."""

    def __init__(self, handoff: socket.socket, control: socket.socket, spool: Path, door: Path) -> None:
        self._control = control
        self._herd = Herd(Sizes(spare=0, total=0))
        self._lines = Lines()
        self._unsaid: deque[bytes] = deque(maxlen=_UNSAID_MAX)
        self._life, self._life_holder = os.pipe2(os.O_CLOEXEC)
        self._reports, self._reports_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._inherited = Inherited(handoff, self._life, self._reports_in, spool, door)
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(self._reports, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def live(self) -> int:
        """Serve until the manager hangs up; give the exit status."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        heed: dict[int, Callable[[], bool]] = {
            self._control.fileno(): self._obey,
            self._reports: self._listen,
            self._wake: self._bury,
        }
        while True:
            for descriptor in self._ready(list(heed)):
                if not heed[descriptor]():
                    self._forward()
                    return 0 if descriptor == self._control.fileno() else 1
            self._balance()
            self._forward()

    def _ready(self, descriptors: list[int]) -> list[int]:
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        if self._unsaid:
            poll.register(self._control, select.POLLIN | select.POLLOUT)
        told = dict(poll.poll())
        return [fd for fd in descriptors if told.get(fd, 0) & ~select.POLLOUT]

    def _obey(self) -> bool:
        """Take new sizes; False at the manager's end."""
        try:
            message = self._control.recv(4096)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        if message:
            self._herd.sizes = Sizes.model_validate_json(message)
        return bool(message)

    def _listen(self) -> bool:
        """Take relays' reports, for itself and for the manager."""
        with contextlib.suppress(BlockingIOError):
            while True:
                for line in self._lines.feed(os.read(self._reports, 65536)):
                    self._herd.heard(Report.model_validate_json(line))
                    self._unsaid.append(line)
        return True

    def _bury(self) -> bool:
        """Reap relays that ended; False if one could not even start."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        self._listen()  # last words first
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if self._herd.died(pid):
                    return False
                self._unsaid.append(Report(relay=pid, what=Happened.DIED).model_dump_json().encode())
        return True

    def _forward(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._unsaid:
                self._control.send(self._unsaid[0])
                self._unsaid.popleft()

    def _balance(self) -> None:
        """Fork what is lacking, retire what is too much."""
        for _ in range(self._herd.lacking):
            pid = os.fork()
            if pid == 0:
                self._become_relay()
            self._herd.forked(pid)
        for pid in self._herd.surplus():
            os.kill(pid, signal.SIGHUP)

    def _become_relay(self) -> None:
        """Leave everything of the zygote's behind and be a relay; never returns."""
        status = 1
        try:
            os.setsid()
            for descriptor in (self._life_holder, self._reports, self._wake, self._waker, self._control.fileno()):
                os.close(descriptor)
            null = os.open(os.devnull, os.O_RDWR)
            for standard in range(3):
                os.dup2(null, standard)
            if null > sys.stderr.fileno():
                os.close(null)
            status = run(self._inherited)
        finally:
            os._exit(status)


def main() -> None:
    """Run a zygote on inherited descriptors."""
    parser = argparse.ArgumentParser(prog="session.zygote")
    parser.add_argument("--handoff", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the connection to the manager")
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--door", type=Path, required=True)
    given = parser.parse_args()
    os.umask(0o007)
    with socket.socket(fileno=given.handoff) as handoff, socket.socket(fileno=given.control) as control:
        handoff.setblocking(False)
        control.setblocking(False)
        zygote = Zygote(handoff, control, given.spool, given.door)
        gc.collect()
        gc.freeze()  # the collector must not touch, and so copy, pages shared with every relay
        status = zygote.live()
    raise SystemExit(status)


if __name__ == "__main__":
    main()
