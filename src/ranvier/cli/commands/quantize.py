"""`ranvier quantize MODEL`: write a quantised model as a Hugging Face folder."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ranvier.quantize.make import Making
    from ranvier.quantize.report import Report

__all__ = ["add_arguments", "run"]

SHIPPED, NONE = "shipped", "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder, a .gguf file or a model's name")
    parser.add_argument("--scheme", required=True, help="int8, int8-dynamic, int4[-gN][-asym], fp8")
    parser.add_argument("--output", required=True, type=Path, help="the folder to write")
    parser.add_argument(
        "--calibration", metavar="FILE", default=NONE,
        help="text to compensate errors on; 'shipped': a text of ours; 'none' (default): round",
    )  # fmt: skip
    parser.add_argument(
        "--evaluation", metavar="FILE", default=SHIPPED,
        help="text to measure on; 'shipped' (default): a text of ours; 'none': do not measure",
    )  # fmt: skip
    parser.add_argument("--calibration-tokens", type=int, default=8192, help="at most so many")
    parser.add_argument("--evaluation-tokens", type=int, default=4096, help="at most so many")
    parser.add_argument(
        "--ignore", metavar="PATTERN", nargs="+", action="extend", default=[],
        help="modules not to convert: (part of) a path, or re: and a regular expression",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report as JSON too")
    parser.add_argument("--revision", help="of a hub model")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Quantise, write, measure, and print the report."""
    from ranvier.cli.options.settings import say
    from ranvier.cli.wire import locate
    from ranvier.core.errors import ConfigError
    from ranvier.models.table import resolve
    from ranvier.quantize.make import Making
    from ranvier.quantize.measure import sequences
    from ranvier.weights.checkpoint import open_checkpoint
    from ranvier.weights.quantise.scheme import parse_scheme
    from ranvier.weights.quantise.selection import select, with_one_group

    scheme = parse_scheme(given.scheme)
    calibration = _text(given.calibration, "calibration.txt")
    evaluation = _text(given.evaluation, "evaluation.txt")
    if calibration is not None and scheme.kind == "fp8":
        raise ConfigError(
            "--calibration: fp8 is rounded to nearest.", hint="Leave --calibration out."
        )
    if min(given.calibration_tokens, given.evaluation_tokens) < 1:
        raise ConfigError("--calibration-tokens and --evaluation-tokens must be positive.")
    checkpoint = open_checkpoint(locate(given.model, given.revision))
    spec = resolve(checkpoint.config)
    schemes = select(checkpoint.tensor_names(), scheme, given.ignore, with_head=False)
    if not schemes:
        raise ConfigError("--ignore leaves no module to quantise.")
    schemes = with_one_group(schemes, {name: checkpoint.shape(name)[1] for name in schemes})
    group = next(iter(schemes.values())).group
    if group != scheme.group:
        say(f"groups of {group}: {scheme.group} does not divide the inputs of every matrix")

    def ids(path: Path | None, tokens_max: int) -> Any:
        return None if path is None else sequences(checkpoint, path, spec.vocab_size, tokens_max)

    making = Making(
        checkpoint, spec, schemes,
        calibration=ids(calibration, given.calibration_tokens),
        evaluation=ids(evaluation, given.evaluation_tokens),
    )  # fmt: skip
    report = _write(given, making, start_s)
    print("\n".join(report.lines()))
    if given.report is not None:
        given.report.write_text(json.dumps(report.fields(), indent=2) + "\n")
    return None


def _text(given: str, shipped: str) -> Path | None:
    from ranvier.quantize.measure import TEXTS

    if given == NONE:
        return None
    return TEXTS / shipped if given == SHIPPED else Path(given).expanduser()


def _write(given: argparse.Namespace, making: Making, start_s: float) -> Report:
    from tqdm import tqdm

    from ranvier.quantize.folder import write_folder
    from ranvier.quantize.report import Report

    checkpoint = making.checkpoint
    with tqdm(total=making.spec.layers, desc="quantise", unit="layer") as bar:
        making.progress = bar.update
        size = write_folder(given.output, checkpoint, making.schemes, making.tensors())
    return Report(
        model=given.model,
        scheme=given.scheme,
        calibration=None if given.calibration == NONE else given.calibration,
        evaluation=None if given.evaluation == NONE else given.evaluation,
        bytes_original=2 * sum(math.prod(checkpoint.shape(n)) for n in checkpoint.tensor_names()),
        bytes_quantised=size,
        seconds=time.perf_counter() - start_s,
        errors=making.errors,
        divergence=making.divergence,
    )
