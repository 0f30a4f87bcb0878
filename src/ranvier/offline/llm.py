"""Offline: generate and chat by vLLM's names, the engine loop in this process."""

from __future__ import annotations

import functools
import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

from tqdm import tqdm

from ranvier.core.errors import ConfigError, RequestError
from ranvier.core.request import EngineStats, Event, Request, TokenLogprobs
from ranvier.core.sampling import SamplingParams
from ranvier.engine.loop import Engine
from ranvier.offline.adapters import AdapterDesk, LoRARequest
from ranvier.offline.metrics import Metric, snapshot
from ranvier.offline.outputs import CompletionOutput, Logprob, RequestOutput
from ranvier.offline.pictures import PictureReader
from ranvier.offline.prompts import Content, Prompt, read_prompts
from ranvier.speculate.tally import Tally
from ranvier.text.choice import Choice, best_choices
from ranvier.text.codec import TextCodec

__all__ = ["Offline"]

UNSUPPORTED = {
    **dict.fromkeys(
        ("embed", "encode", "classify", "score", "reward"),
        "only text generation is served in this version",
    ),
    "beam_search": "there is no beam search; see SamplingParams.best_of",
    "sleep": "close() frees the device",
    "wake_up": "close() frees the device",
    "start_profile": "profiles are taken by the system's own tools",
    "stop_profile": "profiles are taken by the system's own tools",
    "collective_rpc": "foreign code is not run in the engine",
    "apply_model": "foreign code is not run in the engine",
}
"""vLLM's methods that this LLM does not have, and why."""


