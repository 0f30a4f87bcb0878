"""TextCodec: strings to ids and back, templates, and requests made of them.

Everything that needs text is here; the engine sees ids. Checks prompts against the model's limits.
"""

from __future__ import annotations

import codecs
from typing import Any

import msgspec
from tokenizers import Tokenizer

from ranvier.core.errors import CheckpointError, RequestError
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.text.pieces import TokenBytes
from ranvier.text.template_worker import TemplateProcess

__all__ = ["DEFAULTS", "TextCodec"]

DEFAULTS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repetition_penalty", "max_new_tokens": "max_tokens",
}  # fmt: skip
"""Fields of a generation config and the sampling parameters whose defaults they set, as in vLLM."""


UTF8_BYTES_MAX = 4


class TextCodec:
    """The text side of one model. `vocab_size` bounds ids; `model_len_max` bounds prompts."""

    def __init__(
        self,
        tokenizer_json: str,
        tokenizer_config: dict[str, Any],
        generation_config: dict[str, Any],
        *,
        vocab_size: int,
        model_len_max: int,
    ) -> None:
        try:
            self.tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"tokenizer.json does not parse: {error}") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.vocab_size = vocab_size
        self.model_len_max = model_len_max
        self.generation_config = generation_config
        self.special_tokens = {
            name: _content(tokenizer_config.get(name)) for name in ("bos_token", "eos_token")
        }
        self.tokenizer_config = tokenizer_config
        self.pieces = TokenBytes(self.tokenizer)
        self.templates = TemplateProcess()
        self.end_token_ids = self._end_ids()
        self.picture_ids: frozenset[int] = frozenset()
        """Ids that stand for pictures: no text may hold them."""

    def encode(self, prompt: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    @property
    def chat_template(self) -> str | None:
        """The model's template; of several named ones, the default."""
        found = self.tokenizer_config.get("chat_template")
        if isinstance(found, list):
            named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
            found = named.get("default")
        return found if isinstance(found, str) and found else None

    def open_tail(self, ids: list[int]) -> bytes:
        """The bytes of a character that the last of `ids` begin and do not end."""
        data = self.pieces.join(ids[-UTF8_BYTES_MAX:], skip_special_tokens=True)
        for length in range(1, min(len(data), UTF8_BYTES_MAX - 1) + 1):
            if data[-length] & 0xC0 != 0x80:
                is_open = codecs.getincrementaldecoder("utf-8")("replace").decode(data[-length:])
                return b"" if is_open else data[-length:]
        return b""

    def token_text(self, token_id: int) -> str:
        """The text of one token alone, special ones included."""
        return self.decode([token_id], skip_special_tokens=False)

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Messages as the model's own prompt text. Raises RequestError."""
        source = chat_template or self.chat_template
        if source is None:
            raise RequestError(
                "The model has no chat template.",
                param="messages",
                hint="Start with --chat-template FILE, or use /v1/completions.",
            )
        if not messages:
            raise RequestError("messages is empty.", param="messages")
        text = self.templates.render(
            source,
            self.special_tokens,
            messages,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
        )
        if not continue_final_message:
            return text
        final = str(messages[-1].get("content", ""))
        at = text.rfind(final.strip())
        return text[: at + len(final.strip())] if final.strip() else text

    def make_request(
        self,
        request_id: str,
        prompt: str | list[int],
        params: SamplingParams,
        seed: int,
        known: frozenset[int] = frozenset(),
    ) -> Request:
        """A core Request. Raises RequestError for ids out of range and prompts that do not fit.

        `known`: ids of pictures that the prompt has, also beyond the vocabulary.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        for token in ids:
            if type(token) is not int or not (0 <= token < self.vocab_size or token in known):
                raise RequestError(
                    f"prompt: token id {token!r} is not in [0, {self.vocab_size}).", param="prompt"
                )
        for token in self.picture_ids.difference(known).intersection(ids):
            raise RequestError(
                f"The prompt holds {self.token_text(token)!r} (token {token}), which stands for a "
                "picture, and no picture.",
                param="prompt",
                hint="Write it otherwise.",
            )
        self._check_ids(params)
        if params.truncate_prompt_tokens is not None:
            keep = params.truncate_prompt_tokens
            ids = ids[-(self.model_len_max - 1 if keep == -1 else keep) :]
        return Request(
            request_id=request_id,
            prompt_token_ids=ids,
            params=params,
            seed=seed if params.seed is None else params.seed,
            end_token_ids=self.end_token_ids,
            bad_word_ids=self._bad_words(params),
        )

    def default_sampling_params(self) -> SamplingParams:
        """The model's generation_config over vLLM's defaults. Raises CheckpointError."""
        given = {name: self.generation_config.get(name) for name in DEFAULTS}
        found = {DEFAULTS[name]: value for name, value in given.items() if value is not None}
        try:
            return msgspec.convert(found, SamplingParams)
        except (msgspec.ValidationError, RequestError) as error:
            raise CheckpointError(f"generation_config.json: {error}") from None

    def _check_ids(self, params: SamplingParams) -> None:
        fields = {
            "logit_bias": params.logit_bias or {},
            "allowed_token_ids": params.allowed_token_ids or [],
            "stop_token_ids": params.stop_token_ids or [],
        }
        for name, ids in fields.items():
            for token in ids:
                if not 0 <= token < self.vocab_size:
                    raise RequestError(
                        f"{name}: token id {token} is not in [0, {self.vocab_size}).", param=name
                    )

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        """Each word as it stands at the start of a text and after a space."""
        found = []
        for word in params.bad_words or ():
            for text in (word, " " + word.lstrip()):
                ids = self.encode(text, add_special_tokens=False)
                if ids and ids not in found:
                    found.append(ids)
        return found

    def _end_ids(self) -> list[int]:
        value = self.generation_config.get("eos_token_id")
        ids = [value] if isinstance(value, int) else list(value or ())
        text = self.special_tokens["eos_token"]
        token = self.tokenizer.token_to_id(text) if text else None
        return ids if token is None or token in ids else [*ids, token]


def _content(token: Any) -> str | None:
    """A special token's text: tokenizer_config.json has it plain or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
