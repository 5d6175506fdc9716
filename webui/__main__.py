"""Runs the web interface: `python -m webui --run-dir DIR`."""

from __future__ import annotations

from bus.manager import main
from webui.service import start

if __name__ == "__main__":
    main("webui", start)
