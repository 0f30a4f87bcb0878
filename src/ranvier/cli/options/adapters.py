"""The adapters that `--lora-modules` names, in vLLM's two forms: name=path, and JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ranvier.core.errors import ConfigError

__all__ = ["AdapterModule", "read_modules"]


class AdapterModule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter to serve from the start."""

    name: str
    path: str
    base_model_name: str | None = None


def read_modules(values: Sequence[str]) -> list[AdapterModule]:
    """The adapters of `values`. Raises ConfigError, also for a name that comes twice."""
    found = [_read(value) for value in values]
    names = [module.name for module in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"lora_modules: the name {name!r} comes twice.")
    return found


def _read(value: str) -> AdapterModule:
    if value.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(value, type=AdapterModule)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(
                f"lora_modules: {value!r}: {error}.",
                hint='An item in JSON is {"name": ..., "path": ..., "base_model_name": ...}.',
            ) from None
    name, is_pair, path = value.partition("=")
    if not is_pair or not name or not path:
        raise ConfigError(f"lora_modules: {value!r} is not name=path, and no JSON object.")
    return AdapterModule(name, path)
