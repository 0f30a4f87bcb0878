"""Ranvier: serve language models from programs compiled ahead of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ranvier.version import __version__

if TYPE_CHECKING:
    from ranvier.cli.cross import compile
    from ranvier.cli.options.settings import Options as EngineArgs
    from ranvier.cli.wire import LLM
    from ranvier.core.sampling import SamplingParams
    from ranvier.core.structured import StructuredOutputsParams
    from ranvier.offline.adapters import LoRARequest
    from ranvier.offline.outputs import CompletionOutput, RequestOutput

__all__ = [
    "LLM",
    "CompletionOutput",
    "EngineArgs",
    "LoRARequest",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
    "compile",
]

_LAZY = {
    "CompletionOutput": ("ranvier.offline.outputs", "CompletionOutput"),
    "EngineArgs": ("ranvier.cli.options.settings", "Options"),
    "LLM": ("ranvier.cli.wire", "LLM"),
    "LoRARequest": ("ranvier.offline.adapters", "LoRARequest"),
    "RequestOutput": ("ranvier.offline.outputs", "RequestOutput"),
    "SamplingParams": ("ranvier.core.sampling", "SamplingParams"),
    "StructuredOutputsParams": ("ranvier.core.structured", "StructuredOutputsParams"),
    "compile": ("ranvier.cli.cross", "compile"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ranvier' has no attribute {name!r}")
    import importlib

    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)
