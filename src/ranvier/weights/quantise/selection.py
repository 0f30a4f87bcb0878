"""Which modules are quantised, and how: one rule for files and for quantising while loading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ranvier.core.errors import ConfigError
from ranvier.weights.quantise.scheme import SCHEMES, Scheme

__all__ = ["HEADS", "is_layer_linear", "matches", "module_of", "select", "with_one_group"]

HEADS = ("lm_head.weight", "model.embed_tokens.weight")
HEAD_SCHEMES = {
    16: SCHEMES["int8"],
    8: replace(SCHEMES["int8"], activation_bits=8, activation_group=64),
}
LINEAR = re.compile(r"(^|\.)layers\.\d+\..*_proj\.weight$")


def module_of(name: str) -> str:
    """The module that a tensor belongs to: its name without `.weight`."""
    return name.removesuffix(".weight")


def is_layer_linear(name: str) -> bool:
    return LINEAR.search(name) is not None


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern names a module: `re:` and a regular expression, or (part of) its path.

    Raises re.error.
    """
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    return f".{pattern}." in f".{module}."


def select(
    names: Iterable[str], scheme: Scheme, ignore: Sequence[str] = (), *, with_head: bool
) -> dict[str, Scheme]:
    """The scheme of each tensor that is quantised. Raises ConfigError.

    All linears of the layers take `scheme`. The head is read whole each step: `with_head` it (tied:
    the embedding) becomes int8 per output, whatever the scheme. Where the others' activations have
    8 bits its own have too, in groups: one scale a token costs it accuracy. A pattern must match a
    module.
    """
    names = list(names)
    found = {name: scheme for name in names if is_layer_linear(name)}
    head = next((name for name in HEADS if name in names), None)
    if with_head and head is not None:
        found[head] = HEAD_SCHEMES[scheme.activation_bits]
    modules = {module_of(name) for name in (*names, "lm_head.weight")}
    for pattern in ignore:
        if not any(_matches(pattern, module) for module in modules):
            raise ConfigError(
                f"modules not to convert: {pattern!r} matches no module.",
                hint="Give (part of) a module's path, or re: and a regular expression.",
            )
    is_tied = "lm_head.weight" not in names

    def is_kept(name: str) -> bool:
        known = [module_of(name)] + (["lm_head"] if is_tied and name in HEADS else [])
        return any(_matches(pattern, module) for pattern in ignore for module in known)

    return {name: kind for name, kind in found.items() if not is_kept(name)}


def with_one_group(schemes: Mapping[str, Scheme], inputs: Mapping[str, int]) -> dict[str, Scheme]:
    """The schemes with the largest group that divides the inputs of all: for files.

    transformers 5 widens all linears by one group. Raises CheckpointError where there is none.
    """
    groups = [s.group_of(inputs[name], module_of(name)) for name, s in schemes.items() if s.group]
    if not groups:
        return dict(schemes)
    return {
        name: replace(scheme, group=min(groups)) if scheme.group else scheme
        for name, scheme in schemes.items()
    }


def _matches(pattern: str, module: str) -> bool:
    try:
        return matches(pattern, module)
    except re.error as error:
        raise ConfigError(f"modules not to convert: {pattern!r}: {error}.") from None
