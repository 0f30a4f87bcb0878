"""LoRA adapters of the LLM in this process: requests name one, which is loaded when it is new."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from ranvier.adapters.registry import Adapters, Answer
from ranvier.core.errors import RequestError
from ranvier.engine.loop import Engine

__all__ = ["AdapterDesk", "LoRARequest"]

WAIT_S = 0.05


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter by vLLM's names. The name says which; `lora_int_id` says nothing here."""

    lora_name: str
    lora_int_id: int = 0
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False


class AdapterDesk:
    """Loads adapters into one engine and knows their names."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._paths: dict[str, str] = {}
        self._tickets = itertools.count(1)
        self._news = threading.Event()
        if engine.adapters is not None:
            engine.adapters.wake(self._news.set)

    def load(
        self, name: str, path: str, *, is_inplace: bool = False, is_pinned: bool | None = None
    ) -> None:
        """Serve the adapter in a folder under a name, now. Raises what is wrong with it."""
        ticket = next(self._tickets)
        self._registry().load(ticket, name, str(path), is_inplace=is_inplace, is_pinned=is_pinned)
        error = self._wait(ticket).error
        if error is not None:
            raise error
        self._paths[name] = str(path)

    def unload(self, name: str) -> None:
        """Serve a name no longer. Raises ModelNotFound."""
        self._registry().unload(name)
        self._paths.pop(name, None)

    def pin(self, name: str, *, is_pinned: bool) -> None:
        """Have an adapter keep its slot, or no longer. Raises ModelNotFound or RequestError."""
        self._registry().pin(name, is_pinned=is_pinned)

    def names(
        self, given: LoRARequest | Sequence[LoRARequest | None] | None, count: int
    ) -> list[str]:
        """The adapter of each of `count` prompts, "" for none; new ones are loaded.

        Raises RequestError.
        """
        if given is None or isinstance(given, LoRARequest):
            return [self._ready(given)] * count
        if not isinstance(given, Sequence):
            told = "lora_request is a LoRARequest, or a list of them."
            raise RequestError(told, param="lora_request")
        if len(given) != count:
            raise RequestError(f"{count} prompts but {len(given)} lora_requests.")
        return [self._ready(one) for one in given]

    def rest(self) -> None:
        """Leave the processor to the thread that reads adapters, where only that can go on."""
        if self._engine.can_sleep:
            self._news.wait(WAIT_S)
            self._news.clear()

    def _registry(self) -> Adapters:
        if self._engine.adapters is None:
            raise RequestError(
                "This LLM has no slots for adapters.", hint="Make it with enable_lora=True."
            )
        return self._engine.adapters

    def _ready(self, asked: LoRARequest | None) -> str:
        if asked is None:
            return ""
        if not isinstance(asked, LoRARequest):
            kind = type(asked).__name__
            raise RequestError(f"A lora_request is a LoRARequest, not {kind}.")
        path = asked.lora_path or self._paths.get(asked.lora_name)
        if path is None:
            raise RequestError(f"The adapter {asked.lora_name!r} is not loaded; give lora_path.")
        if asked.load_inplace or self._paths.get(asked.lora_name) != path:
            self.load(asked.lora_name, path, is_inplace=asked.load_inplace)
        return asked.lora_name

    def _wait(self, ticket: int) -> Answer:
        """Turn the engine until a load has ended."""
        engine = self._engine
        while True:
            self._news.clear()
            engine.turn()
            for answer in engine.adapter_answers:
                if answer.ticket == ticket:
                    engine.adapter_answers = []
                    return answer
            self._news.wait(WAIT_S)
