"""Listener: the ports, who is admitted and when, and the one moment at which a session gets its identity."""
