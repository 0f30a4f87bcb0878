"""The form of an artifact's slots: sizes by hand, and the way through a manifest."""

from __future__ import annotations

import dataclasses
import json

from ranvier.weights.lora.form import AdapterForm, AdapterModule, form_of, stack_bytes, stack_shapes

QKV = (
    AdapterModule("model.layers.{}.self_attn.q_proj", "qkv", 40, 24, 0),
    AdapterModule("model.layers.{}.self_attn.v_proj", "qkv", 40, 8, 32),
)


def form(**changes):
    fields = {
        "kernels": "cpu", "dtype": "bfloat16", "layers": 3, "slots": 2, "rank_max": 8,
        "modules": QKV, **changes,
    }  # fmt: skip
    return AdapterForm(**fields)


def test_a_cpu_slot_has_room_for_every_module_at_the_largest_rank():
    # A: one tile of ranks x 64 padded inputs; B: two tiles and one tile of 8 ranks; bf16 pairs.
    assert form().slot_lines == 3 * ((32 + 2 * 4) + (32 + 1 * 4))
    shapes = stack_shapes(form())
    assert shapes["lora.blob"] == ((2, 1, 3 * 76 * 32), "bfloat16")
    assert shapes["lora.table"] == ((2, 3, 2, 3), "int32")
    assert stack_bytes(form()) == 2 * 3 * 76 * 64 + 4 * 2 * 3 * 2 * 3


def test_f32_takes_twice_the_lines():
    assert form(dtype="float32").slot_lines == 2 * form().slot_lines


def test_the_reference_has_two_arrays_a_fused_linear():
    shapes = stack_shapes(form(kernels="reference", dtype="float32"))
    assert shapes == {
        "lora.qkv.a": ((2, 3, 40, 16), "float32"),
        "lora.qkv.b": ((2, 3, 8, 32), "float32"),
    }


def test_a_large_slot_is_cut_into_pages():
    modules = (AdapterModule("model.layers.{}.mlp.down_proj", "down", 4096, 4096, 0),)
    (slots, pages, width), _ = stack_shapes(form(rank_max=64, layers=4, modules=modules))[
        "lora.blob"
    ]
    assert (slots, pages, 2 * width) == (2, 4, 2**20)


def test_a_form_survives_the_manifest():
    fields = json.loads(json.dumps(dataclasses.asdict(form())))
    assert form_of({"adapters": fields}) == form()
    assert form_of({}) is None
