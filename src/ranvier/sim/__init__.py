"""A simulated device for tests of the engine."""
