"""Families that see pictures: their encoders and their text sides, as data."""
