"""HTTP itself: bodies, identity, errors, logs, event streams."""
