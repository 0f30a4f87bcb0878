"""`ranvier merge-lora MODEL ADAPTER`: write the merged model as a Hugging Face folder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder, a .gguf file or a model's name")
    parser.add_argument("adapter", metavar="ADAPTER", type=Path, help="a PEFT folder")
    parser.add_argument("--output", required=True, type=Path, help="the folder to write")
    parser.add_argument("--revision", help="of a hub model")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Read both, merge tensor by tensor, write, say what came of it."""
    from ranvier.build.lora.form import linear_shapes
    from ranvier.cli.options.settings import say
    from ranvier.cli.wire import locate
    from ranvier.models.table import resolve
    from ranvier.weights.checkpoint import open_checkpoint
    from ranvier.weights.lora.merge import merged_config, merged_tensors
    from ranvier.weights.lora.read import read_lora
    from ranvier.weights.safetensors_write import save_model

    checkpoint = open_checkpoint(locate(given.model, given.revision))
    modules = linear_shapes(resolve(checkpoint.config))
    rank_max = max(min(shape) for shape in modules.values())
    lora = read_lora(given.adapter.expanduser(), modules, rank_max)
    config = merged_config(checkpoint)
    if checkpoint.quantisation is not None:
        say(f"the model is stored as {checkpoint.quantisation}: it becomes {config['dtype']}")
    tensors = merged_tensors(checkpoint, lora)
    size = save_model(given.output, checkpoint, config, tensors)
    print(
        f"{given.output}: {len(lora.pairs)} linears merged, rank {lora.rank}, {size / 1e6:.1f} MB, "
        f"in {time.perf_counter() - start_s:.1f} s"
    )
    return None
