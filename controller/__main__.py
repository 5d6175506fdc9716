"""Runs the controller; the configuration file is named by HONEYPOT_CONFIG. Started by supervisord."""

from __future__ import annotations

from bus.manager import main
from controller.desired import fetch
from controller.service import start

if __name__ == "__main__":
    main("controller", start, fetch)
