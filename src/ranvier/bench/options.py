"""Options of `ranvier bench`, by vLLM's names; those known to vLLM that are refused, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ranvier.core.errors import ConfigError

__all__ = [
    "BACKENDS",
    "REFUSED",
    "DataOptions",
    "LatencyOptions",
    "OutputOptions",
    "RandomOptions",
    "StartupOptions",
    "TargetOptions",
    "ThroughputOptions",
    "TrafficOptions",
    "number",
]

BACKENDS = {"vllm": "completions", "openai": "completions", "openai-chat": "chat"}
"""Backend to the kind of route it asks."""
REFUSED = {
    "tokenizer_mode": "a model has one tokenizer",
    "skip_tokenizer_init": "prompts are made with the tokenizer",
    "trust_remote_code": "code that comes with a model is never run",
    "use_beam_search": "beam search is not supported",
    "probe_request_rate": "there are no probe requests",
    "profile": "there is no profiler to start",
    "no_stream": "times of tokens need a stream",
    "self_timed": "timed traces are not supported",
    "plot_timeline": "use --plot FILE.png",
    "timeline_itl_thresholds": "use --plot FILE.png",
    "plot_dataset_stats": "use --plot FILE.png",
    "async_engine": "throughput is measured on the offline engine",
    "prequeue_requests": "throughput is measured on the offline engine",
    "hf_max_batch_size": "other engines are measured by benchmarks/compare.py",
    "hf_enable_torch_compile": "other engines are measured by benchmarks/compare.py",
    "enable_multimodal_chat": "only text models are served in this version",
    "hf_subset": "data sets of the hub are not fetched; use custom or sharegpt with a file",
    "hf_split": "data sets of the hub are not fetched; use custom or sharegpt with a file",
    "hf_name": "data sets of the hub are not fetched; use custom or sharegpt with a file",
    "hf_output_len": "data sets of the hub are not fetched; use custom or sharegpt with a file",
}


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """The server under test and what every request asks of it."""

    backend: str = "openai"
    """vllm or openai (/v1/completions, prompts as token ids), or openai-chat."""
    base_url: str | None = None
    """Address of the server without /v1; default from host and port."""
    host: str = "127.0.0.1"
    """The server's host."""
    port: int = 8000
    """The server's port."""
    endpoint: str | None = None
    """Route; default /v1/completions, or /v1/chat/completions for openai-chat."""
    header: tuple[str, ...] = ()
    """Headers of every request, as NAME=VALUE."""
    insecure: bool = False
    """Do not verify the server's certificate."""
    api_key: str | None = None
    """The server's key; default OPENAI_API_KEY."""
    model: str | None = None
    """Model whose tokenizer makes the prompts; default the first that the server lists."""
    served_model_name: str | None = None
    """The model's name in requests; default --model."""
    tokenizer: str | None = None
    """Folder, file or demo name to take the tokenizer from; default --model."""
    ready_check_timeout_sec: int = 0
    """Wait that long for the server's first answer; 0 does not wait."""
    request_id_prefix: str = "bench-"
    """Start of the X-Request-Id of every request."""
    ignore_eos: bool | None = None
    """Generate to the asked length; default true for random data, else false."""
    logprobs: int | None = None
    """Log-probabilities per token to ask for."""
    extra_body: dict[str, Any] | None = None
    """Further fields of every request."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template (openai-chat)."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise ConfigError(f"backend {self.backend!r} is not supported; known: {known}.")

    @property
    def is_chat(self) -> bool:
        return BACKENDS[self.backend] == "chat"


@dataclass(frozen=True, kw_only=True)
class RandomOptions:
    """Lengths of made-up prompts."""

    input_len: int | None = None
    """Prompt tokens of random data; the same as --random-input-len."""
    output_len: int | None = None
    """Output tokens of every data set."""
    random_input_len: int = 1024
    """Prompt tokens of a random prompt, beyond its prefix."""
    random_output_len: int = 128
    """Output tokens of a random prompt."""
    random_prefix_len: int = 0
    """Tokens that all random prompts begin with."""
    random_range_ratio: float = 0.0
    """Lengths are drawn from [length * (1 - ratio), length * (1 + ratio)]."""
    prefix_repetition_prefix_len: int = 256
    """Tokens of a shared prefix."""
    prefix_repetition_suffix_len: int = 256
    """Tokens that follow it."""
    prefix_repetition_num_prefixes: int = 10
    """How many prefixes there are."""
    prefix_repetition_output_len: int = 128
    """Output tokens of each prompt."""

    def __post_init__(self) -> None:
        if not 0 <= self.random_range_ratio < 1:
            raise ConfigError(f"random_range_ratio must be in [0, 1), is {self.random_range_ratio}")
        optional = ("input_len", "output_len")
        plain = [n for n in vars(self) if n != "random_range_ratio" and n not in optional]
        for name in [*plain, *(n for n in optional if getattr(self, n) is not None)]:
            least = 0 if "prefix_len" in name else 1
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, is {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which prompts, and how many."""

    dataset_name: str = "random"
    """random, prefix_repetition, sharegpt (a JSON file) or custom (JSON lines with "prompt")."""
    dataset_path: str | None = None
    """The file of sharegpt or custom."""
    num_prompts: int = 1000
    """How many requests."""
    seed: int = 0
    """Seed of prompts and of arrival times."""
    sharegpt_output_len: int | None = None
    """Output tokens; default the length of the recorded answer."""
    custom_output_len: int = 256
    """Output tokens; -1 takes each line's "output_tokens"."""
    disable_shuffle: bool = False
    """Keep the order of the file, or of the prefixes."""
    oversample: bool = True
    """Repeat prompts of a file that has too few."""
    skip_chat_template: bool = False
    """Send custom prompts as they are; else the model's chat template goes around them."""

    def __post_init__(self) -> None:
        known = ("random", "prefix_repetition", "sharegpt", "custom")
        if self.dataset_name not in known:
            raise ConfigError(
                f"dataset_name {self.dataset_name!r} is not supported; known: {', '.join(known)}."
            )
        needs_file = self.dataset_name in ("sharegpt", "custom")
        if needs_file != (self.dataset_path is not None):
            must = "needs" if needs_file else "takes no"
            raise ConfigError(f"dataset_name {self.dataset_name} {must} --dataset-path.")
        if self.num_prompts < 1:
            raise ConfigError(f"num_prompts must be at least 1, is {self.num_prompts}.")


