"""Llama 3.2 Vision's encoder does the work of a picture's tiles, and of one of padding."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.build.pack import pack_weights
from ranvier.build.programs import programs
from ranvier.build.vision.padding import with_stored_padding
from ranvier.models.table import resolve
from ranvier.nn.kernels.table import select
from ranvier.nn.vision.tower import Work
from ranvier.weights.checkpoint import open_checkpoint
from tests.parity.vision_cases import GOLDENS, pixels
from tests.parity.vision_model import sizes_of

LLAMA = Path(__file__).parents[1] / "data/configs/llama-3.2-11b-vision/config.json"
COMPUTED = {1: 2, 2: 3, 4: 4}
"""Tiles of a picture -> tiles that go through the towers."""


def encode_programs(spec):
    sizes = sizes_of(spec, "reference", "bfloat16")
    return {p.shape.tokens: p for p in programs(spec, sizes) if p.shape.family == "tiles"}


def products(jaxpr):
    """Multiplications of all contractions of a program, loops by their lengths."""
    total = 0
    for step in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", None) for value in step.params.values()]
        times = step.params.get("length", 1) if step.primitive.name == "scan" else 1
        total += times * sum(products(own) for own in inner if own is not None)
        if step.primitive.name == "dot_general":
            (summed, _), _ = step.params["dimension_numbers"]
            shape = step.invars[0].aval.shape
            total += math.prod(step.outvars[0].aval.shape) * math.prod(shape[i] for i in summed)
    return total


def test_work_of_the_11b_encoder_falls_with_the_tiles_of_a_picture():
    spec = resolve(json.loads(LLAMA.read_text()))
    encoder, found = spec.vision.encoder, {}
    for units, program in encode_programs(spec).items():
        assert encoder.computed(units) == COMPUTED[units]
        found[units] = products(jax.make_jaxpr(program.function)(*program.arguments).jaxpr)
    tower, keys = encoder.tower, 2 * len(spec.cross_before) * spec.kv_heads * spec.head_size
    linears = tower.hidden * (4 * tower.hidden + 2 * tower.intermediate)
    head = encoder.width * (keys + tower.hidden * (1 + len(encoder.keep)))
    for units, tiles in COMPUTED.items():
        patches = tiles * encoder.padded
        layer = patches * (linears + 2 * tower.hidden * patches)
        own = units * encoder.patches * head
        own += units * (encoder.patches - 1) * encoder.values * tower.hidden
        assert found[units] == (tower.layers + encoder.whole.layers) * layer + own
    assert found[1] / found[4] < 0.38
    assert found[2] / found[4] < 0.67


@pytest.fixture(scope="module")
def tiny():
    """An encoder whose tiles of padding are equal, and its weights."""
    checkpoint = open_checkpoint(GOLDENS / "mllama_tiles")
    spec = with_stored_padding(resolve(checkpoint.config), checkpoint)
    packed = pack_weights(checkpoint, spec, "float32", "reference")
    return spec, {n: jnp.asarray(a) for n, a in packed if n.startswith("vision.")}


def encoded(spec, weights, units, ratio, count, **changes):
    encoder = dataclasses.replace(spec.vision.encoder, **changes)
    tiles = pixels(7, (count, encoder.patches - 1, encoder.values))
    padding = np.zeros((units - count, *tiles.shape[1:]), np.float32)
    inputs = {
        "pixels": jnp.asarray(np.concatenate([tiles, padding])),
        "ratio": jnp.asarray([ratio], jnp.int32), "count": jnp.asarray([count], jnp.int32),
    }  # fmt: skip
    run = jax.jit(lambda w, i: encoder.encode(Work(w, select("reference")), i))
    return np.asarray(run(weights, inputs))[:count]


@pytest.mark.parametrize(("ratio", "count"), [(1, 1), (2, 2), (3, 3), (8, 4)])
def test_one_tile_of_padding_stands_for_all(tiny, ratio, count):
    spec, weights = tiny
    wanted = encoded(spec, weights, 4, ratio, count, has_equal_padding=False)
    for units in (u for u in spec.vision.units if u >= count):
        found = encoded(spec, weights, units, ratio, count)
        assert np.abs(found - wanted).max() <= 2e-5, units


def test_padding_is_seen(tiny):
    spec, weights = tiny
    encoder, wanted = spec.vision.encoder, encoded(spec, weights, 1, 1, 1)
    blind = {
        name: dataclasses.replace(tower, see=lambda _, key: jnp.where(key > 0, -1e30, 0.0))
        for name, tower in (("tower", encoder.tower), ("whole", encoder.whole))
    }
    assert np.abs(encoded(spec, weights, 1, 1, 1, **blind) - wanted).max() > 1e-2


def test_tiles_that_a_checkpoint_tells_apart_are_all_computed():
    checkpoint = open_checkpoint(GOLDENS / "mllama")
    spec = with_stored_padding(resolve(checkpoint.config), checkpoint)
    assert spec.vision.units == (4,)
    assert not spec.vision.encoder.has_equal_padding
    alone = resolve(checkpoint.config)
    assert alone.vision.units == (1, 2, 4)  # what is published, where only a config is known


def test_a_config_alone_is_taken_for_what_is_published(tmp_path):
    config = (GOLDENS / "mllama/config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    spec = resolve(json.loads(config))
    assert with_stored_padding(spec, open_checkpoint(tmp_path)) == spec
