"""Pictures: fetched, decoded and made into what an encoder takes; no jax, no torch."""
