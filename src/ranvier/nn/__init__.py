"""Pure functions on arrays, and the kernels of each target."""
