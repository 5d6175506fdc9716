"""supervisord's XML-RPC over its Unix socket: state, start, stop and kill of the managers.

Called by the controller (restarts) and the command line (up, down). Blocking; an event loop calls it in a thread.
"""

from __future__ import annotations

import xmlrpc.client
from dataclasses import dataclass
from enum import IntEnum
from http.client import HTTPException
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import Faults, SupervisorTransport

from bus.errors import PeerDown, Refused


class State(IntEnum):
    """supervisord's states of a process."""

    STOPPED = 0
    STARTING = 10
    RUNNING = 20
    BACKOFF = 30
    STOPPING = 40
    EXITED = 100
    FATAL = 200
    UNKNOWN = 1000


@dataclass(frozen=True)
class Program:
    """One program as supervisord sees it; `pid` is 0 when it does not run."""

    name: str
    state: State
    pid: int
    problem: str


class Supervisor:
    """A hand on one supervisord; every failure is a `PeerDown` or a `Refused`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pid(self) -> int:
        """Tell supervisord's own process id."""
        return int(self._ask("getPID"))

    def programs(self) -> list[Program]:
        """Tell how every program is."""
        return [_program(info) for info in self._ask("getAllProcessInfo")]

    def program(self, name: str) -> Program:
        """Tell how one program is."""
        return _program(self._ask("getProcessInfo", name))

    def stop(self, name: str) -> None:
        """Stop a program and wait for its end; one that does not run is no error."""
        self._ask("stopProcess", name, True, forgive=(Faults.NOT_RUNNING,))

    def start(self, name: str) -> None:
        """Start a program; one that runs is no error."""
        self._ask("startProcess", name, False, forgive=(Faults.ALREADY_STARTED,))

    def kill(self, name: str) -> None:
        """Send SIGKILL, which a stopped process can't ignore either; supervisord starts it again."""
        self._ask("signalProcess", name, "KILL", forgive=(Faults.NOT_RUNNING,))

    def shutdown(self) -> None:
        """Have supervisord stop everything and end."""
        self._ask("shutdown", forgive=(Faults.SHUTDOWN_STATE,))

    def _ask(self, method: str, *arguments: object, forgive: tuple[int, ...] = ()) -> Any:
        transport = SupervisorTransport(serverurl=f"unix://{self._path}")
        try:
            proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode in forgive:
                return None
            raise Refused("supervisor", f"supervisord refused {method}: {fault.faultString}") from fault
        except (OSError, HTTPException, xmlrpc.client.Error) as error:
            raise PeerDown(f"supervisord is not running (nobody answers at {self._path})") from error
        finally:
            transport.close()


def _program(info: Any) -> Program:
    return Program(info["name"], State(info["state"]), info["pid"], info["spawnerr"] or info["description"])
