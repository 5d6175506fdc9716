"""Runs the recorder: `python -m recorder --run-dir DIR`."""

from __future__ import annotations

from bus.manager import main
from recorder.service import start

if __name__ == "__main__":
    main("recorder", start)
