"""The configuration, everybody's health, pool targets, parked sockets, and the `honeypot` command line."""
