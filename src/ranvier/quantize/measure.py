"""Text to token sequences, and what quantising costs on them: perplexity and KL divergence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ranvier.core.errors import ConfigError
from ranvier.quantize.forward import Head
from ranvier.weights.checkpoint import Checkpoint

__all__ = ["TEXTS", "Divergence", "compare", "sequences"]

Floats = NDArray[np.float32]

TEXTS = Path(__file__).parent / "texts"
"""Shipped: calibration.txt and evaluation.txt, other chapters of a book in the public domain."""
TEXT_BYTES_MAX = 64 * 2**20
SEQUENCE = 512


def sequences(
    checkpoint: Checkpoint, path: Path, vocab_size: int, tokens_max: int
) -> NDArray[np.int64]:
    """A text file as ids [S, T], at most `tokens_max` of them. Raises ConfigError.

    T is 512 or the whole text where that is shorter; what is left of the last sequence is not used.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such text file.")
    if path.stat().st_size > TEXT_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {TEXT_BYTES_MAX} bytes.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}.") from None
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json())
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    first = _first(tokenizer, checkpoint)
    size = min(SEQUENCE, len(ids) + len(first)) - len(first)
    if size < 8:
        raise ConfigError(f"{path}: {len(ids)} tokens are too few to measure anything.")
    count = max(1, min(len(ids) // size, tokens_max // (size + len(first))))
    body = np.asarray(ids[: count * size], np.int64).reshape(count, size)
    if int(body.max()) >= vocab_size:
        raise ConfigError(f"{path}: the tokenizer gives ids beyond the model's {vocab_size}.")
    starts = np.tile(np.asarray(first, np.int64), (count, 1))
    return np.concatenate([starts, body], 1)


def _first(tokenizer: Tokenizer, checkpoint: Checkpoint) -> list[int]:
    """The ids that the model expects before a text: its begin token, or none."""
    found = tokenizer.encode("a").ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    given = found[: len(found) - len(plain)] if found[-len(plain) :] == plain else []
    if not given and checkpoint.tokenizer_config.get("add_bos_token"):
        bos = checkpoint.config.get("bos_token_id")
        return [bos] if isinstance(bos, int) else []
    return list(given)


@dataclass(frozen=True)
class Divergence:
    """Per token, over the same text: perplexities, KL(original || quantised) in nats, agreement."""

    tokens: int
    perplexity_original: float
    perplexity_quantised: float
    kl_mean: float
    same_top_share: float

    @property
    def perplexity_increase(self) -> float:
        return self.perplexity_quantised / self.perplexity_original - 1


def compare(
    ids_ST: NDArray[np.int64], original_STD: Floats, quantised_STD: Floats, last: Head
) -> Divergence:
    """Compare the models by their last hidden states, [S, T, D] each.

    Cost: the logits of one sequence, twice, at a time.
    """
    sums = np.zeros(4)
    for ids, original, quantised in zip(ids_ST, original_STD, quantised_STD, strict=True):
        p = _log_softmax(last.logits(original[:-1]))
        q = _log_softmax(last.logits(quantised[:-1]))
        places = np.arange(len(ids) - 1)
        kl = (np.exp(p) * (p - q)).sum(-1)
        is_same = p.argmax(-1) == q.argmax(-1)
        sums += [-p[places, ids[1:]].sum(), -q[places, ids[1:]].sum(), kl.sum(), is_same.sum()]
    count = ids_ST.shape[0] * (ids_ST.shape[1] - 1)
    mean = sums / count
    return Divergence(
        tokens=count,
        perplexity_original=math.exp(mean[0]),
        perplexity_quantised=math.exp(mean[1]),
        kl_mean=float(mean[2]),
        same_top_share=float(mean[3]),
    )


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float32)
