"""Runs containerd: `python -m containerd --run-dir RUN`."""

from bus.manager import main
from containerd.service import start

if __name__ == "__main__":
    main("containerd", start)
