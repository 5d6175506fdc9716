"""The session manager's process. Started by supervisord; everything is in `session.manager`."""

from bus.manager import main
from session.manager import start

main("session", start)
