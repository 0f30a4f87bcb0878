"""The adapters of an engine: what fits the slots of an artifact, and where folders come from."""

from __future__ import annotations

from pathlib import Path

from ranvier.adapters.loading import ThreadLoader
from ranvier.adapters.registry import Adapters
from ranvier.artifact.read import read_manifest
from ranvier.cli.options.adapters import AdapterOptions, read_modules
from ranvier.core.adapter import AdapterWeights
from ranvier.core.errors import AdapterError, CheckpointError, RanvierError
from ranvier.offline.llm import Offline
from ranvier.weights.hub import fetch_adapter, is_hub_id
from ranvier.weights.lora.form import form_of, stack_bytes
from ranvier.weights.lora.pack import read_adapter

__all__ = ["load_modules", "open_adapters"]


def open_adapters(folder: Path, options: AdapterOptions) -> Adapters | None:
    """The registry for an artifact's slots; None where it has none."""
    form = form_of(read_manifest(folder).model)
    if form is None:
        return None

    def read(path: str) -> AdapterWeights:
        return read_adapter(_fetched(path) if _is_hub(path) else Path(path).expanduser(), form)

    largest = stack_bytes(form) // form.slots * form.cores * form.stages
    return Adapters(
        ThreadLoader(read, is_remote=_is_hub),
        host_max=options.host_adapters,
        bytes_max=options.host_bytes(largest),
        slots=form.slots,
    )


def _is_hub(path: str) -> bool:
    return is_hub_id(path) and not Path(path).expanduser().exists()


def _fetched(name: str) -> Path:
    """The folder of a hub id. Raises AdapterError: to who asks, it is an adapter that is wrong."""
    try:
        return fetch_adapter(name)
    except CheckpointError as error:
        raise AdapterError(error.message, hint=error.hint) from None


def load_modules(llm: Offline, options: AdapterOptions) -> None:
    """Serve the adapters of `lora_modules`; the LLM is closed when one of them is wrong."""
    try:
        for module in read_modules(options.lora_modules):
            llm.load_adapter(module.name, module.path, pinned=module.pinned)
    except RanvierError:
        llm.close()
        raise
