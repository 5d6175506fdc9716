"""The manager's hold on its zygote: starts it, tells it sizes, hears its reports. Used by `manager` alone.

The zygote lives exactly as long as the control connection: closing it, by whatever end of this process, ends the zygote
and every idle relay; relays with a session go on. Never restarts a zygote: its death is the manager's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bus import descriptors
from bus.errors import HoneypotError
from bus.layout import Layout
from session.reports import Report, Sizes

_END_S = 5.0


class ZygoteDied(HoneypotError):
    """The zygote is gone, and with it every relay to come."""

    code = "zygote_died"


class Fleet:
    """A running zygote."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self.pid = process.pid
        self._process = process
        self._control = control

    def resize(self, sizes: Sizes) -> None:
        """Say how many relays there are to be."""
        with contextlib.suppress(OSError):  # `reports` tells of a zygote that is gone
            self._control.send(sizes.model_dump_json().encode())

    async def reports(self) -> AsyncIterator[Report]:
        """Give every report; `ZygoteDied` at their end."""
        async for message, _ in descriptors.arrivals(self._control):
            yield Report.model_validate_json(message)
        raise ZygoteDied(f"the zygote (process {self.pid}) ended")


@asynccontextmanager
async def fleet(layout: Layout, handoff: socket.socket, sizes: Sizes) -> AsyncIterator[Fleet]:
    """Run a zygote for the context's time."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setblocking(False)
    with control:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "session.zygote"),
                *("--handoff", str(handoff.fileno()), "--control", str(theirs.fileno())),
                *("--spool", str(layout.spool), "--door", str(layout.attach)),
                pass_fds=(handoff.fileno(), theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        running = Fleet(process, control)
        running.resize(sizes)
        try:
            yield running
        finally:
            control.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await process.wait()