class Offline:
    """A model in this process: `generate` and `chat`.

    `engine` and `codec` come from cli.wire.open_engine; `ranvier.LLM(model, **options)` adds that.
    """

    def __init__(
        self,
        engine: Engine,
        codec: TextCodec,
        *,
        seed: int = 0,
        pictures: PictureReader | None = None,
    ) -> None:
        self._pictures = pictures or PictureReader()
        self._engine = engine
        self._codec = codec
        self._seed = seed
        self._ids = itertools.count()
        self._adapters = AdapterDesk(engine)
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> NoReturn:
        if name in UNSUPPORTED:
            raise AttributeError(f"LLM.{name} is not supported: {UNSUPPORTED[name]}.")
        raise AttributeError(f"LLM has no attribute {name!r}.")

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        priority: Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts: text, {"prompt": text}, {"prompt_token_ids": ids}, or a list of these.

        A dict's multi_modal_data={"image": picture or list} holds the pictures of its placeholders.
        One SamplingParams for all, or one a prompt; lora_request alike, None for the model itself.
        Raises RequestError before anything runs.
        """
        served = "requests are served in order of arrival"
        _refuse("priority", [p for p in priority or () if p], served)
        _refuse("tokenization_kwargs", tokenization_kwargs, "use SamplingParams' own fields")
        items = read_prompts(prompts)
        params = self._params(sampling_params, len(items))
        names = self._adapters.names(lora_request, len(items))
        collectors = [
            self._collector(prompt, own, name)
            for prompt, own, name in zip(items, params, names, strict=True)
        ]
        self._run(collectors, use_tqdm)
        return [collector.output() for collector in collectors]

    def chat(
        self,
        messages: list[dict[str, Any]] | list[list[dict[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        **options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of a list of them, through the model's template.

        Options, by vLLM's names: chat_template, add_generation_prompt, continue_final_message,
        tools, chat_template_kwargs, chat_template_content_format, lora_request,
        mm_processor_kwargs.
        Raises RequestError.
        """
        several = messages if messages and isinstance(messages[0], list) else [messages]
        lora_request = options.pop("lora_request", None)
        kwargs = options.pop("mm_processor_kwargs", None) or {}
        render = functools.partial(self._codec.render_chat, **_template_options(options))
        encode = functools.partial(self._codec.encode, add_special_tokens=False)
        read = self._pictures.chat_prompt
        prompts: list[Prompt] = [
            read(conversation, render, encode, kwargs)  # type: ignore[arg-type]
            for conversation in several
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, lora_request=lora_request)

    def load_adapter(
        self, name: str, path: str, *, load_inplace: bool = False, pinned: bool | None = None
    ) -> None:
        """Serve the LoRA adapter in a folder under a name. Raises what is wrong with it.

        `pinned`: whether it keeps its slot on the device from now on; None: as it is.
        """
        self._adapters.load(name, path, is_inplace=load_inplace, is_pinned=pinned)

    def pin_adapter(self, name: str, *, is_pinned: bool = True) -> None:
        """Have a LoRA adapter keep its slot, or no longer. Raises RequestError: no slot is left."""
        self._adapters.pin(name, is_pinned=is_pinned)

    def unload_adapter(self, name: str) -> None:
        """Serve a LoRA adapter's name no longer. Raises ModelNotFound."""
        self._adapters.unload(name)

    def get_tokenizer(self) -> Any:
        return self._codec.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        return self._codec.default_sampling_params()

    def get_metrics(self) -> list[Metric]:
        """Counters and gauges of the engine, by vLLM's names."""
        return snapshot(self.stats())

    def stats(self) -> EngineStats:
        """The same by our own names."""
        return self._engine.stats()

    def reset_prefix_cache(self) -> bool:
        """Forget every cached prefix; True, as in vLLM, when it is done."""
        self._engine.reset_prefix_cache()
        return True

    def reset_mm_cache(self) -> None:
        """Forget the features of every picture that no sequence holds."""
        self._engine.reset_mm_cache()

    def close(self) -> None:
        """Free the device; a second call does nothing, a later generate is an error."""
        if not self._is_closed:
            self._is_closed = True
            if self._engine.adapters is not None:
                self._engine.adapters.close()
            self._engine.runner.close()

    def _params(
        self, given: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            return [given] * count
        if len(given) != count:
            raise RequestError(f"{count} prompts but {len(given)} sampling_params.")
        return list(given)

    def _collector(self, prompt: Content, params: SamplingParams, adapter: str) -> _Collector:
        name = f"{next(self._ids)}-{secrets.token_hex(4)}"
        ids = prompt.token_ids
        content = ids if ids is not None else prompt.text or ""
        index = int(name.split("-")[0])
        seed = (self._seed << 32) + index
        request = self._request(name, prompt, content, params, seed)
        request.cache_salt, request.adapter = prompt.cache_salt, adapter
        self._engine.scheduler.check(request)
        if params.structured_outputs is not None and self._engine.grammars is not None:
            self._engine.grammars(params.structured_outputs)
        count = self._engine.scheduler.info.buckets.lookahead
        return _Collector(self._codec, request, prompt.text, count)

    def _request(
        self,
        name: str,
        prompt: Content,
        content: str | list[int],
        params: SamplingParams,
        seed: int,
    ) -> Request:
        if not prompt.pictures:
            self._pictures.check_kwargs(prompt.kwargs)
            return self._codec.make_request(name, content, params, seed)
        if params.truncate_prompt_tokens is not None:
            raise RequestError(
                "A prompt with pictures is not truncated.", param="truncate_prompt_tokens"
            )
        woven = self._pictures.weave(prompt, content, self._codec.encode)
        known = self._pictures.see().token_ids
        request = self._codec.make_request(name, woven.token_ids, params, seed, known)
        request.media = woven.media
        return request

    def _run(self, collectors: list[_Collector], use_tqdm: bool | Callable[..., Any]) -> None:
        if self._is_closed:
            raise ConfigError("This LLM is closed.", hint="Make another.")
        engine, open_ = self._engine, {c.request.request_id: c for c in collectors}
        queue = list(reversed(collectors))
        make = use_tqdm if callable(use_tqdm) else tqdm
        with make(total=len(collectors), desc="Processed prompts", disable=not use_tqdm) as bar:
            try:
                while open_:
                    bar.update(self._turn(queue, open_))
                    if open_:
                        self._adapters.rest()
            finally:
                for name in open_:
                    engine.cancel(name)

    def _turn(self, queue: list[_Collector], open_: dict[str, _Collector]) -> int:
        """Admit what fits, run one turn; how many requests it finished."""
        engine, before = self._engine, len(open_)
        room = engine.config.requests_waiting_max - len(engine.scheduler.waiting)
        for _ in range(min(room, len(queue))):
            engine.admit(queue.pop().request)
        for event in engine.turn():
            collector = open_.get(event.request_id)
            if collector is None:
                continue
            for index in collector.take(event):
                engine.cancel(event.request_id, index)
            if collector.is_finished:
                del open_[event.request_id]
        return before - len(open_)


class _Collector:
    """Gathers one request's events into its output."""

    def __init__(
        self, codec: TextCodec, request: Request, prompt: str | None, guessed_max: int
    ) -> None:
        self.request = request
        self._codec = codec
        self._prompt = prompt
        self._choices = [Choice(codec, request) for _ in range(request.params.sequence_count)]
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._cached = 0
        self._guessed_max = guessed_max
        self._tallies = [Tally() for _ in self._choices]

    @property
    def is_finished(self) -> bool:
        return all(choice.finish_reason for choice in self._choices)

    def take(self, event: Event) -> list[int]:
        """Take an event; the sequences that a stop string has ended. Raises DeviceError."""
        choice = self._choices[event.index]
        self._cached = max(self._cached, event.cached_tokens)
        self._tallies[event.index].take(event.guesses)
        if event.prompt_logprobs is not None:
            self._prompt_logprobs = [
                None if entry is None else self._entries(entry) for entry in event.prompt_logprobs
            ]
        was_cut = choice.is_cut
        choice.take(event)
        return [event.index] if choice.is_cut and not was_cut else []

    def output(self) -> RequestOutput:
        """The request's output; of best_of sequences the n of highest mean log-probability."""
        best = best_choices(self._choices, self.request.params)
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self._prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=[self._part(index, choice) for index, choice in enumerate(best)],
            prompt_logprobs=self._prompt_logprobs,
            finished=True,
            metrics=self._metrics(),
            num_cached_tokens=self._cached,
        )

    def _part(self, index: int, choice: Choice) -> CompletionOutput:
        is_scored = self.request.params.logprobs is not None and choice.entries
        tally = self._tallies[self._choices.index(choice)]
        found = tally.metrics(self._guessed_max)
        return CompletionOutput(
            index=index,
            text=choice.text,
            token_ids=choice.token_ids,
            cumulative_logprob=choice.logprob_sum if is_scored else None,
            logprobs=[self._entries(entry) for entry in choice.entries] if is_scored else None,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            spec_decode_metrics=found if found.num_spec_steps else None,
        )

    def _metrics(self) -> dict[str, Any] | None:
        total = Tally.total(self._tallies, self._guessed_max)
        return {"speculative_decoding": total.to_dict("summary")} if total.num_spec_steps else None

    def _entries(self, entry: TokenLogprobs) -> dict[int, Logprob]:
        """The chosen token first, then the top ones."""
        text = self._codec.token_text
        found = {entry.token_id: Logprob(entry.logprob, entry.rank, text(entry.token_id))}
        pairs = zip(entry.top_ids, entry.top_logprobs, strict=True)
        for rank, (token, value) in enumerate(pairs, 1):
            found.setdefault(token, Logprob(value, rank, text(token)))
        return found


def _refuse(name: str, value: object, reason: str) -> None:
    if value:
        raise RequestError(f"{name} is not supported: {reason}.", param=name)


def _template_options(given: dict[str, Any]) -> dict[str, Any]:
    """What a template is rendered with. Raises RequestError for names that chat does not take."""
    options = {k: v for k, v in given.items() if v is not None}
    variables = options.pop("chat_template_kwargs", {})
    form = options.pop("chat_template_content_format", "auto")
    if form not in ("auto", "string"):
        _refuse("chat_template_content_format", form, "the content is text; use auto or string")
    known = ("chat_template", "add_generation_prompt", "continue_final_message", "tools")
    for name in options:
        if name not in known:
            _refuse(name, True, f"known are {', '.join(known)}")
    return {**options, **variables}
