"""Quantisers: from a dense matrix to a QuantTensor, by rounding or with error compensation."""
