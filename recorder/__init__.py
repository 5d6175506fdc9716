"""The recorder turns what relays and containerd left on disk into captures, and hands those to storage."""
