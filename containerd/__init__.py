"""Makes, guards and destroys ephemeral hardened systemd-nspawn containers; the only process of the honeypot that is root."""
