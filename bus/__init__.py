"""The ground every process stands on: contracts, messages over ZeroMQ, descriptors over Unix sockets. No broker."""
