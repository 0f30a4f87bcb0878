"""`ranvier plan MODEL`: what fits, what it costs to compile and how fast it can be at most.

Nothing is compiled and no device is touched; a config.json is enough.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranvier.cli.options.values import parse_size
from ranvier.core.errors import ConfigError

if TYPE_CHECKING:
    from ranvier.build.plan import Plan, Wish

__all__ = ["add_arguments", "run"]

LENGTH_DEFAULT = 4096
THIS_MACHINE = "cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="config.json, a folder with one, a .gguf file or a demo name"
    )
    text = "an instance such as trn2.48xlarge, or cpu for this machine; default: all instances"
    parser.add_argument("--instance", help=text)
    parser.add_argument(
        "-tp", "--tensor-parallel-size", type=int, help="default: the smallest that fits"
    )
    for short, name, text in (
        ("-pp", "pipeline", "stages that share the layers [1]"),
        ("-dp", "data", "engines with the whole model each, on one machine [1]"),
    ):
        parser.add_argument(short, f"--{name}-parallel-size", type=int, default=1, help=text)
    parser.add_argument("--nnodes", type=int, default=1, help="instances of one model [1]")
    text = "cut norms along the tokens"
    parser.add_argument("--sequence-parallel", action="store_true", help=text)
    for name, default, text in (
        ("max-model-len", None, "tokens of prompt and output; default the model's, at most 4096"),
        ("max-num-seqs", 32, "sequences at once"),
        ("max-num-batched-tokens", 1024, "tokens of one prefill step"),
        ("block-size", 32, "tokens of one KV block"),
        ("num-gpu-blocks-override", None, "KV blocks; default: half the full length a sequence"),
        ("max-loras", 0, "adapter slots"),
        ("max-lora-rank", 16, "largest adapter rank"),
        ("max-cpu-loras", None, "adapters in host memory; default 32, or the slots if more"),
        ("max-cpu-lora-bytes", None, "bytes of them at most; default 8 GiB"),
        ("programs-max", 32, "programs of one artifact, at most"),
        ("num-speculative-tokens", 0, "lookahead of speculation"),
    ):
        shown = text if default is None else f"{text} [{default}]"
        parser.add_argument(f"--{name}", type=parse_size, default=default, help=shown)
    parser.add_argument("--dtype", default="bfloat16", help="of the weights [bfloat16]")
    parser.add_argument("--kv-cache-dtype", default="auto", help="auto: bfloat16, float32 or fp8")
    parser.add_argument("--draft", metavar="MODEL", help="a draft model for speculation")
    parser.add_argument("--logical-nc-config", type=int, help="physical cores of a logical one")
    parser.add_argument("--trace", metavar="FILE", help="lengths as JSON lines, for the buckets")
    parser.add_argument("--prices", metavar="FILE", help='{"inf2.xlarge": 0.76, ...}: the order')
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--plot", metavar="FILE.png", help="draw memory and bucket padding")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Print the plan; 5 when a named instance cannot hold the model."""
    del start_s
    from ranvier.build.plan import plan_all, plan_instance
    from ranvier.cli.reports import plan as plan_report
    from ranvier.targets.neuron.instances import find_instance

    if given.plot:
        from ranvier.cli.reports.picture import require_matplotlib

        require_matplotlib()
    wish = _wish(given)
    if given.instance == THIS_MACHINE:
        plans = [_this_machine(wish)]
    elif given.instance:
        plans = [plan_instance(wish, find_instance(given.instance))]
    else:
        plans = plan_all(wish)
    if given.plot:
        from ranvier.cli.reports.picture import draw

        draw(wish, plans, Path(given.plot))
    document = plan_report.document(wish, plans, is_single=bool(given.instance))
    if given.json:
        print(json.dumps(document, indent=1))
    else:
        print(plan_report.text(wish, plans, is_single=bool(given.instance)))
    return None if any(plan.memory.fits for plan in plans) else 5


