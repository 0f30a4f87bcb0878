"""Latency of one batch and throughput of many prompts, on a model in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ranvier.bench.dataset import Sample, random_ids, random_tokens
from ranvier.bench.options import LatencyOptions, ThroughputOptions
from ranvier.bench.speculation import (
    DraftCounts,
    counts_of_stats,
    report_lines,
    speculation_figures,
)
from ranvier.core.errors import ConfigError
from ranvier.core.sampling import SamplingParams
from ranvier.offline.adapters import LoRARequest
from ranvier.offline.llm import Offline
from ranvier.text.codec import TextCodec

__all__ = ["draw_adapters", "measure_latency", "measure_throughput"]

PERCENTILES = (10, 25, 50, 75, 90, 99)


def measure_latency(llm: Offline, codec: TextCodec, options: LatencyOptions) -> dict[str, Any]:
    """Run batches, print and return vLLM's figures. Every batch has prompts of its own, so that
    the prefix cache helps none."""
    rng, tokens = np.random.default_rng(0), random_tokens(codec)
    params = SamplingParams(
        n=options.n,
        temperature=1.0,
        ignore_eos=True,
        max_tokens=options.output_len,
        detokenize=not options.disable_detokenize,
    )

    def batch() -> float:
        ids = [random_ids(rng, tokens, options.input_len) for _ in range(options.batch_size)]
        start = time.perf_counter()
        llm.generate([{"prompt_token_ids": i} for i in ids], params, use_tqdm=False)
        return time.perf_counter() - start

    print("Warming up...")
    for _ in tqdm(range(options.num_iters_warmup), desc="Warmup iterations", disable=None):
        batch()
    before = counts_of_stats(llm.stats())
    bar = tqdm(range(options.num_iters), desc="Bench iterations", disable=None)
    latencies = [batch() for _ in bar]
    shares = {str(p): float(np.percentile(latencies, p)) for p in PERCENTILES}
    result = {
        "avg_latency": float(np.mean(latencies)), "latencies": latencies, "percentiles": shares,
    }  # fmt: skip
    print(f"Avg latency: {result['avg_latency']} seconds")
    for share, value in shares.items():
        print(f"{share}% percentile latency: {value} seconds")
    result |= _speculation(llm, before, is_told=options.spec_report)
    _write(options.output_json, result)
    return result


def measure_throughput(
    llm: Offline,
    samples: list[Sample],
    options: ThroughputOptions,
    model: str,
    adapters: list[LoRARequest] | None = None,
) -> dict[str, Any]:
    """Run all samples at once after the warm-ups (of equal lengths, other prompts); `adapters`: one
    for each sample."""
    count = options.num_warmups
    warm, measured = samples[:count], samples[count:]
    if warm:
        print(f"Warming up with {len(warm)} requests...")
        _generate(llm, warm, options, adapters and adapters[:count])
    before = counts_of_stats(llm.stats())
    elapsed_s, outputs = _generate(llm, measured, options, adapters and adapters[count:])
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    generated = sum(len(part.token_ids) for output in outputs for part in output.outputs)
    total = prompt + generated
    print(
        f"Throughput: {len(outputs) / elapsed_s:.2f} requests/s, "
        f"{total / elapsed_s:.2f} total tokens/s, {generated / elapsed_s:.2f} output tokens/s"
    )
    print(f"Total num prompt tokens:  {prompt}")
    print(f"Total num output tokens:  {generated}")
    result = {
        "model_id": model,
        "elapsed_time": elapsed_s,
        "num_requests": len(outputs),
        "total_num_tokens": total,
        "requests_per_second": len(outputs) / elapsed_s,
        "tokens_per_second": total / elapsed_s,
        **_speculation(llm, before, is_told=options.spec_report),
    }
    _write(options.output_json, result)
    return result


def draw_adapters(
    folders: Sequence[str], count: int, *, slots: int, seed: int
) -> list[LoRARequest] | None:
    """An adapter for each of `count` requests: of the folders, or `slots` names of a single one."""
    if not folders:
        return None
    paths = list(folders) if len(folders) > 1 else list(folders) * slots
    kinds = [LoRARequest(f"bench-{i}", i, path) for i, path in enumerate(paths, 1)]
    return [kinds[i] for i in np.random.default_rng(seed).integers(0, len(kinds), count)]


def _speculation(llm: Offline, before: DraftCounts, *, is_told: bool) -> dict[str, Any]:
    """What guessing yielded since `before`, told where asked."""
    counts = counts_of_stats(llm.stats()).since(before)
    if is_told:
        print("\n".join(report_lines(counts)))
    return speculation_figures(counts)


def _generate(
    llm: Offline,
    samples: list[Sample],
    options: ThroughputOptions,
    adapters: list[LoRARequest] | None,
) -> tuple[float, list[Any]]:
    params = [
        SamplingParams(
            n=options.n,
            temperature=1.0,
            ignore_eos=True,
            max_tokens=sample.output_len,
            detokenize=not options.disable_detokenize,
        )
        for sample in samples
    ]
    prompts = [s.prompt if isinstance(s.prompt, str) else list(s.prompt) for s in samples]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, lora_request=adapters)
    return time.perf_counter() - start, outputs


def _write(path: str | None, result: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(result, indent=4) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error}") from None
