"""The listener's process. Started by supervisord; everything is in `listener.manager`."""

from bus.manager import main
from listener.manager import start

main("listener", start)
