"""Build tokenizer.json from a GGUF file's metadata: byte-level BPE, and SentencePiece BPE.

Only data is written here; the tokenizers library reads it in the text layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ranvier.core.errors import CheckpointError

__all__ = ["tokenizer_json"]

MODELS = ("gpt2", "llama")
TOKEN_CHARS_MAX = 4096
CONTROL, USER_DEFINED, BYTE = 3, 4, 6
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PATTERNS = {"qwen2": QWEN2, "llama-bpe": LLAMA3, "llama3": LLAMA3}
DIGITS_FIRST = ("smollm",)


def tokenizer_json(meta: dict[str, Any], path: Path) -> str:
    """The text of tokenizer.json. Raises CheckpointError for a model it does not know."""
    model, tokens = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError(f"{path}: tokenizer.ggml.tokens is missing.")
    if not all(isinstance(token, str) and len(token) <= TOKEN_CHARS_MAX for token in tokens):
        raise CheckpointError(
            f"{path}: tokenizer.ggml.tokens must be texts of at most {TOKEN_CHARS_MAX} characters."
        )
    if model not in MODELS:
        raise CheckpointError(
            f"{path}: tokenizer.ggml.model {model!r} is not supported; supported: gpt2, llama."
        )
    try:
        fields = _byte_level(meta, tokens) if model == "gpt2" else _sentencepiece(meta, tokens)
        fields["version"] = "1.0"
        fields["added_tokens"] = _added(meta, tokens)
    except (IndexError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: tokenizer.ggml: the lists do not fit each other: {error}."
        ) from error
    return json.dumps(fields, ensure_ascii=False)


def _added(meta: dict[str, Any], tokens: list[str]) -> list[dict[str, Any]]:
    kinds = meta.get("tokenizer.ggml.token_type", [])
    return [
        {
            "id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind == CONTROL,
        }
        for i, kind in enumerate(kinds[: len(tokens)])
        if kind in (CONTROL, USER_DEFINED)
    ]  # fmt: skip


def _bos(meta: dict[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    """The post-processor that puts the begin token first, where the model wants it."""
    bos = meta.get("tokenizer.ggml.bos_token_id")
    if not meta.get("tokenizer.ggml.add_bos_token", False) or bos is None:
        return None
    token = tokens[bos]
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    sequence = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": [first, sequence[0]],
        "pair": [first, *sequence],
        "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
    }


def _byte_level(meta: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    pre = str(meta.get("tokenizer.ggml.pre", "default"))
    steps: list[dict[str, Any]] = []
    if pre in DIGITS_FIRST:
        steps.append({"type": "Digits", "individual_digits": True})
    pattern = PATTERNS.get(pre, GPT2)
    steps.append(
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    )
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps.append({**level, "use_regex": False})
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": _bos(meta, tokens),
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [m.split(" ", 1) for m in meta.get("tokenizer.ggml.merges", [])],
            "ignore_merges": pre in ("llama-bpe", "llama3"),
        },
    }


def _sentencepiece(meta: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    space = "\u2581"
    steps = [{"type": "Replace", "pattern": {"String": " "}, "content": space}]
    if meta.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, {"type": "Prepend", "prepend": space})
    unknown = meta.get("tokenizer.ggml.unknown_token_id")
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": _bos(meta, tokens),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": space}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": _merges(meta, tokens),
            "unk_token": None if unknown is None else tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _merges(meta: dict[str, Any], tokens: list[str]) -> list[list[str]]:
    """SentencePiece's merges: every split of a piece into two pieces, best piece first."""
    scores = meta.get("tokenizer.ggml.scores", [])
    kinds = meta.get("tokenizer.ggml.token_type", [])
    ids = {token: i for i, token in enumerate(tokens) if kinds[i] not in (CONTROL, BYTE)}
    found = []
    for token, i in ids.items():
        splits = [
            (ids[token[:cut]], ids[token[cut:]], cut)
            for cut in range(1, len(token))
            if token[:cut] in ids and token[cut:] in ids
        ]
        found += [(-scores[i], left, right, token, cut) for left, right, cut in sorted(splits)]
    found.sort(key=lambda entry: entry[0])
    return [[token[:cut], token[cut:]] for _, _, _, token, cut in found]