@dataclass(frozen=True, kw_only=True)
class TrafficOptions:
    """When requests are sent."""

    request_rate: str = "inf"
    """Requests per second; inf sends all at once."""
    burstiness: str = "1.0"
    """1 is a Poisson process, below 1 more bursty, above 1 more even, inf regular."""
    max_concurrency: int | None = None
    """Requests in flight, at most."""
    num_warmups: int = 0
    """Requests before the measured ones."""
    ramp_up_strategy: str | None = None
    """linear or exponential: from one rate to another over the run."""
    ramp_up_start_rps: float | None = None
    """First rate of a ramp."""
    ramp_up_end_rps: float | None = None
    """Last rate of a ramp."""
    lora_modules: tuple[str, ...] = ()
    """Adapters of the server, by name: each request is for one of them."""
    lora_assignment: str = "random"
    """How requests get theirs: random (drawn by --seed) or round-robin."""

    def __post_init__(self) -> None:
        if self.lora_assignment not in ("random", "round-robin"):
            raise ConfigError(f"lora_assignment is {self.lora_assignment!r}: random, round-robin")
        for name in ("request_rate", "burstiness"):
            number(name, getattr(self, name))
        ramp = (self.ramp_up_start_rps, self.ramp_up_end_rps)
        if self.ramp_up_strategy is None:
            if ramp != (None, None):
                raise ConfigError("ramp_up_start_rps and ramp_up_end_rps need --ramp-up-strategy.")
            return
        if self.ramp_up_strategy not in ("linear", "exponential"):
            raise ConfigError(f"ramp_up_strategy is {self.ramp_up_strategy!r}: linear, exponential")
        if not all(rate is not None and rate > 0 for rate in ramp):
            raise ConfigError("A ramp needs --ramp-up-start-rps and --ramp-up-end-rps above 0.")
        if self.rate != math.inf:
            raise ConfigError("Give --request-rate or a ramp, not both.")

    @property
    def rate(self) -> float:
        return number("request_rate", self.request_rate)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is told and what is kept."""

    percentile_metrics: str = "ttft,tpot,itl"
    """Which of ttft, tpot, itl, e2el are told, with commas."""
    metric_percentiles: str = "99"
    """Percentiles of each, with commas."""
    goodput: tuple[str, ...] = ()
    """Limits in ms, as ttft:200 tpot:40 e2el:5000; requests that meet all are counted."""
    save_result: bool = False
    """Write the result as JSON."""
    save_detailed: bool = False
    """With the lengths, times, texts and errors of every request."""
    append_result: bool = False
    """Add the result to the file as one more line."""
    result_dir: str | None = None
    """Folder of the file; default this one."""
    result_filename: str | None = None
    """Name of the file; default from backend, rate, model and date."""
    metadata: tuple[str, ...] = ()
    """Further fields of the file, as NAME=VALUE."""
    label: str | None = None
    """Name of the run; default the backend."""
    plot: str | None = None
    """A PNG file for latencies and throughput over time (needs the extra `bench`)."""
    disable_tqdm: bool = False
    """No progress bar."""
    spec_report: bool = False
    """Tell what guessing yielded (speculative decoding), and how it is counted."""


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """One batch, again and again."""

    input_len: int = 32
    """Prompt tokens."""
    output_len: int = 128
    """Output tokens."""
    batch_size: int = 8
    """Prompts of a batch."""
    n: int = 1
    """Sequences of a prompt."""
    num_iters_warmup: int = 10
    """Batches before the measured ones."""
    num_iters: int = 30
    """Measured batches."""
    output_json: str | None = None
    """File for the result."""
    spec_report: bool = False
    """Tell what guessing yielded (speculative decoding), and how it is counted."""
    disable_detokenize: bool = False
    """Leave out turning ids into text."""


@dataclass(frozen=True, kw_only=True)
class ThroughputOptions:
    """All prompts at once."""

    n: int = 1
    """Sequences of a prompt."""
    num_warmups: int = 0
    """Prompts before the measured ones."""
    output_json: str | None = None
    """File for the result."""
    spec_report: bool = False
    """Tell what guessing yielded (speculative decoding), and how it is counted."""
    disable_detokenize: bool = False
    """Leave out turning ids into text."""
    lora_path: tuple[str, ...] = ()
    """Folders of adapters: each request takes one at random. A single folder is taken under
    max_loras names (needs --enable-lora)."""


@dataclass(frozen=True, kw_only=True)
class StartupOptions:
    """How often a server is started."""

    num_iters_cold: int = 3
    """Starts without an artifact."""
    num_iters_warmup: int = 1
    """Starts with the artifact before the measured ones."""
    num_iters_warm: int = 3
    """Measured starts with the artifact."""
    output_json: str | None = None
    """File for the result."""


def number(name: str, text: str) -> float:
    """A number above 0; inf is one. Raises ConfigError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise ConfigError(f"{name} must be a number above 0 or inf, is {text!r}.")
    return value
