"""Adapters move into slots beside steps: none of these takes much longer, whatever is loaded."""

from __future__ import annotations

import pytest

from ranvier.adapters.placing import PIECES, SHARE
from ranvier.sim.adapters import simulated_weights
from ranvier.sim.runner import SimulatedRunner
from tests.sim.test_adapters import make, request

STEP_S = 0.010


class Timed(SimulatedRunner):
    """Each step and each piece of an adapter takes its time; it counts pieces between steps."""

    piece_s = 0.0

    def __init__(self, info):
        super().__init__(info)
        self.now, self.pieces, self.turns = 0.0, 0, []

    def now_s(self):
        return self.now

    def dispatch(self, plan):
        self.turns.append(self.pieces)
        self.pieces = 0
        self.now += STEP_S
        return super().dispatch(plan)

    def place_adapter(self, slot, adapter):
        for _ in super().place_adapter(slot, adapter):
            self.now += self.piece_s
            self.pieces += 1
            yield


def run(order, piece_s, count):
    """Pieces placed between steps, while 12 adapters of `count` pieces come beside long rows."""
    engine = make(order, slots=4, host_max=12)
    runner = engine.runner = engine._placing._runner = Timed(engine.runner.info)
    engine._clock = engine._placing._clock = runner
    runner.piece_s = piece_s
    for i in range(2):
        engine.admit(request(f"row{i}", [i + 1, 2, 3], max_tokens=90))
    for _ in range(4):
        engine.turn()
    runner.turns.clear()
    for i in range(12):
        engine.adapters.add(f"new{i}", f"new{i}", simulated_weights(f"new{i}v1", count))
        engine.adapters._loader.digests[f"new{i}"] = f"new{i}v1"
        engine.admit(request(f"own{i}", [4, 5], f"new{i}", max_tokens=3))
    ended = set()
    while engine.has_work and not {"row0", "row1"} & ended:
        for event in engine.turn():
            assert event.error is None
            ended |= {event.request_id} if event.finish_reason else set()
    assert "own5" in ended, "adapters come in while the rows run"
    return runner.turns


@pytest.mark.parametrize("order", ["plain", "overlapped"])
def test_no_step_waits_for_more_than_a_few_pieces(order):
    """Pieces that seem to take no time, as where a launch does not wait for the device."""
    turns = run(order, 0.0, 10)
    assert max(turns) == PIECES and sum(turns) >= 60


@pytest.mark.parametrize("order", ["plain", "overlapped"])
@pytest.mark.parametrize("piece_s", [0.0005, 0.001, 0.0015])
def test_no_step_is_longer_than_one_and_a_half_of_them(order, piece_s):
    turns = run(order, piece_s, 8)
    assert sum(turns) > 0
    # The usual turn grows with what is placed in it: SHARE of itself, and a piece that had begun.
    assert max(turns) * piece_s <= STEP_S * SHARE / (1 - SHARE) + piece_s
    assert STEP_S + max(turns) * piece_s <= 1.5 * STEP_S
