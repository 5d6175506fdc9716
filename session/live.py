"""Live sessions as the spool and the process table know them: whatever life of the manager began them.

Called by `manager`. Reads the spool and signals relays; never writes.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from bus import descriptors, spool
from bus.errors import SpoolError
from bus.process import open_pidfd
from bus.records import EndReason

log = logging.getLogger(__name__)

_SIGNALS = {EndReason.OPERATOR: signal.SIGUSR1, EndReason.SHUTDOWN: signal.SIGTERM}
END_REASONS = frozenset(_SIGNALS)


def live(directory: Path) -> Iterator[spool.Entry]:
    """Give every session that is not over, oldest first."""
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if (path / "end.json").exists():
            continue
        try:
            entry = spool.load(path)
        except SpoolError as error:
            log.warning("%s", error, extra={"session": path.name})
            continue
        if entry and not entry.ending and entry.opening.relay.alive:
            yield entry


def find(directory: Path, session: str) -> spool.Entry | None:
    """Give one live session."""
    return next((entry for entry in live(directory) if entry.path.name == session), None)


def end(entry: spool.Entry, reason: EndReason) -> None:
    """Tell a session's relay to end it; one that is gone already is no error."""
    pidfd = open_pidfd(entry.opening.relay)
    if pidfd is None:
        return
    try:
        if not (entry.path / "end.json").exists():  # else the relay may carry another session by now
            signal.pidfd_send_signal(pidfd, _SIGNALS[reason])
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


async def outlived(entry: spool.Entry) -> EndReason:
    """Wait for the process of a relay that takes no further session; tell how its session ended.

    A directory already sealed and removed had an end that is now only in the store: it counts as closed.
    """
    pidfd = open_pidfd(entry.opening.relay)
    if pidfd is not None:
        try:
            await descriptors.readable(pidfd)
        finally:
            os.close(pidfd)
    now = spool.load(entry.path)
    if now is None:
        return EndReason.CLOSED
    return now.ending.end_reason if now.ending else EndReason.TORN
