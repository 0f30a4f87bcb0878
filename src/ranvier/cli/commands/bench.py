"""`ranvier bench latency|throughput|serve|startup`: vLLM's names of arguments, figures and keys.

latency and throughput run the model in this process; serve loads a running server; startup starts
servers in fresh processes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ranvier.bench.options import (
    REFUSED,
    DataOptions,
    LatencyOptions,
    OutputOptions,
    RandomOptions,
    StartupOptions,
    TargetOptions,
    ThroughputOptions,
    TrafficOptions,
)
from ranvier.cli.options.flags import (
    Parser,
    add_engine_arguments,
    add_option_arguments,
    engine_options,
    given_for,
)
from ranvier.cli.options.settings import client_key
from ranvier.client.options import SamplingOptions
from ranvier.core.errors import ConfigError

if TYPE_CHECKING:
    from ranvier.text.codec import TextCodec

__all__ = ["add_arguments", "run"]

PROMPT_MAX = 2**31
"""A client does not know the server's limit; the server says when a prompt is too long."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=list(KINDS), help="what to measure")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="its options: bench KIND --help")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """Measure, print a block of figures, write JSON where asked."""
    del start_s
    for word in given.words:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and name in REFUSED:
            raise ConfigError(f"{word} is not supported: {REFUSED[name]}.")
    parser = Parser(prog=f"ranvier bench {given.kind}")
    return KINDS[given.kind](parser, given.words)


def _latency(parser: Parser, words: list[str]) -> None:
    add_engine_arguments(parser)
    add_option_arguments(parser, LatencyOptions, "latency")
    given = parser.parse_args(words)
    measured, options = LatencyOptions(**given_for(given, LatencyOptions)), engine_options(given)
    from ranvier.bench.offline import measure_latency
    from ranvier.cli.adapters import load_modules
    from ranvier.cli.wire import open_engine
    from ranvier.offline.llm import Offline

    engine, codec = open_engine(options, [])
    llm = Offline(engine, codec, seed=options.seed)
    load_modules(llm, options)
    measure_latency(llm, codec, measured)


def _throughput(parser: Parser, words: list[str]) -> None:
    add_engine_arguments(parser)
    for kind, title in (
        (ThroughputOptions, "throughput"), (DataOptions, "data"), (RandomOptions, "length"),
    ):  # fmt: skip
        add_option_arguments(parser, kind, title)
    given = parser.parse_args(words)
    measured = ThroughputOptions(**given_for(given, ThroughputOptions))
    data = DataOptions(**given_for(given, DataOptions))
    lengths, options = RandomOptions(**given_for(given, RandomOptions)), engine_options(given)
    from ranvier.bench.dataset import make_samples
    from ranvier.bench.offline import draw_adapters, measure_throughput
    from ranvier.cli.adapters import load_modules
    from ranvier.cli.wire import open_engine
    from ranvier.offline.llm import Offline

    if measured.lora_path and not options.enable_lora:
        raise ConfigError("lora_path needs slots for adapters.", hint="Add --enable-lora.")
    engine, codec = open_engine(options, [])
    whole = replace(data, num_prompts=data.num_prompts + measured.num_warmups)
    samples = make_samples(whole, lengths, codec, is_chat=False)
    llm = Offline(engine, codec, seed=options.seed)
    load_modules(llm, options)
    adapters = draw_adapters(
        measured.lora_path, len(samples), slots=options.max_loras, seed=data.seed
    )
    measure_throughput(llm, samples, measured, options.model, adapters)


def _serve(parser: Parser, words: list[str]) -> int:
    kinds = {
        TargetOptions: "server", DataOptions: "data", RandomOptions: "length",
        TrafficOptions: "traffic", OutputOptions: "output", SamplingOptions: "sampling",
    }  # fmt: skip
    for kind, title in kinds.items():
        add_option_arguments(parser, kind, title)
    given = parser.parse_args(words)
    from ranvier.bench.serve import ServeBench, bench_server

    target = TargetOptions(**given_for(given, TargetOptions))
    bench = ServeBench(
        target=target,
        data=DataOptions(**given_for(given, DataOptions)),
        lengths=RandomOptions(**given_for(given, RandomOptions)),
        traffic=TrafficOptions(**given_for(given, TrafficOptions)),
        output=OutputOptions(**given_for(given, OutputOptions)),
        sampling=SamplingOptions(**given_for(given, SamplingOptions)).fields,
        api_key=target.api_key or client_key(),
    )
    return asyncio.run(bench_server(bench, _open_codec))


def _startup(parser: Parser, words: list[str]) -> None:
    add_engine_arguments(parser)
    add_option_arguments(parser, StartupOptions, "startup")
    given = parser.parse_args(words)
    measured, options = StartupOptions(**given_for(given, StartupOptions)), engine_options(given)
    if options.artifacts is not None:
        raise ConfigError("bench startup keeps artifacts in folders of its own: no --artifacts.")
    own = Parser(prog="ranvier bench startup", add_help=False)
    add_option_arguments(own, StartupOptions, "startup")
    _, engine_words = own.parse_known_args([_dashed(word) for word in words])
    from ranvier.bench.startup import measure_startup

    def command(artifacts: Path, port: int) -> list[str]:
        front = ["--host", "127.0.0.1", "--port", str(port), "--artifacts", str(artifacts)]
        return [sys.executable, "-m", "ranvier.cli.main", "serve", *engine_words, *front]

    measure_startup(measured, command)


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + equals + value


def _open_codec(model: str) -> TextCodec:
    """The tokenizer and template of a model named as everywhere. Raises ConfigError."""
    from ranvier.cli.wire import locate
    from ranvier.core.errors import CheckpointError
    from ranvier.text.codec import TextCodec
    from ranvier.weights.checkpoint import open_checkpoint

    try:
        checkpoint = open_checkpoint(locate(model))
    except CheckpointError as error:
        raise ConfigError(
            f"Prompts are made with the model's tokenizer, and it was not found: {error.message}",
            hint="Name its folder, file or demo name with --tokenizer.",
        ) from None
    return TextCodec(
        checkpoint.tokenizer_json(),
        checkpoint.tokenizer_config,
        checkpoint.generation_config,
        vocab_size=int(checkpoint.config["vocab_size"]),
        model_len_max=PROMPT_MAX,
    )


KINDS: dict[str, Callable[[Parser, list[str]], int | None]] = {
    "latency": _latency,
    "throughput": _throughput,
    "serve": _serve,
    "startup": _startup,
}
