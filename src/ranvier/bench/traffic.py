"""When each request is due, from rate, burstiness and ramp: seconds from the start, ascending."""

from __future__ import annotations

import math

import numpy as np

from ranvier.bench.options import TrafficOptions, number

__all__ = ["schedule"]


def schedule(traffic: TrafficOptions, count: int, seed: int) -> list[float]:
    """Due times of `count` requests; the first is due at once where the rate is infinite.

    Gaps follow a gamma distribution of shape `burstiness` (1: exponential, a Poisson process). At a
    fixed rate the whole is scaled to last count / rate, so that runs of other seeds compare.
    """
    if traffic.ramp_up_strategy is None and math.isinf(traffic.rate):
        return [0.0] * count
    rng = np.random.default_rng(seed)
    shape = number("burstiness", traffic.burstiness)
    rates = [_rate(traffic, i, count) for i in range(count)]
    gaps = [1 / r if math.isinf(shape) else rng.gamma(shape, 1 / (r * shape)) for r in rates]
    due = np.cumsum(gaps)
    if traffic.ramp_up_strategy is None:
        due *= count / traffic.rate / due[-1]
    return [float(value) for value in due]


def _rate(traffic: TrafficOptions, index: int, count: int) -> float:
    if traffic.ramp_up_strategy is None:
        return traffic.rate
    first, last = traffic.ramp_up_start_rps or 1.0, traffic.ramp_up_end_rps or 1.0
    share = index / max(count - 1, 1)
    if traffic.ramp_up_strategy == "linear":
        return first + (last - first) * share
    return float(first * (last / first) ** share)
