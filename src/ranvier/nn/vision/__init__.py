"""Encoders of pictures as pure functions: patches or tiles in, features out."""
