"""Every error that crosses a process border, as a tree with stable codes.

    HoneypotError
    ├── ConfigError        config            the file is wrong; the message names the key
    ├── BusError
    │   ├── PeerDown       peer_down         nobody listened at the peer's socket by the deadline
    │   ├── PeerSlow       peer_slow         the peer was there but did not answer by the deadline
    │   ├── PeerNonsense   peer_nonsense     the peer's answer is not what the catalogue says
    │   └── Refused        (the peer's code) the peer answered that it won't or can't
    └── SpoolError         spool             a spool can't be written or is not a spool

Imported by everything; imports nothing.
"""

from __future__ import annotations


class HoneypotError(Exception):
    """The root: `code` is stable and for machines, the message is one line for people."""

    code = "error"


class ConfigError(HoneypotError):
    """The configuration can't be used; the message names the key and what would be right."""

    code = "config"


class BusError(HoneypotError):
    """A request did not end well."""

    code = "bus"


class PeerDown(BusError):
    """Nobody listened at the peer's socket by the deadline."""

    code = "peer_down"


class PeerSlow(BusError):
    """The peer listened but did not answer by the deadline."""

    code = "peer_slow"


class PeerNonsense(BusError):
    """The peer answered something the catalogue does not allow."""

    code = "peer_nonsense"


class Refused(BusError):
    """The peer answered with an error of its own, whose code this carries."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SpoolError(HoneypotError):
    """A spool can't be written, or what was read is not a spool."""

    code = "spool"
