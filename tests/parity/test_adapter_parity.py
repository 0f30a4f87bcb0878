"""Adapters that PEFT wrote give the tokens that PEFT gives: patterns, rsLoRA, all linears.

Goldens: tests/parity/make_adapter_goldens.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.numerics.isa import NEEDS_KERNELS
from tests.numerics.lora_device import Device, model_of

pytestmark = NEEDS_KERNELS

ADAPTERS = Path(__file__).parent / "adapters"
FAMILIES = sorted({path.name.split("-")[0] for path in ADAPTERS.iterdir()})


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_peft(family, tmp_path):
    device = Device(model_of(tmp_path, family), tmp_path / "artifacts", rank_max=8)
    folders = sorted(ADAPTERS.glob(f"{family}-*"))
    assert folders
    for slot, folder in enumerate(folders, 1):
        golden = np.load(folder / "golden.npz")
        device.place(slot, folder)
        prompt, count = golden["ids"].tolist(), len(golden["tokens"])
        ((tokens, logprobs),) = device.generate([(prompt, slot)], count)
        assert tokens == golden["tokens"].tolist()
        np.testing.assert_allclose(logprobs, golden["logprobs"], atol=1e-4)
    device.runner.close()
