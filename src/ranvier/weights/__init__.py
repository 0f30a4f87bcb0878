"""Checkpoint readers: safetensors, GGUF, demo models."""
