"""Readers of quantised Hugging Face folders: one module a convention, `table` chooses."""
