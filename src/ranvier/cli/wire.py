"""The wiring: options to a ready engine and codec. The only module that knows every part."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ranvier.cli.settings import (
    DTYPES,
    Options,
    artifacts_folder,
    cache_folder,
    nearest,
    parse_options,
)
from ranvier.core.config import EngineConfig
from ranvier.core.errors import CheckpointError, ConfigError
from ranvier.core.limits import LIMITS
from ranvier.engine.llm import Offline
from ranvier.engine.loop import Engine
from ranvier.text.codec import TextCodec

__all__ = ["LLM", "ensure_artifact", "locate", "open_codec", "open_engine"]

LENGTH_DEFAULT = 4096
BATCHED_DEFAULT = 1024
FLAGS = "--xla_cpu_experimental_ynn_fusion_type="
"""YNN's fusions have given wrong results on CPU in jax 0.10 and 0.11: off, in tests and here."""

Phases = list[tuple[str, float]]


class LLM(Offline):
    """A model in this process, by vLLM's names: LLM("smollm2-135m", max_model_len=2048)."""

    def __init__(self, model: str, **options: Any) -> None:
        parsed = parse_options({"model": model, **options})
        engine, codec = open_engine(parsed, [])
        super().__init__(engine, codec, seed=parsed.seed)


def open_engine(options: Options, phases: Phases) -> tuple[Engine, TextCodec]:
    """Build what is missing, load it, warm it. Appends (phase, seconds) to `phases`."""
    start = time.perf_counter()
    folder = ensure_artifact(options)
    phases.append(("find or build artifact", time.perf_counter() - start))
    from ranvier.runtime.load import load_runner

    runner = load_runner(folder, phases)
    start = time.perf_counter()
    codec = open_codec(folder, runner.info.vocab_size, runner.info.model_len_max)
    phases.append(("load tokenizer", time.perf_counter() - start))
    config = EngineConfig(
        max_num_batched_tokens=runner.info.token_buckets[-1],
        enable_prefix_caching=options.enable_prefix_caching,
    )
    return Engine(runner, config), codec


def open_codec(folder: Path, vocab_size: int, model_len_max: int) -> TextCodec:
    """The text side of an artifact."""
    text = folder / "text"
    return TextCodec(
        (text / "tokenizer.json").read_text(encoding="utf-8"),
        json.loads((text / "tokenizer_config.json").read_text()),
        json.loads((text / "generation_config.json").read_text()),
        vocab_size=vocab_size,
        model_len_max=model_len_max,
    )


def ensure_artifact(options: Options) -> Path:
    """The artifact's folder for these options, built when missing."""
    model = locate(options.model)
    _set_flags()
    from ranvier.build.build import artifact_key, build_artifact
    from ranvier.models.table import resolve
    from ranvier.weights.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model)
    spec = resolve(checkpoint.config)
    sizes = _sizes(options, spec.model_len_max)
    key = artifact_key(checkpoint, spec, sizes, FLAGS)
    root = artifacts_folder(options, model)
    is_required = options.require_artifacts
    return build_artifact(root, key, checkpoint, spec, sizes, _say, is_required=is_required)


def locate(model: str) -> Path:
    """A folder, a file, or a demo model's file. Raises CheckpointError."""
    from ranvier.weights.demo import DEMOS, fetch_demo

    path = Path(model).expanduser()
    if path.exists():
        return path
    if model in DEMOS:
        return fetch_demo(model, cache_folder() / "models", _say)
    raise CheckpointError(
        f"{model}: no such folder or file, and no demo model.{nearest(model, DEMOS)}",
        hint=f"Demo models: {', '.join(DEMOS)}.",
    )


def _sizes(options: Options, model_len_max: int) -> Any:
    from ranvier.build.buckets import token_buckets
    from ranvier.build.programs import Sizes

    length = options.max_model_len or min(model_len_max, LENGTH_DEFAULT)
    if length > model_len_max:
        raise ConfigError(
            f"max_model_len={length} is above the model's own {model_len_max}.",
            hint="Lower --max-model-len.",
        )
    batched = options.max_num_batched_tokens or max(BATCHED_DEFAULT, options.max_num_seqs)
    per_sequence = -(-length // options.block_size)
    half = -(-per_sequence * options.max_num_seqs // 2)
    blocks = options.num_gpu_blocks_override or max(half, per_sequence)
    kernels = _kernels()
    return Sizes(
        dtype=_dtype(options.dtype, kernels),
        kernels=kernels,
        max_model_len=length,
        max_num_seqs=options.max_num_seqs,
        block_tokens=options.block_size,
        block_count=blocks + 1,
        token_buckets=token_buckets(options.max_num_seqs, batched),
        logprobs_max=LIMITS.logprobs_max,
        edits_max=length + LIMITS.logit_bias_max,
    )


def _kernels() -> str:
    """The kernels that this machine can run; says so when they are the slow ones."""
    from ranvier.native import library

    if library.register():
        return "cpu"
    _say("the CPU kernels are not built (no C++ compiler at install): plain JAX kernels, slower")
    return "reference"


def _dtype(named: str, kernels: str) -> str:
    """auto is bfloat16, but float32 on the plain kernels: XLA is slow in bfloat16 on a CPU."""
    if named == "auto":
        return "bfloat16" if kernels == "cpu" else "float32"
    return DTYPES[named]


def _set_flags() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAGS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAGS}".strip()


def _say(line: str) -> None:
    print(f"ranvier: {line}", file=sys.stderr, flush=True)
