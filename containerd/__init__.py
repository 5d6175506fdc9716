"""Makes, guards and destroys ephemeral hardened systemd-nspawn containers; the only process that is root."""
