"""Rows of a packed embedding."""
