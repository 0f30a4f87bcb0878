"""Ranvier: serve language models from programs compiled ahead of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ranvier.version import __version__

if TYPE_CHECKING:
    from ranvier.cli.wire import LLM
    from ranvier.core.sampling import SamplingParams
    from ranvier.engine.outputs import CompletionOutput, RequestOutput

__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams", "__version__"]

_LAZY = {
    "CompletionOutput": "ranvier.engine.outputs",
    "LLM": "ranvier.cli.wire",
    "RequestOutput": "ranvier.engine.outputs",
    "SamplingParams": "ranvier.core.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ranvier' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
