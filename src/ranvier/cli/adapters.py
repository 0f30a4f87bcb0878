"""The adapters of an engine: what fits the slots of an artifact, and where folders come from."""

from __future__ import annotations

from pathlib import Path

from ranvier.adapters.loading import ThreadLoader
from ranvier.adapters.registry import Adapters
from ranvier.artifact.read import read_manifest
from ranvier.cli.options.adapters import AdapterOptions, read_modules
from ranvier.core.adapter import AdapterWeights
from ranvier.core.errors import RanvierError
from ranvier.offline.llm import Offline
from ranvier.weights.hub import fetch_adapter, is_hub_id
from ranvier.weights.lora.form import form_of
from ranvier.weights.lora.pack import read_adapter

__all__ = ["load_modules", "open_adapters"]


def open_adapters(folder: Path, options: AdapterOptions) -> Adapters | None:
    """The registry for an artifact's slots; None where it has none."""
    form = form_of(read_manifest(folder).model)
    if form is None:
        return None

    def read(path: str) -> AdapterWeights:
        found = Path(path).expanduser()
        if not found.exists() and is_hub_id(path):
            found = fetch_adapter(path)
        return read_adapter(found, form)

    return Adapters(ThreadLoader(read), host_max=options.host_adapters, slots=form.slots)


def load_modules(llm: Offline, options: AdapterOptions) -> None:
    """Serve the adapters of `lora_modules`; the LLM is closed when one of them is wrong."""
    try:
        for module in read_modules(options.lora_modules):
            llm.load_adapter(module.name, module.path, pinned=module.pinned)
    except RanvierError:
        llm.close()
        raise
