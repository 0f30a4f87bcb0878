"""The program table: names, functions and abstract arguments of everything that is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ranvier.build.drafting import draft_state, draft_weight_shapes, make_drafter
from ranvier.build.lora.form import adapter_form, adapter_numbers, linear_parts
from ranvier.build.lora.place import place_arguments, place_piece
from ranvier.build.pack import weight_shapes
from ranvier.build.shard.lower import over_ranks
from ranvier.build.shard.one_rank import one_rank
from ranvier.build.shard.rank import ONE, Parallel, rank_spec
from ranvier.build.vision.encoders import encoder_numbers, encoder_programs, is_seeing, vision_state
from ranvier.core.buckets import BucketSet
from ranvier.core.media import VisionInfo
from ranvier.core.program import KvLayout, ProgramShape, place_shapes, program_shapes
from ranvier.models.draft import DraftSpec
from ranvier.models.spec import DecoderSpec
from ranvier.nn.decoder import Decoder
from ranvier.nn.kernels.attention import AttentionSpec
from ranvier.nn.kernels.linear.pack import DTYPES
from ranvier.nn.kernels.table import CacheShapes, select
from ranvier.nn.shards import Shards
from ranvier.weights.lora.form import stack_shapes

__all__ = ["Program", "Sizes", "cache_shapes", "model_numbers", "programs", "state_shapes"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The static sizes that a build is made for."""

    dtype: str
    kernels: str
    max_model_len: int
    max_num_seqs: int
    block_tokens: int
    block_count: int
    kv_layout: KvLayout
    buckets: BucketSet
    logprobs_max: int
    edits_max: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    sequence_parallel: bool = False
    """Norms and the residual stream are cut along the tokens where a program allows it."""
    logical_cores: int = 1
    """Neuron: physical cores of a logical one."""
    quantization: str = "none"
    """How weights are kept: none (dense, in dtype) or the name of their scheme."""
    kv_cache_dtype: str = "auto"
    """Of the cache: auto (that of dtype), fp8 or int8."""
    adapter_slots: int = 0
    """LoRA adapters on the device at a time."""
    adapter_rank_max: int = 0
    adapter_modules: tuple[str, ...] = ()
    """Last names of the linears that adapters may change (q_proj, ...); none: all of them."""
    draft: DraftSpec | None = None
    """The drafter on the device, where buckets.has_drafter."""
    draft_quantization: str = "none"
    """How its weights are kept, as `quantization`."""
    vision: VisionInfo | None = None
    """The encoder's buckets and bounds, of a model that sees pictures."""

    @property
    def parallel(self) -> Parallel:
        return Parallel(self.tensor_parallel, self.pipeline_parallel)


@dataclass(frozen=True)
class Program:
    """One function for one bucket; of several ranks that of each, with its own arguments."""

    shape: ProgramShape
    function: Any
    arguments: tuple[Any, ...]
    parallel: Parallel = ONE

    @property
    def name(self) -> str:
        return self.shape.name

    def lower(self, platform: str) -> Any:
        """Trace and lower for a platform, which need not be here.

        The state (argument 1) is donated; unused arguments are kept.
        """
        function, arguments = self.function, self.arguments
        if self.parallel.ranks > 1:
            has_output = self.shape.family not in ("patches", "tiles", "place")
            function, arguments = over_ranks(
                function, arguments, self.parallel, has_output=has_output
            )
        jitted = jax.jit(function, donate_argnums=1, keep_unused=True)
        return jitted.trace(*arguments).lower(lowering_platforms=(platform,))

    def module(self, platform: str) -> Any:
        """The StableHLO of one rank, its state aliased to its outputs."""
        module = self.lower(platform).compiler_ir("stablehlo")
        if self.parallel.ranks == 1:
            return module
        weights, state, _ = self.arguments
        donated = range(len(weights), len(weights) + len(state))
        return one_rank(module, donated, self.parallel.ranks)


def cache_shapes(spec: DecoderSpec, sizes: Sizes) -> CacheShapes:
    """Shapes of the whole k and v caches, and their dtype."""
    heads = AttentionSpec(
        spec.heads, spec.kv_heads, spec.head_size, spec.attention_scale, spec.norm_eps
    )
    blocks, tokens = sizes.block_count, sizes.block_tokens
    return select(sizes.kernels).cache_shapes(
        spec.layers, heads, blocks, tokens, sizes.dtype, sizes.kv_cache_dtype
    )


