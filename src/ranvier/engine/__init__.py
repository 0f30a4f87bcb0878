"""The loop, and the offline interface on it."""
