"""Matrix products with packed weights: reference in JAX, kernels for the CPU."""