def _wish(given: argparse.Namespace) -> Wish:
    from ranvier.build.plan import Wish
    from ranvier.targets.axes import Axes
    from ranvier.targets.host_memory import default_blocks
    from ranvier.targets.numbers import MemorySizes

    model = _numbers(given.model)
    length = given.max_model_len or min(model.model_len_max, LENGTH_DEFAULT)
    if length > model.model_len_max:
        raise ConfigError(
            f"max_model_len={length} is above the model's own {model.model_len_max}.",
            hint="Lower --max-model-len.",
        )
    # As serving does: --num-gpu-blocks-override does not count the garbage block.
    blocks = default_blocks(length, max(given.max_num_seqs, 1), max(given.block_size, 1))
    if given.num_gpu_blocks_override:
        blocks = given.num_gpu_blocks_override + 1
    wide = "float32" if given.dtype == "float32" else "bfloat16"
    sizes = MemorySizes(
        max_model_len=length,
        max_num_seqs=given.max_num_seqs,
        max_num_batched_tokens=given.max_num_batched_tokens,
        block_tokens=given.block_size,
        block_count=blocks,
        dtype=given.dtype,
        kv_dtype=wide if given.kv_cache_dtype == "auto" else given.kv_cache_dtype,
        lora_slots=given.max_loras,
        lora_rank=given.max_lora_rank,
        **_host_adapters(given),
        draft=_numbers(given.draft) if given.draft else None,
    )
    return Wish(
        model=model,
        sizes=sizes,
        traffic=_traffic(given.trace),
        programs_max=given.programs_max,
        lookahead=given.num_speculative_tokens,
        tensor_parallel=given.tensor_parallel_size,
        axes=Axes(
            stages=given.pipeline_parallel_size,
            replicas=given.data_parallel_size,
            hosts=given.nnodes,
            is_sequence=given.sequence_parallel,
        ),  # fmt: skip
        logical_core_config=given.logical_nc_config,
        price=_prices(given.prices),
    )


def _host_adapters(given: argparse.Namespace) -> dict[str, int]:
    """What serving keeps in host memory by these options. Raises ConfigError."""
    from ranvier.cli.options.adapters import AdapterOptions, check_adapters
    from ranvier.core.limits import LIMITS

    if not given.max_loras:
        return {}
    options = AdapterOptions(
        enable_lora=True, max_loras=given.max_loras, max_lora_rank=given.max_lora_rank,
        max_cpu_loras=given.max_cpu_loras,
    )  # fmt: skip
    check_adapters(options)
    bound = given.max_cpu_lora_bytes or LIMITS.adapters_bytes
    return {"lora_host": options.host_adapters, "lora_host_bytes": bound}


def _numbers(name: str) -> Any:
    """The counts of a model by its path or name. Raises CheckpointError."""
    from ranvier.build.numbers import model_numbers
    from ranvier.cli.wire import locate
    from ranvier.models.table import resolve
    from ranvier.weights.checkpoint import FolderCheckpoint, open_checkpoint

    path = Path(name).expanduser()
    if path.name == "config.json" and path.is_file():
        folder = path.resolve().parent
        return model_numbers(resolve(FolderCheckpoint(folder).config), folder.name)
    path = locate(name)
    return model_numbers(resolve(open_checkpoint(path).config), _name(path))


def _name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


def _traffic(name: str | None) -> Any:
    from ranvier.build.traffic import read_trace

    if name is None:
        return None
    return read_trace(_text(name).splitlines())


def _prices(name: str | None) -> Mapping[str, float]:
    if name is None:
        return {}
    try:
        prices = json.loads(_text(name))
        return {str(key): float(value) for key, value in prices.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f'{name}: must be a JSON object such as {{"inf2.xlarge": 0.76}}: {error}.'
        ) from error


def _text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} can't be read: {error}.") from error


def _this_machine(wish: Wish) -> Plan:
    from ranvier.build.plan import plan_machine
    from ranvier.cli.options.settings import machine_variables
    from ranvier.targets.cpu import machine
    from ranvier.targets.host_memory import host_memory
    from ranvier.targets.speed import measure_speed
    from ranvier.targets.system import RealSystem

    found = machine(RealSystem(machine_variables()))
    # Control groups bound it, in a container.
    found = dataclasses.replace(found, available_bytes=host_memory().available_bytes)
    return plan_machine(wish, found, measure_speed())
