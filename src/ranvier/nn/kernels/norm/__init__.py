"""RMS norm over rows."""
