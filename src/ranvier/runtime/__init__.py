"""Loads an artifact and runs it; never traces."""
