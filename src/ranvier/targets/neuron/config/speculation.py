"""NxDI's speculation fields beside vLLM's speculative_config: one setting of both, or problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ranvier.targets.neuron.config.read import Problem

__all__ = ["OPTION", "SWITCHES", "join_speculation"]

OPTION = "speculative_config"
SWITCHES = ("enable_fused_speculation", "enable_eagle_speculation", "is_eagle3")
HEADS = ("eagle", "eagle3")


def join_speculation(
    values: Mapping[str, Any], config: Mapping[str, Any] | None, prefix: str
) -> tuple[dict[str, Any] | None, list[Problem]]:
    """speculative_config with what the fields add; None where they ask for nothing.

    In NxDI the draft is named elsewhere; here, as in vLLM, by speculative_config.
    """
    length, wanted = values.get("speculation_length") or 0, [n for n in SWITCHES if values.get(n)]
    if not length and not wanted:
        return None, []
    first = "speculation_length" if length else wanted[0]
    if not config:
        fix = "Add --speculative-config, for example {'method': 'ngram'} or {'model': DRAFT}."
        limit = "names no draft: speculative_config does."
        return None, [Problem(f"{prefix}.{first}", values[first], limit, fix)]
    problems, joined = [], dict(config)
    count = config.get("num_speculative_tokens")
    if length and count not in (None, length):
        limit = f"contradicts {OPTION}.num_speculative_tokens = {count}."
        fix = "Give one of them, or make them equal."
        problems.append(Problem(f"{prefix}.speculation_length", length, limit, fix))
    elif length:
        joined["num_speculative_tokens"] = length
    method = config.get("method")
    for name in wanted[-1:] if wanted[-1:] != ["enable_fused_speculation"] else ():
        head = "eagle3" if name == "is_eagle3" else "eagle"
        if method not in (None, head, *(HEADS if head == "eagle" else ())):
            limit = f"contradicts {OPTION}.method = {method!r}."
            fix = f"Leave the method out, or give {head!r}."
            problems.append(Problem(f"{prefix}.{name}", True, limit, fix))
        joined["method"] = method or head
    return joined, problems
