"""One folder per operator: a reference in JAX and one file per target."""
