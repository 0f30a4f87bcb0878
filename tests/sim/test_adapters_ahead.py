"""Adapters that waiting requests will need are read while others run."""

from __future__ import annotations

from ranvier.sim.adapters import simulated_weights
from tests.sim.test_adapters import make, request


def test_weights_are_read_before_their_turn_comes():
    """A slow disk costs those who come first a wait and the others next to none."""
    turns = []
    for slowness in (0, 12):
        engine = make(slots=4, host_max=12)
        names = [f"many{i}" for i in range(40)]
        loader = engine.adapters._loader
        loader.digests, loader._turns_max = {name: f"{name}v1" for name in names}, slowness
        for name in names:
            engine.adapters.add(name, name, simulated_weights(f"{name}v1", 3))
            engine.admit(request(name, [1, 2, 3], name, max_tokens=16))
        turns.append(0)
        while engine.has_work:
            engine.turn()
            turns[-1] += 1
    assert turns[1] <= 1.1 * turns[0], turns
