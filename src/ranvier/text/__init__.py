"""Strings and ids: tokenizer, templates, streams."""
