"""Where a head's training starts: the shape it gets, and the target's last layer put into it.

A head that begins as the target's last layer over the last feature reaches in minutes what random
weights take hours for; what has no counterpart there starts small and random.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranvier.models.eagle import EagleSpec, Method, default_taps, eagle_arrays
from ranvier.models.spec import DecoderSpec
from ranvier.weights.checkpoint import Checkpoint

__all__ = ["HeadSize", "head_spec", "start_params"]

Floats = NDArray[np.float32]
SPREAD = 0.02


@dataclass(frozen=True)
class HeadSize:
    """What may be chosen of a head; `taps` None: EAGLE-3's usual layers."""

    method: Method
    intermediate: int
    draft_vocab: int
    taps: tuple[int, ...] | None = None


def head_spec(target: DecoderSpec, size: HeadSize) -> EagleSpec:
    """A head with the target's attention and hidden size, embedding and head shared with it."""
    is_eagle3 = size.method == "eagle3"
    taps = size.taps if size.taps is not None else default_taps(target.layers)
    decoder = dataclasses.replace(
        target,
        family="eagle",
        vocab_size=size.draft_vocab if is_eagle3 else target.vocab_size,
        layers=1,
        intermediate=size.intermediate,
        activation="silu",
        ropes=(target.ropes[target.ropes_of_layer[-1]],),
        ropes_of_layer=(0,),
        windows=(0,),
        attention_scale=target.head_size**-0.5,
        embed_scale=1.0,
        has_qkv_bias=False,
        has_qk_norm=False,
        has_post_norms=False,
        is_tied=False,
        arrays=(),
    )
    spec = EagleSpec(
        method=size.method,
        decoder=decoder,
        taps=taps if is_eagle3 else (),
        target_hidden=target.hidden,
        target_vocab=target.vocab_size,
        is_reduced=decoder.vocab_size != target.vocab_size,
    )
    return dataclasses.replace(
        spec, decoder=dataclasses.replace(decoder, arrays=eagle_arrays(spec))
    )


def start_params(
    spec: EagleSpec, checkpoint: Checkpoint, target: DecoderSpec, seed: int
) -> dict[str, Floats]:
    """Params of train/unroll.py, matrices as [inputs, outputs]."""
    rng = np.random.default_rng(seed)
    own = spec.decoder

    def random(*shape: int) -> Floats:
        return np.asarray(rng.normal(0, SPREAD, shape), np.float32)

    q = own.heads * own.head_size
    inputs = spec.feature_size if spec.is_eagle3 else 2 * own.hidden
    params = {
        "fc": random(inputs, own.hidden),
        "qkv": random(2 * own.hidden if spec.is_eagle3 else own.hidden, own.qkv_size),
        "o": random(q, own.hidden),
        "gate": random(own.hidden, own.intermediate),
        "up": random(own.hidden, own.intermediate),
        "down": random(own.intermediate, own.hidden),
        "mlp_norm": np.ones(own.hidden, np.float32),
    }
    # The last feature passes as it is; what else there is has to earn its place.
    params["fc"][-own.hidden :] += np.eye(own.hidden, dtype=np.float32)
    if spec.is_eagle3:
        params["attn_norm"] = np.ones(own.hidden, np.float32)
        params["hidden_norm"] = np.ones(own.hidden, np.float32)
        params["norm"] = _array(checkpoint, target, "final_norm", 0).reshape(-1)
    has_twin = not (target.has_post_norms or target.has_qk_norm or target.has_qkv_bias)
    if has_twin and target.activation == "silu":
        _copy_layer(params, spec, checkpoint, target)
    return params


def _copy_layer(
    params: dict[str, Floats], spec: EagleSpec, checkpoint: Checkpoint, target: DecoderSpec
) -> None:
    """The target's last layer, of its MLP the strongest neurons."""
    last = target.layers - 1
    own = spec.decoder
    params["qkv"][-own.hidden :] = _array(checkpoint, target, "qkv", last).T
    params["o"] = _array(checkpoint, target, "o", last).T.copy()
    both, down = (
        _array(checkpoint, target, "gate_up", last),
        _array(checkpoint, target, "down", last),
    )
    gate, up = np.split(both, 2)
    strength = np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)
    kept = np.sort(np.argsort(-strength)[: own.intermediate])
    width = len(kept)
    params["gate"][:, :width], params["up"][:, :width] = gate[kept].T, up[kept].T
    params["down"][:width] = down[:, kept].T
    params["mlp_norm"] = _array(checkpoint, target, "mlp_norm", last).reshape(-1)
    if spec.is_eagle3:
        params["hidden_norm"] = _array(checkpoint, target, "attn_norm", last).reshape(-1)


def _array(checkpoint: Checkpoint, target: DecoderSpec, name: str, layer: int) -> Floats:
    array = target.array(name)
    parts = [checkpoint.read(source).astype(np.float32) for source in array.sources[layer]]
    return np.concatenate(parts) + np.float32(array.offset)
