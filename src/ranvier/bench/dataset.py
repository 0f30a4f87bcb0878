"""Data sets: prompts with the number of tokens to generate, equal for equal seeds.

Prompts made of random ids stay ids where the route takes ids, so their lengths are exact; a chat
gets them as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranvier.bench.options import DataOptions, RandomOptions
from ranvier.core.errors import ConfigError
from ranvier.text.codec import TextCodec

__all__ = ["Sample", "make_samples", "random_ids", "random_tokens"]

LENGTH_MIN, PROMPT_MAX, TOTAL_MAX = 4, 1024, 2048
"""ShareGPT's usual filter: neither side shorter, no longer prompt, no longer whole (tokens)."""


@dataclass(frozen=True)
class Sample:
    """One request to be: text or ids, how many tokens it has, how many to generate."""

    prompt: str | list[int]
    input_len: int
    output_len: int
    adapter: str = ""
    """The name to ask for instead of the model's."""


def make_samples(
    data: DataOptions, lengths: RandomOptions, codec: TextCodec, *, is_chat: bool
) -> list[Sample]:
    """The prompts that the options name. Raises ConfigError naming file and line."""
    rng = np.random.default_rng(data.seed)
    if data.dataset_name == "random":
        samples = list(_random(data, lengths, codec, rng))
    elif data.dataset_name == "prefix_repetition":
        samples = list(_repeated(data, lengths, codec, rng))
    elif data.dataset_name == "sharegpt":
        samples = _sharegpt(data, lengths, codec, rng)
    else:
        samples = _custom(data, lengths, codec, is_chat=is_chat)
    samples = _exactly(samples, data, rng)
    if not is_chat:
        return samples
    return [_as_text(sample, codec) for sample in samples]


def random_tokens(codec: TextCodec) -> NDArray[np.int64]:
    """The ids that a prompt may be made of: all but the special ones."""
    special = set(codec.tokenizer.get_added_tokens_decoder())
    return np.asarray([i for i in range(codec.vocab_size) if i not in special], np.int64)


def random_ids(rng: np.random.Generator, tokens: NDArray[np.int64], count: int) -> list[int]:
    """`count` ids, uniformly drawn."""
    return [int(i) for i in rng.choice(tokens, count)]


def _random(
    data: DataOptions, lengths: RandomOptions, codec: TextCodec, rng: np.random.Generator
) -> Iterator[Sample]:
    tokens, ratio = random_tokens(codec), lengths.random_range_ratio
    asked_in = lengths.input_len or lengths.random_input_len
    asked_out = lengths.output_len or lengths.random_output_len
    prefix = random_ids(rng, tokens, lengths.random_prefix_len)
    for _ in range(data.num_prompts):
        count, wanted = _about(rng, asked_in, ratio), _about(rng, asked_out, ratio)
        yield Sample(prefix + random_ids(rng, tokens, count), len(prefix) + count, wanted)


def _about(rng: np.random.Generator, length: int, ratio: float) -> int:
    low, high = int(length * (1 - ratio)), int(np.ceil(length * (1 + ratio)))
    return max(1, int(rng.integers(low, high, endpoint=True)))


def _repeated(
    data: DataOptions, lengths: RandomOptions, codec: TextCodec, rng: np.random.Generator
) -> Iterator[Sample]:
    """Prompts in groups that share a prefix, as many of each prefix as the number allows."""
    groups = lengths.prefix_repetition_num_prefixes
    if data.num_prompts < groups:
        raise ConfigError(f"num_prompts={data.num_prompts} is below {groups} prefixes.")
    tokens = random_tokens(codec)
    output = lengths.output_len or lengths.prefix_repetition_output_len
    for _ in range(groups):
        prefix = random_ids(rng, tokens, lengths.prefix_repetition_prefix_len)
        for _ in range(data.num_prompts // groups):
            ids = prefix + random_ids(rng, tokens, lengths.prefix_repetition_suffix_len)
            yield Sample(ids, len(ids), output)


def _sharegpt(
    data: DataOptions, lengths: RandomOptions, codec: TextCodec, rng: np.random.Generator
) -> list[Sample]:
    """First turns of the conversations, with the recorded answer's length."""
    path = Path(str(data.dataset_path))
    value = _json(_read(path), str(path))
    if not isinstance(value, list):
        raise ConfigError(f"{path}: must hold a list of conversations.")
    order = np.arange(len(value)) if data.disable_shuffle else rng.permutation(len(value))
    wanted, samples = lengths.output_len or data.sharegpt_output_len, []
    for index in order:
        texts = _turns(value[int(index)])
        if len(texts) < 2:
            continue
        prompt = len(codec.encode(texts[0]))
        answer = len(codec.encode(texts[1], add_special_tokens=False))
        output = wanted or answer
        is_short = prompt < LENGTH_MIN or (wanted is None and output < LENGTH_MIN)
        if not is_short and prompt <= PROMPT_MAX and prompt + output <= TOTAL_MAX:
            samples.append(Sample(texts[0], prompt, output))
        if len(samples) == data.num_prompts:
            break
    return samples


def _turns(item: Any) -> list[str]:
    turns = item.get("conversations") if isinstance(item, dict) else None
    found = [t.get("value") for t in turns or () if isinstance(t, dict)]
    return [text for text in found if isinstance(text, str)]


def _custom(
    data: DataOptions, lengths: RandomOptions, codec: TextCodec, *, is_chat: bool
) -> list[Sample]:
    """JSON lines with "prompt", and "output_tokens" where --custom-output-len is -1."""
    path, samples = Path(str(data.dataset_path)), []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        where, fields = f"{path}, line {number}", _json(line, f"{path}, line {number}")
        if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
            raise ConfigError(f'{where}: has no text "prompt".')
        output: Any = lengths.output_len or data.custom_output_len
        if output == -1:
            output = fields.get("output_tokens")
        if type(output) is not int or output < 1:
            raise ConfigError(f'{where}: "output_tokens" is {output!r}, not a number above 0.')
        prompt = fields["prompt"]
        is_plain = is_chat or data.skip_chat_template
        if not is_plain:
            prompt = codec.render_chat([{"role": "user", "content": prompt}])
        count = len(codec.encode(prompt, add_special_tokens=is_plain))
        samples.append(Sample(prompt, count, output))
    return samples


def _exactly(samples: list[Sample], data: DataOptions, rng: np.random.Generator) -> list[Sample]:
    """As many as were asked for: shuffled, cut, or repeated."""
    if not samples:
        raise ConfigError(f"{data.dataset_path}: has no usable prompt.")
    if not data.disable_shuffle and data.dataset_name in ("custom", "prefix_repetition"):
        samples = [samples[int(i)] for i in rng.permutation(len(samples))]
    missing = data.num_prompts - len(samples)
    if missing > 0 and data.oversample:
        samples = samples + [samples[int(i)] for i in rng.integers(0, len(samples), missing)]
    return samples[: data.num_prompts]


def _as_text(sample: Sample, codec: TextCodec) -> Sample:
    if isinstance(sample.prompt, str):
        return sample
    return Sample(codec.decode(sample.prompt), sample.input_len, sample.output_len)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from None
