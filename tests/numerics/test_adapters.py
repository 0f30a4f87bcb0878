"""Tokens with an adapter are those of the merged model, in any mix, slot and order of events."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ranvier.build.lora.place import place_arguments, place_piece
from ranvier.cli.main import main
from ranvier.core.errors import AdapterError, DeviceError
from ranvier.weights.lora.form import AdapterForm, AdapterModule
from ranvier.weights.lora.pack import read_adapter
from tests.numerics.isa import NEEDS_KERNELS
from tests.numerics.lora_device import Device, adapter_of, model_of

pytestmark = NEEDS_KERNELS

PROMPTS = [[5, 9, 17, 33, 65, 120], [7, 8, 9, 150], [40, 30, 20, 10, 5]]
KINDS = [("llama", "cpu"), ("qwen2", "cpu"), ("qwen3", "cpu"), ("gemma3", "cpu"),
         ("llama", "reference")]  # fmt: skip


ADAPTERS = {
    "one": {"rank": 1, "names": ("q_proj", "v_proj")},
    "eight": {"rank": 8, "use_rslora": True, "fan_in_fan_out": True},
    "patterns": {"rank": 64, "alpha_pattern": {"down_proj": 16, r".*\.1\.mlp\.up_proj": 4}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def device(request, root):
    family, kernels = request.param
    model = model_of(root, family)
    device = Device(model, root / "artifacts", kernels)
    device.model = model
    device.adapters = {
        name: adapter_of(device.spec, root / f"{family}-{name}", seed=i, **options)
        for i, (name, options) in enumerate(ADAPTERS.items())
    }
    yield device
    device.runner.close()


def merged(device, root, name):
    """A runner of the merged model, without slots."""
    output = root / f"{device.model.name}-{name}-merged"
    if not output.exists():
        arguments = [str(device.model), str(device.adapters[name]), "--output", str(output)]
        assert main(["merge-lora", *arguments]) in (0, None)
    return Device(output, root / "artifacts", device.sizes.kernels, slots=0)


def same(got, want):
    assert got[0] == want[0]
    np.testing.assert_allclose(got[1], want[1], atol=2e-4)


def test_an_adapter_gives_the_tokens_of_the_merged_model(device, root):
    base = device.generate([(prompt, 0) for prompt in PROMPTS])
    for slot, name in enumerate(ADAPTERS, 1):
        assert device.place(slot, device.adapters[name]) >= 1
    for slot, name in enumerate(ADAPTERS, 1):
        whole = merged(device, root, name)
        want = whole.generate([(prompt, 0) for prompt in PROMPTS])
        whole.runner.close()
        got = device.generate([(prompt, slot) for prompt in PROMPTS])
        for i in range(len(PROMPTS)):
            same(got[i], want[i])
        assert [g[0] for g in got] != [b[0] for b in base], f"{name} changes nothing"


def test_a_mixed_batch_is_each_of_its_sequences_alone(device):
    for slot, name in enumerate(ADAPTERS, 1):
        device.place(slot, device.adapters[name])
    batch = [(PROMPTS[0], 1), (PROMPTS[0], 0), (PROMPTS[0], 2), (PROMPTS[1], 3)]
    mixed = device.generate(batch)
    for one, want in zip(batch, mixed, strict=True):
        (alone,) = device.generate([one])
        if device.sizes.kernels == "cpu":
            assert alone[0] == want[0] and np.array_equal(alone[1], want[1])
        else:
            same(alone, want)


def test_slots_are_replaced_and_emptied_without_a_compile(device):
    device.place(1, device.adapters["one"])
    device.place(2, device.adapters["eight"])
    first = device.generate([(PROMPTS[0], 1), (PROMPTS[0], 2)])
    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiles.append(name) if "compile" in name else None
    )
    try:
        pieces = device.runner.place_adapter(
            3, read_adapter(device.adapters["patterns"], device.form)
        )
        next(pieces)  # others go on between the pieces of a placement
        same(device.generate([(PROMPTS[0], 1)])[0], first[0])
        list(pieces)
        device.place(1, device.adapters["eight"])
        device.place(2, device.adapters["one"])
        swapped = device.generate([(PROMPTS[0], 2), (PROMPTS[0], 1)])
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiles
    for got, want in zip(swapped, first, strict=True):
        same(got, want)
    assert device.place(2, None) == 0
    if device.sizes.kernels == "cpu":
        emptied = device.generate([(PROMPTS[0], 2)])[0]
        same(emptied, device.generate([(PROMPTS[0], 0)])[0])


def test_a_slot_that_is_not_there_is_refused(device, root):
    for slot in (0, 4):
        with pytest.raises(DeviceError, match=f"no slot {slot}"):
            device.place(slot, device.adapters["one"])


def test_modules_may_be_fewer_than_the_model_has(root, tmp_path):
    model, modules = model_of(root, "llama"), ("v_proj",)
    small = Device(model, root / "artifacts", rank_max=8, adapter_modules=modules)
    base = small.generate([(PROMPTS[0], 0)])
    small.place(2, adapter_of(small.spec, tmp_path / "v", names=("v_proj",)))
    assert small.generate([(PROMPTS[0], 2)])[0][0] != base[0][0]
    with pytest.raises(AdapterError, match=r"Adapters may change: v_proj|no such linear"):
        small.place(1, adapter_of(small.spec, tmp_path / "q", names=("q_proj",)))
    small.runner.close()


def test_a_placement_writes_its_piece_alone():
    """XLA:CPU widens a bf16 stack to f32 around an update, unless it updates bits."""
    module = AdapterModule("{}.q", "o", 576, 576, 0)
    form = AdapterForm("cpu", "bfloat16", 30, 32, 16, (module,))
    lowered = jax.jit(place_piece, donate_argnums=1).lower(*place_arguments(form))
    text = lowered.compile().as_text()
    assert "may-alias" in text
    assert " convert(" not in text and " copy(" not in text
