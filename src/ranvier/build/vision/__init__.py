"""Programs of models that see pictures."""
