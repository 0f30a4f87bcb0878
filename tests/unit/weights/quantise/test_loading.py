"""Quantising while loading: which modules, how, and what is left as it was."""

from __future__ import annotations

import numpy as np
import pytest

from ranvier.core.errors import ConfigError
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.quantise.loading import QuantisingCheckpoint
from ranvier.weights.quantise.scheme import parse_scheme
from ranvier.weights.quantise.selection import select, with_one_group

LAYER = "model.layers.0."
TIED = [
    "model.embed_tokens.weight", "model.norm.weight", f"{LAYER}input_layernorm.weight",
    f"{LAYER}self_attn.q_proj.weight", f"{LAYER}self_attn.q_proj.bias",
    f"{LAYER}mlp.down_proj.weight", "model.layers.11.mlp.down_proj.weight",
]  # fmt: skip
INT4 = parse_scheme("int4")


def test_all_linears_of_the_layers_and_the_head_are_chosen():
    found = select(TIED, INT4, with_head=True)
    assert {name: scheme.name for name, scheme in found.items()} == {
        "model.embed_tokens.weight": "int8", f"{LAYER}self_attn.q_proj.weight": "int4",
        f"{LAYER}mlp.down_proj.weight": "int4", "model.layers.11.mlp.down_proj.weight": "int4",
    }  # fmt: skip


def test_the_head_s_activations_have_a_scale_a_group_where_they_have_eight_bits():
    head = select(TIED, parse_scheme("int8-dynamic"), with_head=True)[TIED[0]]
    assert (head.activation_bits, head.activation_group) == (8, 64)
    head = select(TIED, parse_scheme("int8"), with_head=True)[TIED[0]]
    assert (head.activation_bits, head.activation_group) == (16, 0)


def test_an_untied_embedding_stays_dense():
    found = select([*TIED, "lm_head.weight"], INT4, with_head=True)
    assert found["lm_head.weight"].name == "int8"
    assert "model.embed_tokens.weight" not in found


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("lm_head", {"model.embed_tokens.weight"}),
        ("down_proj", {f"{LAYER}mlp.down_proj.weight", "model.layers.11.mlp.down_proj.weight"}),
        ("model.layers.0", {f"{LAYER}self_attn.q_proj.weight", f"{LAYER}mlp.down_proj.weight"}),
        ("layers.1", None),
        (r"re:.*layers\.(0|1)\..*q_proj", {f"{LAYER}self_attn.q_proj.weight"}),
    ],
)
def test_patterns_leave_modules_out(pattern, left):
    if left is None:  # layers.1 is no part of layers.11's path
        with pytest.raises(ConfigError, match=f"{pattern!r} matches no module"):
            select(TIED, INT4, [pattern], with_head=True)
        return
    all_of = set(select(TIED, INT4, with_head=True))
    assert all_of - set(select(TIED, INT4, [pattern], with_head=True)) == left


def test_a_broken_expression_is_a_typed_error():
    with pytest.raises(ConfigError, match="re:"):
        select(TIED, INT4, ["re:("], with_head=True)


def test_a_folder_is_quantised_while_it_is_read(tiny_model):
    inner = open_checkpoint(tiny_model)
    found = QuantisingCheckpoint(inner, parse_scheme("int8"), ["down_proj"])
    name = f"{LAYER}self_attn.q_proj.weight"
    tensor = found.read_quantised(name)
    assert (tensor.bits, tensor.group) == (8, inner.shape(name)[1])
    assert np.array_equal(found.read(name), tensor.values())
    assert found.read_quantised(f"{LAYER}mlp.down_proj.weight") is None
    assert np.array_equal(
        found.read(f"{LAYER}mlp.down_proj.weight"), inner.read(f"{LAYER}mlp.down_proj.weight")
    )
    assert found.quantisation == "int8 but down_proj"
    assert found.revision == inner.revision


def test_a_file_has_one_group_for_all():
    schemes = select(TIED, parse_scheme("int4-g128"), with_head=False)
    inputs = {name: 192 if "down_proj" in name else 1024 for name in schemes}
    assert {s.group for s in with_one_group(schemes, inputs).values()} == {64}
    int8 = select(TIED, parse_scheme("int8"), with_head=False)
    assert with_one_group(int8, inputs) == int8
