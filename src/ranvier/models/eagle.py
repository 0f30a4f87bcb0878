"""EAGLE draft heads as data: what a published checkpoint holds, checked against its target.

EAGLE (1 and 2): fc over [embedding; feature], one decoder layer, the target's head. EAGLE-3: fc
over features of several layers, a layer whose q, k and v take [embedding; hidden], a norm, a head
over a vocabulary of its own. Names as SafeAILab's, SpecForge's, AngelSlim's and vLLM's checkpoints
have them; weights/drafts/eagle.py reads them under the names used here.

Source: SafeAILab/EAGLE, vLLM 0.11 llama_eagle.py and llama_eagle3.py, speculators 0.9.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ranvier.core.errors import CheckpointError
from ranvier.models.fields import Config, rope_spec
from ranvier.models.spec import ArraySpec, DecoderSpec

__all__ = ["EagleSpec", "Method", "default_taps", "resolve_eagle"]

Method = Literal["eagle", "eagle3"]
LAYER = "layers.0."
REFUSED = {
    "mask_hidden": "parallel drafting (P-EAGLE) is not supported",
    "input_norm.weight": "norm_before_fc is not supported",
    "fc_norm.weight": "fc_norm is not supported",
    "enorm.weight": "add_para_norm is not supported",
    "hnorm.weight": "add_para_norm is not supported",
}
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class EagleSpec:
    """A head beside its target.

    `decoder`: the head's one layer and its arrays, in the target's form of numbers (`vocab_size`
    is that of the head). `taps`: after how many of the target's layers the features are taken;
    empty for EAGLE, which takes what the target's last norm gives. `has_input_norm`: of EAGLE, in
    front of its layer; EAGLE-3 always has one for the embedding.
    """

    method: Method
    decoder: DecoderSpec
    taps: tuple[int, ...]
    target_hidden: int
    target_vocab: int
    norm_before_residual: bool = False
    has_input_norm: bool = False
    has_fc_bias: bool = False
    has_embed: bool = False
    has_head: bool = False
    is_reduced: bool = False
    """The head's ids are its own, to be turned into the target's."""

    @property
    def is_eagle3(self) -> bool:
        return self.method == "eagle3"

    @property
    def draft_vocab(self) -> int:
        return self.decoder.vocab_size

    @property
    def feature_size(self) -> int:
        """Numbers a token that the target gives."""
        return self.target_hidden * max(len(self.taps), 1)


def default_taps(layers: int) -> tuple[int, ...]:
    """After which layers EAGLE-3 looks where its config does not say."""
    return tuple(sorted({min(2, layers), layers // 2, max(layers - 3, 1)}))


def resolve_eagle(
    fields: dict[str, Any], shapes: Shapes, target: DecoderSpec, *, names: tuple[str, str]
) -> EagleSpec:
    """The spec of a draft's config.json and tensors beside its target.

    `shapes`: of the draft's tensors by the names used here. `names`: how messages call the draft
    and the target. Raises CheckpointError that names both sides where they do not fit.
    """
    config = Config(_flat(fields))
    method: Method = "eagle3" if f"{LAYER}hidden_norm.weight" in shapes else "eagle"
    _check_known(config, shapes, names[0])
    numbers = _numbers(config, shapes, target)
    taps = _taps(config, target, names) if method == "eagle3" else ()
    # An embedding is over the target's ids, whatever the head is over.
    decoder = DecoderSpec(**numbers, embed_extra=target.vocab_size - numbers["vocab_size"])
    spec = EagleSpec(
        method=method,
        decoder=decoder,
        taps=taps,
        target_hidden=target.hidden,
        target_vocab=target.vocab_size,
        norm_before_residual=bool(
            config.get("norm_before_residual", "speculators_model_type" in fields)
        ),
        has_input_norm=method == "eagle" and f"{LAYER}input_layernorm.weight" in shapes,
        has_fc_bias="fc.bias" in shapes,
        has_embed="embed_tokens.weight" in shapes,
        has_head="lm_head.weight" in shapes,
        is_reduced=decoder.vocab_size != target.vocab_size,
    )
    arrays = eagle_arrays(spec)
    _check_shapes(spec, arrays, shapes, names)
    return dataclasses.replace(spec, decoder=dataclasses.replace(decoder, arrays=arrays))


def eagle_arrays(spec: EagleSpec) -> tuple[ArraySpec, ...]:
    """The head's weight tree, one layer deep; sources by the names used here."""
    own, hidden = spec.decoder, spec.decoder.hidden
    q, kv = own.heads * own.head_size, own.kv_heads * own.head_size
    width = 2 * hidden if spec.is_eagle3 else hidden
    fc_inputs = spec.feature_size if spec.is_eagle3 else hidden + spec.target_hidden

    def linear(name: str, outputs: int, inputs: int, *sources: str) -> ArraySpec:
        kind: Literal["linear", "gated"] = "gated" if name == "gate_up" else "linear"
        return ArraySpec(name, kind, (1, outputs, inputs), (sources,))

    def plain(name: str, size: int, *sources: str) -> ArraySpec:
        return ArraySpec(name, "plain", (1, size), (sources,))

    def layer(*suffixes: str) -> tuple[str, ...]:
        return tuple(f"{LAYER}{suffix}" for suffix in suffixes)

    qkv = [f"self_attn.{x}_proj" for x in "qkv"]
    arrays = [
        linear("qkv", q + 2 * kv, width, *layer(*(f"{x}.weight" for x in qkv))),
        linear("o", hidden, q, *layer("self_attn.o_proj.weight")),
        linear(
            "gate_up", 2 * own.intermediate, hidden,
            *layer("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        ),
        linear("down", hidden, own.intermediate, *layer("mlp.down_proj.weight")),
        plain("mlp_norm", hidden, *layer("post_attention_layernorm.weight")),
    ]  # fmt: skip
    arrays.append(linear("fc", hidden, fc_inputs, "fc.weight"))
    if spec.has_fc_bias:
        arrays.append(plain("fc_bias", hidden, "fc.bias"))
    if spec.has_input_norm or spec.is_eagle3:
        arrays.append(plain("attn_norm", hidden, *layer("input_layernorm.weight")))
    if spec.is_eagle3:
        arrays.append(plain("hidden_norm", hidden, *layer("hidden_norm.weight")))
        arrays.append(plain("final_norm", hidden, "norm.weight"))
    if own.has_qkv_bias:
        arrays.append(plain("qkv_bias", q + 2 * kv, *layer(*(f"{x}.bias" for x in qkv))))
    if own.has_qk_norm:
        arrays.append(plain("q_norm", own.head_size, *layer("self_attn.q_norm.weight")))
        arrays.append(plain("k_norm", own.head_size, *layer("self_attn.k_norm.weight")))
    if spec.has_embed:
        arrays.append(linear("embed", spec.target_vocab, hidden, "embed_tokens.weight"))
    if spec.has_head or spec.is_reduced:
        arrays.append(linear("head", spec.draft_vocab, hidden, "lm_head.weight"))
    return tuple(arrays)


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """The config with speculators' and EAGLE's nested parts brought to the top."""
    inner = fields.get("transformer_layer_config", fields.get("model"))
    merged = {**inner, **fields} if isinstance(inner, dict) else dict(fields)
    own = fields.get("eagle_config")
    return {**own, **merged} if isinstance(own, dict) else merged


def _check_known(config: Config, shapes: Shapes, draft: str) -> None:
    for name, reason in REFUSED.items():
        if name in shapes:
            raise CheckpointError(f"{draft}: {name}: {reason}.")
    for name in ("norm_output", "norm_before_fc"):
        if config.get(name, False):
            raise CheckpointError(f"{draft}: config.json: {name}=true is not supported.")
    count = config.count("num_hidden_layers", 1)
    if count != 1 or any(name.startswith("layers.1.") for name in shapes):
        raise CheckpointError(f"{draft}: has {count} layers; heads of one layer are supported.")


def _numbers(config: Config, shapes: Shapes, target: DecoderSpec) -> dict[str, Any]:
    """The fields of the head's DecoderSpec; sizes are those of its own config."""
    heads = config.count("num_attention_heads")
    hidden = config.count("hidden_size")
    size = config.count("head_dim", hidden // heads)
    scaling = config.get("rope_parameters", config.get("rope_scaling", {}))
    theta = float(scaling.get("rope_theta", config.get("rope_theta", 10000.0)))
    head = shapes.get("lm_head.weight", shapes.get("d2t"))
    vocab = config.get("draft_vocab_size", head[0] if head else target.vocab_size)
    return {
        "family": "eagle",
        "vocab_size": Config({"vocab_size": vocab}).count("vocab_size"),
        "hidden": hidden,
        "layers": 1,
        "heads": heads,
        "kv_heads": config.count("num_key_value_heads", heads),
        "head_size": size,
        "intermediate": config.count("intermediate_size"),
        "norm_eps": config.number("rms_norm_eps", 1e-6),
        "activation": config.activation(),
        "model_len_max": target.model_len_max,
        "ropes": (rope_spec(config, size, theta=theta, scaling=scaling),),
        "ropes_of_layer": (0,),
        "windows": (0,),
        "attention_scale": size**-0.5,
        "is_tied": False,
        "has_qkv_bias": f"{LAYER}self_attn.q_proj.bias" in shapes,
        "has_qk_norm": f"{LAYER}self_attn.q_norm.weight" in shapes,
    }


def _taps(config: Config, target: DecoderSpec, names: tuple[str, str]) -> tuple[int, ...]:
    found = config.get("eagle_aux_hidden_state_layer_ids", default_taps(target.layers))
    is_list = isinstance(found, (list, tuple)) and all(type(i) is int for i in found)
    if config.get("use_aux_hidden_state", True) is False:
        raise CheckpointError(
            f"{names[0]}: config.json: use_aux_hidden_state=false: not supported."
        )
    if not is_list or not found or sorted(set(found)) != list(found):
        raise CheckpointError(
            f"{names[0]}: config.json: eagle_aux_hidden_state_layer_ids is {found!r}, must be "
            "ascending whole numbers."
        )
    if not 0 <= found[0] <= found[-1] <= target.layers:
        raise CheckpointError(
            f"{names[0]} looks at layer {found[-1]} of its target, but {names[1]} has "
            f"{target.layers} layers."
        )
    return tuple(found)


def _check_shapes(
    spec: EagleSpec, arrays: tuple[ArraySpec, ...], shapes: Shapes, names: tuple[str, str]
) -> None:
    """Every tensor against config and target; all faults in one error."""
    draft, target = names
    faults = []
    known = {source for array in arrays for sources in array.sources for source in sources}
    for name in sorted(set(shapes) - known - {"d2t", "t2d"}):
        faults.append(f"{name} is no part of an {spec.method} head")
    wanted = {"t2d": (spec.target_vocab,), "embed_tokens.weight": None, "lm_head.weight": None}
    for array in arrays:
        for source in array.sources[0]:
            if source not in shapes and source != "lm_head.weight":
                faults.append(f"{source} is missing")
        given = [shapes[source] for source in array.sources[0] if source in shapes]
        outputs = sum(shape[0] for shape in given)
        if given and (outputs, *given[0][1:]) != array.shape[1:]:
            found = " + ".join(array.sources[0])
            faults.append(f"{found} is {(outputs, *given[0][1:])}, must be {array.shape[1:]}")
    if shapes.get("t2d", wanted["t2d"]) != wanted["t2d"]:
        faults.append(f"t2d is over {shapes['t2d'][0]} tokens")
    if spec.is_reduced and shapes.get("d2t") != (spec.draft_vocab,):
        faults.append(f"d2t is {shapes.get('d2t', 'missing')}, must be ({spec.draft_vocab},)")
    needs = [
        n for n, has in (("embed_tokens", spec.has_embed), ("lm_head", spec.has_head)) if not has
    ]
    if needs and spec.decoder.hidden != spec.target_hidden:
        faults.append(f"it has no {' and no '.join(needs)} of its own, and another hidden size")
    if faults:
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise CheckpointError(
            f"The draft {draft} (hidden {spec.decoder.hidden}, vocabulary {spec.draft_vocab}) does "
            f"not fit the target {target} (hidden {spec.target_hidden}, vocabulary "
            f"{spec.target_vocab}): {'; '.join(faults[:5])}{more}."
        )