def state_shapes(spec: DecoderSpec, sizes: Sizes) -> dict[str, tuple[tuple[int, ...], str]]:
    """name -> (shape, dtype) of what a step takes, donates and gives back; zeros at the start.

    `spec` is a rank's.
    """
    cache = cache_shapes(spec, sizes)
    samples = sizes.max_num_seqs * (1 + sizes.buckets.lookahead)
    state = {
        "k": (cache.k, str(cache.dtype)),
        "sampled": ((samples,), "int32"),
        "v": (cache.v, str(cache.dtype)),
        **vision_state(spec, sizes.vision, sizes.dtype),
    }
    if sizes.draft is not None:
        own = rank_spec(sizes.draft.spec, sizes.parallel)
        state.update(draft_state(cache_shapes(own, sizes)))
    return state


def model_numbers(spec: DecoderSpec, sizes: Sizes) -> dict[str, Any]:
    """What the runtime has to know beside the key: the manifest's `model`. Shapes are a rank's."""
    own = rank_spec(spec, sizes.parallel)
    return {
        **dataclasses.asdict(dataclasses.replace(sizes, draft=None)),
        "vocab_size": spec.vocab_size,
        "layers": spec.layers,
        "state": state_shapes(own, sizes),
        **adapter_numbers(spec, sizes),
        "end_token_ids": spec.end_token_ids,
        **encoder_numbers(spec, sizes.vision),
    }


def programs(
    spec: DecoderSpec, sizes: Sizes, arrays: Mapping[str, tuple[Any, Any]] | None = None
) -> list[Program]:
    """Every program of the bucket set; arguments are those of one rank.

    `arrays`: (shape, dtype) of a rank's packed weights, where they are not those that follow from
    spec.
    """
    struct: Any = jax.ShapeDtypeStruct
    kernels, parallel, vocab = select(sizes.kernels), sizes.parallel, spec.vocab_size
    shapes = arrays or _weight_shapes(spec, sizes)
    form = adapter_form(spec, sizes)
    spec = rank_spec(spec, parallel)
    everything = {name: struct(shape, dtype) for name, (shape, dtype) in shapes.items()}
    weights = {name: value for name, value in everything.items() if not is_seeing(name)}
    stacks = {} if form is None else stack_shapes(form)
    weights |= {name: struct(shape, jnp.dtype(kind)) for name, (shape, kind) in stacks.items()}
    state = {
        name: struct(shape, jnp.dtype(kind))
        for name, (shape, kind) in state_shapes(spec, sizes).items()
    }
    kind = DTYPES[sizes.dtype]
    drafter = None
    if sizes.draft is not None:
        drafter = make_drafter(sizes.draft, spec, kernels, sizes.dtype, parallel)
    table = []
    for shape in program_shapes(sizes.buckets, sizes.max_num_seqs):
        layout = shape.layout(sizes.block_tokens, sizes.max_model_len, sizes.vision)
        inputs = {
            "meta": struct((layout.size,), jnp.int32),
            "edits": struct((shape.samples, sizes.edits_max, 3), jnp.int32),
            "allowed": struct((shape.samples, -(-vocab // 32)), jnp.int32),
        }
        decoder = Decoder(
            spec, kernels, layout, sizes.logprobs_max, _shards(shape, vocab, sizes), kind,
            drafter if shape.lookahead else None, {} if form is None else linear_parts(form),
        )  # fmt: skip
        table.append(Program(shape, decoder.step, (weights, state, inputs), parallel))
    if spec.vision is not None and sizes.vision is not None:
        seeing = {name: value for name, value in everything.items() if is_seeing(name)}
        join = Shards(vocab, parallel.tensor, parallel.pipeline).sum if parallel.ranks > 1 else None
        for shape, function, arguments in encoder_programs(
            spec, sizes.vision, kernels, seeing, state, join
        ):
            table.append(Program(shape, function, arguments, parallel))
    if form is not None:
        for shape in place_shapes(form.slots):
            table.append(Program(shape, place_piece, place_arguments(form), parallel))
    return table


def _shards(shape: ProgramShape, vocab: int, sizes: Sizes) -> Shards | None:
    """How the ranks of a step work together.

    A decode program has few tokens: one sum is sooner there than a scatter and a gather.
    """
    parallel = sizes.parallel
    if parallel.ranks == 1:
        return None
    is_cut = sizes.sequence_parallel and shape.family != "decode" and sizes.vision is None
    is_even = parallel.tensor > 1 and shape.tokens % parallel.tensor == 0
    return Shards(vocab, parallel.tensor, parallel.pipeline, is_cut and is_even)


def _weight_shapes(spec: DecoderSpec, sizes: Sizes) -> dict[str, tuple[Any, Any]]:
    """Of the target and, where there is one, its drafter."""
    shapes = weight_shapes(spec, sizes.dtype, sizes.kernels, sizes.parallel)
    if sizes.draft is None:
        return shapes
    own = draft_weight_shapes(sizes.draft, sizes.dtype, sizes.kernels, sizes.parallel)
    return {**shapes, **own}
