"""Sampling over the vocabulary."""
