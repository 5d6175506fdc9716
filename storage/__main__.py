"""Runs the storage manager: `python -m storage --run-dir DIR`."""

from __future__ import annotations

from bus.manager import main
from storage.service import start

if __name__ == "__main__":
    main("storage", start)
