"""SmolLM2 in f32: tokens with adapters of ranks 1, 16 and 64 are those of the merged models."""

from __future__ import annotations

import numpy as np
import pytest

from ranvier.build.lora.form import linear_shapes
from ranvier.cli.wire import locate
from ranvier.models.table import resolve
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.lora.read import read_lora
from tests.numerics.isa import NEEDS_KERNELS
from tests.numerics.lora_device import Device, adapter_of

pytestmark = [pytest.mark.real, pytest.mark.timeout(900), NEEDS_KERNELS]

MODEL = "smollm2-135m"
PROMPTS = [[504, 2365, 6354, 16438, 27003], [19556, 28, 905, 314, 260, 3575, 282]]


class Merged:
    """A checkpoint whose linears have an adapter in them, in f32."""

    def __init__(self, checkpoint, lora):
        self._checkpoint, self._pairs = checkpoint, lora.pairs
        self.revision = lora.digest

    def __getattr__(self, name):
        return getattr(self._checkpoint, name)

    def read(self, name):
        array = self._checkpoint.read(name).astype(np.float32)
        pair = self._pairs.get(name.removesuffix(".weight"))
        return array if pair is None else array + pair.b @ pair.a


@pytest.mark.parametrize(("rank", "names"), [(1, None), (16, ("q_proj", "v_proj")), (64, None)])
def test_tokens_are_those_of_the_merged_model(rank, names, tmp_path):
    checkpoint = open_checkpoint(locate(MODEL))
    spec = resolve(checkpoint.config)
    folder = adapter_of(spec, tmp_path / "adapter", names, rank, scale=0.3)
    lora = read_lora(folder, linear_shapes(spec), 64)
    got = []
    for source, slots in ((checkpoint, 1), (Merged(checkpoint, lora), 0)):
        device = Device(source, tmp_path / "artifacts", slots=slots)
        if slots:
            device.place(1, folder)
            base = device.generate([(prompt, 0) for prompt in PROMPTS])
        got.append(device.generate([(prompt, slots) for prompt in PROMPTS]))
        device.runner.close()
    for i, ((tokens, logprobs), (wanted, expected)) in enumerate(zip(*got, strict=True)):
        assert tokens == wanted
        np.testing.assert_allclose(logprobs, expected, atol=2e-3)
        assert not np.allclose(logprobs, base[i][1], atol=1e-2)
