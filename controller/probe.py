"""Whether anybody listens at a Unix socket: the quick look before a question that would wait.

Called by the command line and by `desired.py`.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path


def nobody_at(path: Path) -> bool:
    """Say whether a socket is missing or dead."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR)
    return False
