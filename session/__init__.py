"""Session: a process a connection that records, then forwards; a zygote keeps spare ones; a manager speaks for them."""
