"""The library of CPU kernels."""
