"""The wiring: options to a ready engine and codec. The only module that knows every part."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ranvier.cli.settings import (
    Options,
    artifacts_folder,
    cache_folder,
    nearest,
    parse_options,
)
from ranvier.cli.sizes import choose_target, resolve_sizes
from ranvier.core.config import EngineConfig
from ranvier.core.errors import CheckpointError
from ranvier.engine.llm import Offline
from ranvier.engine.loop import Engine
from ranvier.text.codec import TextCodec

__all__ = ["LLM", "ensure_artifact", "locate", "open_codec", "open_engine"]

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
    is_caching = options.enable_prefix_caching
    if is_caching and runner.info.kv_layout == "contiguous":
        _say("prefix caching is off: regions of the contiguous KV layout can't be shared")
        is_caching = False
    config = EngineConfig(
        max_num_batched_tokens=runner.info.tokens_max, enable_prefix_caching=is_caching
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
    target = choose_target(options)
    sizes = resolve_sizes(options, spec.model_len_max, target, _say)
    key = artifact_key(checkpoint, sizes, target, FLAGS)
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


def _set_flags() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAGS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAGS}".strip()


def _say(line: str) -> None:
    print(f"ranvier: {line}", file=sys.stderr, flush=True)
