"""Adapters at the server: their names, who may load them from where, the routes that do.

A name is one part of a path. Clients load adapters that lie below the operator's folder; any other
path of the server's machine only where the operator has said so. The engine reads the files and has
the last word: a name is listed once it has said yes.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ranvier.core.errors import ModelNotFound, RequestError
from ranvier.link.client import EngineClient
from ranvier.server.http.body import decode_body, read_body
from ranvier.server.options import ServerOptions
from ranvier.server.wire.answers import ModelCard
from ranvier.server.wire.openapi import RouteRow
from ranvier.server.wire.requests import LoadAdapterRequest, UnloadAdapterRequest

__all__ = ["AdapterRoutes", "ServedAdapters"]

NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,128}")
Load = tuple[str, str, bool | None]
"""Name, path, and whether it is pinned: equal ones at once are one load."""
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Served:
    """An adapter that requests may name."""

    path: str
    parent: str
    created: int


class ServedAdapters:
    """The adapters that requests may name beside the model's own names."""

    def __init__(self, options: ServerOptions, client: EngineClient) -> None:
        self._options = options
        self._client = client
        self._served: dict[str, Served] = {}
        self._loading: dict[Load, asyncio.Task[None]] = {}
        self._dropped: set[str] = set()
        """Names of the folder that were unloaded: they come back when a client loads them."""

    async def find(self, name: str | None) -> str:
        """The adapter that a request's `model` names; empty: the model itself.

        One that lies in the operator's folder is loaded first. Raises ModelNotFound.
        """
        if self.check(name):
            return ""
        assert name is not None
        if name not in self._served:
            await self.load(name, str(self._in_folder(name)))
        return name

    def check(self, name: str | None) -> bool:
        """Whether a request's `model` is the model itself. Raises ModelNotFound for no model."""
        if name is None or name in self._options.model_names:
            return True
        if name not in self._served and self._in_folder(name) is None:
            names = ", ".join([*self._options.model_names, *list(self._served)[:16]])
            raise ModelNotFound(
                f"The model {name[:128]!r} does not exist; served: {names}.", param="model"
            )
        return False

    def cards(self, model_len_max: int) -> list[ModelCard]:
        """Their entries of /v1/models."""
        return [
            ModelCard(
                id=name, created=one.created, root=one.path, parent=one.parent,
                max_model_len=model_len_max,
            )
            for name, one in self._served.items()
        ]  # fmt: skip

    async def load(
        self,
        name: str,
        path: str,
        *,
        parent: str | None = None,
        is_inplace: bool = False,
        is_pinned: bool | None = None,
    ) -> None:
        """Serve the adapter in a folder under a name; equal loads at once are one.

        Raises what the engine says of it.
        """
        key = (name, path, is_pinned)
        if is_inplace or key not in self._loading:
            self._check_name(name)
            work = self._load(key, parent or self._options.model_name, is_inplace)
            task = self._loading[key] = asyncio.ensure_future(work)
            task.add_done_callback(lambda done: self._ended(key, done))
        # A client that goes away does not end the load of those that wait with it.
        await asyncio.shield(self._loading[key])

    async def unload(self, name: str) -> None:
        """Serve a name no longer; what runs with it goes on. Raises ModelNotFound."""
        self._served.pop(name, None)
        if self._in_folder(name) is not None:
            self._dropped.add(name)
        await self._client.unload_adapter(name)

    def allowed(self, path: str) -> str:
        """A client's path as the engine may read it. Raises RequestError."""
        root, given = self._options.lora_folder, Path(path)
        if root is not None:
            base = Path(root).resolve()
            full = (base / given).resolve()
            is_elsewhere = self._options.allow_runtime_lora_updating and not full.exists()
            if _is_inside(full, base) and not is_elsewhere:
                return str(full)
        if self._options.allow_runtime_lora_updating:
            # What is no folder here may be a hub id: who reads it says.
            return str(given.resolve()) if given.exists() else path
        raise RequestError(
            "lora_path is not below the folder that adapters are loaded from.",
            param="lora_path",
            hint="Start the server with --lora-folder DIR, or --allow-runtime-lora-updating.",
        )

    async def _load(self, key: Load, parent: str, is_inplace: bool) -> None:
        name, path, is_pinned = key
        known = self._served.get(name)
        await self._client.load_adapter(name, path, is_inplace=is_inplace, is_pinned=is_pinned)
        created = known.created if known else int(time.time())
        self._served[name] = Served(path, parent, created)
        self._dropped.discard(name)

    def _ended(self, key: Load, task: asyncio.Task[None]) -> None:
        if self._loading.get(key) is task:
            del self._loading[key]
        if not task.cancelled():
            task.exception()  # who waits has it; when all have gone nobody has to

    def _check_name(self, name: str) -> None:
        if not NAME.fullmatch(name) or name in (".", ".."):
            raise RequestError(
                f"lora_name {name[:128]!r} is not 1 to 128 characters without separators.",
                param="lora_name",
            )
        if name in self._options.model_names:
            raise RequestError(f"lora_name {name!r} is the model's own name.", param="lora_name")

    def _in_folder(self, name: str) -> Path | None:
        """The folder of a name below the operator's; a link that leads out of it is none."""
        root = self._options.lora_folder
        if root is None or not NAME.fullmatch(name) or name in (".", "..") or name in self._dropped:
            return None
        base = Path(root).resolve()
        full = (base / name).resolve()
        return full if _is_inside(full, base) and (full / CONFIG).is_file() else None


def _is_inside(folder: Path, base: Path) -> bool:
    """Whether a resolved folder, and the files of an adapter in it, lie below `base`."""
    if folder == base or not folder.is_relative_to(base):
        return False
    return all((folder / name).resolve().is_relative_to(base) for name in (CONFIG, TENSORS))


class AdapterRoutes:
    """POST /v1/load_lora_adapter and /v1/unload_lora_adapter, with vLLM's answers."""

    def __init__(self, served: ServedAdapters) -> None:
        self._served = served

    async def load(self, http: HttpRequest) -> Response:
        body, _ = decode_body(await read_body(http), LoadAdapterRequest, is_strict=True)
        if not body.lora_name or not body.lora_path:
            raise RequestError("Both 'lora_name' and 'lora_path' must be provided.")
        if body.is_3d_lora_weight:
            raise RequestError(
                "is_3d_lora_weight is not supported: no family here has experts.",
                param="is_3d_lora_weight",
            )
        path = self._served.allowed(body.lora_path)
        await self._served.load(
            body.lora_name, path, is_inplace=bool(body.load_inplace), is_pinned=body.pinned
        )
        return Response(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(self, http: HttpRequest) -> Response:
        body, _ = decode_body(await read_body(http), UnloadAdapterRequest, is_strict=True)
        if not body.lora_name:
            raise RequestError("'lora_name' must be provided.", param="lora_name")
        await self._served.unload(body.lora_name)
        return Response(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    def rows(self) -> list[RouteRow]:
        """The table of routes."""
        return [
            RouteRow("POST", "/v1/load_lora_adapter", self.load, "Serve an adapter.",
                     LoadAdapterRequest),
            RouteRow("POST", "/v1/unload_lora_adapter", self.unload, "Serve it no longer.",
                     UnloadAdapterRequest),
        ]  # fmt: skip
