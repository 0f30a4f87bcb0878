"""`bench serve`: load on a running server, from options to the report."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ranvier.bench.dataset import Sample, make_samples
from ranvier.bench.load import Plan, run_load, wait_for_server
from ranvier.bench.metrics import Wanted, summarise
from ranvier.bench.options import (
    DataOptions,
    OutputOptions,
    RandomOptions,
    TargetOptions,
    TrafficOptions,
    number,
)
from ranvier.bench.plot import check_plot, draw
from ranvier.bench.report import block, describe, result_path, save
from ranvier.bench.speculation import (
    DraftCounts,
    counts_of_server,
    report_lines,
    speculation_figures,
)
from ranvier.bench.traffic import schedule
from ranvier.client.http import parse_url
from ranvier.client.openai import Server
from ranvier.core.errors import ConfigError, ServerError
from ranvier.text.codec import TextCodec

__all__ = ["ServeBench", "bench_server"]

ROUTES = {True: "/v1/chat/completions", False: "/v1/completions"}
ERRORS_TOLD = 10


@dataclass(frozen=True, kw_only=True)
class ServeBench:
    """Everything that a run is told."""

    target: TargetOptions
    data: DataOptions
    lengths: RandomOptions
    traffic: TrafficOptions
    output: OutputOptions
    sampling: dict[str, Any]
    api_key: str | None

    @property
    def server(self) -> Server:
        target = self.target
        url = target.base_url or f"http://{target.host}:{target.port}"
        headers = {}
        for text in target.header:
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise ConfigError(f"header: {text!r} must be NAME=VALUE.")
            headers[name] = value
        address = parse_url(url, is_verified=not target.insecure)
        return Server(address, self.api_key, headers)

    @property
    def ignores_end(self) -> bool:
        asked = self.target.ignore_eos
        return self.data.dataset_name == "random" if asked is None else asked


async def bench_server(bench: ServeBench, open_codec: Callable[[str], TextCodec]) -> int:
    """Run it, print the block, keep what was asked; the exit code. Raises ServerError."""
    wanted = Wanted(bench.output)
    if bench.output.plot is not None:
        check_plot(Path(bench.output.plot))
    server = bench.server
    model = bench.target.model or await _first_model(server)
    tokenizer = bench.target.tokenizer or model
    run = describe(
        bench.target, bench.traffic, bench.output,
        {"model_id": model, "tokenizer_id": tokenizer, "num_prompts": bench.data.num_prompts,
         **_adapters(bench.traffic)},
        datetime.now(),
    )  # fmt: skip
    samples = make_samples(
        bench.data, bench.lengths, open_codec(tokenizer), is_chat=bench.target.is_chat
    )
    samples = _assigned(samples, bench.traffic, bench.data.seed)
    served = bench.target.served_model_name or model
    plan = _plan(bench, served, len(samples))
    await _prepare(bench, served, plan, samples)
    print(_traffic_lines(bench.traffic), flush=True)
    is_told = bench.output.spec_report
    before = await counts_of_server(server) if is_told else DraftCounts()
    records, duration_s = await run_load(plan, samples)
    counts = (await counts_of_server(server)).since(before) if is_told else before
    result = {**summarise(records, duration_s, wanted), **speculation_figures(counts)}
    errors = [record.error for record in records if record.error]
    for error in errors[:ERRORS_TOLD]:
        print(f"ranvier: a request failed: {error}", file=sys.stderr)
    print(block(result, wanted, bench.traffic))
    if is_told:
        print("\n".join(report_lines(counts)))
    path = result_path(bench.output, bench.traffic, run)
    if path is not None:
        save(path, bench.output, run, result)
    if bench.output.plot is not None:
        rate = f"{run['request_rate']} requests/s, {len(samples)} requests"
        draw(Path(bench.output.plot), records, f"{model}: {rate}")
    return 1 if len(errors) == len(records) else 0


async def _prepare(bench: ServeBench, model: str, plan: Plan, samples: list[Sample]) -> None:
    if bench.target.ready_check_timeout_sec:
        print("Starting initial single prompt test run...", flush=True)
        await wait_for_server(plan, samples[0], bench.target.ready_check_timeout_sec)
    count = bench.traffic.num_warmups
    if not count:
        return
    print(f"Warming up with {count} requests...", flush=True)
    # The measured prompts would be in the prefix cache: only their lengths are taken.
    warm = [_reversed(samples[i % len(samples)]) for i in range(count)]
    records, _ = await run_load(_plan(bench, model, count, is_warmup=True), warm)
    if all(record.error for record in records):
        raise ServerError(f"Every warm-up request failed: {records[0].error}")


def _reversed(sample: Sample) -> Sample:
    return replace(sample, prompt=sample.prompt[::-1])


def _assigned(samples: list[Sample], traffic: TrafficOptions, seed: int) -> list[Sample]:
    """The samples, each with its adapter where there are any."""
    names = traffic.lora_modules
    if not names:
        return samples
    turns = [index % len(names) for index in range(len(samples))]
    if traffic.lora_assignment == "random":
        turns = np.random.default_rng(seed).integers(len(names), size=len(samples)).tolist()
    return [replace(s, adapter=names[turn]) for s, turn in zip(samples, turns, strict=True)]


def _plan(bench: ServeBench, model: str, count: int, *, is_warmup: bool = False) -> Plan:
    target, is_chat = bench.target, bench.target.is_chat
    fields: dict[str, Any] = {"model": model, **bench.sampling}
    if bench.ignores_end:
        fields["ignore_eos"] = True
    if target.logprobs is not None:
        wanted = {"logprobs": True, "top_logprobs": target.logprobs}
        fields |= wanted if is_chat else {"logprobs": target.logprobs}
    if target.chat_template_kwargs is not None:
        fields["chat_template_kwargs"] = target.chat_template_kwargs
    fields |= target.extra_body or {}
    limit = "max_completion_tokens" if is_chat else "max_tokens"

    def make_body(sample: Sample) -> dict[str, Any]:
        asked: dict[str, Any] = {"prompt": sample.prompt}
        if is_chat:
            asked = {"messages": [{"role": "user", "content": sample.prompt}]}
        if sample.adapter:
            asked["model"] = sample.adapter
        return {limit: sample.output_len, **fields, **asked}

    return Plan(
        server=bench.server,
        route=target.endpoint or ROUTES[is_chat],
        make_body=make_body,
        due_s=[0.0] * count if is_warmup else schedule(bench.traffic, count, bench.data.seed),
        concurrency_max=bench.traffic.max_concurrency,
        id_prefix=target.request_id_prefix,
        is_shown=not bench.output.disable_tqdm,
    )


def _adapters(traffic: TrafficOptions) -> dict[str, Any]:
    """What a result says of adapters."""
    if not traffic.lora_modules:
        return {}
    names = list(traffic.lora_modules)
    return {"lora_modules": names, "lora_assignment": traffic.lora_assignment}


def _traffic_lines(traffic: TrafficOptions) -> str:
    shape = number("burstiness", traffic.burstiness)
    kind = "Poisson process" if shape == 1 else "Gamma distribution"
    kind = "regular" if math.isinf(shape) else kind
    rate = f"Traffic request rate: {traffic.rate}"
    if traffic.ramp_up_strategy is not None:
        ends = f"{traffic.ramp_up_start_rps} to {traffic.ramp_up_end_rps}"
        rate = f"Traffic ramp-up strategy: {traffic.ramp_up_strategy}, {ends} requests/s"
    return (
        f"Starting main benchmark run...\n{rate}\nBurstiness factor: {shape} ({kind})\n"
        f"Maximum request concurrency: {traffic.max_concurrency}"
    )


async def _first_model(server: Server) -> str:
    routes = Server(parse_url(server.address.url + "/v1"), server.api_key, server.headers)
    names = await routes.models()
    if not names:
        raise ServerError(f"{server.address.url} serves no model.")
    return names[0]
