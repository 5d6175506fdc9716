"""Where everything is: every path of an instance, derived from its settings. The one door to paths."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

from bus.errors import ConfigError
from bus.settings import GlobalSettings

MANAGERS = ("controller", "listener", "session", "containerd", "recorder", "storage", "webui")
_SOCKET_PATH_MAX = 107  # sun_path less its NUL, unix(7)


@dataclass(frozen=True)
class Layout:
    """An instance's directories; two instances with other directories share nothing."""

    run_dir: Path
    state_dir: Path
    log_dir: Path

    @classmethod
    def of(cls, settings: GlobalSettings) -> Layout:
        """Derive the layout; `ConfigError` where a socket's path would be too long for the kernel."""
        layout = cls(settings.run_dir.absolute(), settings.state_dir.absolute(), settings.log_dir.absolute())
        if len(str(layout.requests("containerd"))) > _SOCKET_PATH_MAX:
            raise ConfigError(f"global.run_dir: {settings.run_dir} is too long a path for sockets under it")
        return layout

    def requests(self, manager: str) -> Path:
        """Give the socket a manager answers commands on."""
        return self.run_dir / manager / "requests"

    def events(self, manager: str) -> Path:
        """Give the socket a manager publishes events on."""
        return self.run_dir / manager / "events"

    @property
    def handoff(self) -> Path:
        """SEQPACKET: the listener hands accepted connections to relays."""
        return self.run_dir / "session" / "handoff"

    @property
    def attach(self) -> Path:
        """SEQPACKET: relays ask containerd for a socket into a container."""
        return self.run_dir / "containerd" / "attach"

    @property
    def park(self) -> Path:
        """SEQPACKET: managers leave listening sockets with the controller."""
        return self.run_dir / "controller" / "park"

    @property
    def door(self) -> Path:
        """SEQPACKET: storage takes captures in and hands them out, by descriptor."""
        return self.run_dir / "storage" / "door"

    @property
    def supervisor(self) -> Path:
        """Supervisord's XML-RPC socket."""
        return self.run_dir / "supervisor.sock"

    @property
    def spool(self) -> Path:
        """One directory a session until storage has it."""
        return self.state_dir / "spool"

    @property
    def harvest(self) -> Path:
        """One directory a destroyed container until storage has it."""
        return self.state_dir / "harvest"

    @property
    def damaged(self) -> Path:
        """What can't be read, set aside; nobody removes it but a person."""
        return self.state_dir / "damaged"

    @property
    def blobs(self) -> Path:
        """Captured bytes by digest; storage's alone."""
        return self.state_dir / "blobs"

    @property
    def database(self) -> Path:
        """The embedded document store; storage's alone."""
        return self.state_dir / "db" / "honeypot.sqlite"

    @property
    def boot(self) -> Path:
        """What containers are started with: stage 1 and the compiled filter."""
        return self.state_dir / "boot"

    @property
    def templates(self) -> Path:
        """One directory a built template."""
        return self.state_dir / "templates"

    @property
    def containers(self) -> Path:
        """One directory a container."""
        return self.state_dir / "containers"

    @property
    def instance(self) -> str:
        """A short name for what this instance makes outside its directories (cgroups)."""
        return f"{zlib.crc32(str(self.state_dir).encode()):08x}"
