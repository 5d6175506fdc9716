"""Webui shows what the other managers know, to the local network only; it owns no data."""
