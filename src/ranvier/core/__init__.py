"""Host-side values that every other part speaks in; no jax, no I/O."""
