"""Sequence: one generation and everything the host knows of it.

`tokens` are known; `planned` counts tokens whose KV has been launched; `computed` those whose step
has been collected. A token that is sampled but not yet collected is `awaited`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ranvier.core.media import PromptMedia, VisionInfo
from ranvier.core.random import derive_seed, uniform
from ranvier.core.request import Request, TokenLogprobs
from ranvier.core.step import ChunkMedia, LogitEdits, Sample
from ranvier.core.structured import Matcher
from ranvier.media.place import PromptPictures
from ranvier.speculate.lookup import Lookup
from ranvier.speculate.policy import Acceptance

__all__ = ["Sequence"]


class Sequence:
    """State of one sequence; changed only by the scheduler."""

    def __init__(self, request: Request, index: int, arrival_s: float, adapter: str = "") -> None:
        self.request = request
        self.index = index
        self.adapter = adapter
        """Digest of its adapter's content; empty: the base model."""
        self.slot = 0
        self.salt = f"{adapter}:{request.cache_salt}"
        self.arrival_s = arrival_s
        self.started_s: float | None = None
        self.seed = derive_seed(request.seed, index)
        self.prompt_count = len(request.prompt_token_ids)
        self.tokens = list(request.prompt_token_ids)
        self.pictures: PromptPictures | None = None
        self._marks: dict[int, int] = {}
        self.blocks: list[int] = []
        self.digest = b""
        self.remembered = 0
        self.planned = 0
        self.computed = 0
        self.awaited = 0
        self.awaited_sample = -1
        self.cached_tokens = 0
        self.is_done = False
        self.epoch = 0
        self.prompt_logprobs: list[TokenLogprobs | None] | None = (
            None if request.params.prompt_logprobs is None or index else [None]
        )
        self.proposed: list[int] = []
        """What the device guesses to come next."""
        self.absorbed = 0
        """Tokens that the drafter on the device has in its cache."""
        self.drafts: list[int] = []
        """Guesses that the next step verifies."""
        self.acceptance: Acceptance | None = None
        self.guesses = (0, 0, 0)
        """Drafts verified, tokens guessed, tokens that stood."""
        self.lookup: Lookup | None = None
        self.matcher: Matcher | None = None
        """Of structured outputs: stands behind its last token."""
        self.is_refused = False
        """Whether its last token is none that its grammar allows."""
        self._counts: dict[int, int] = {}
        self._banned = _banned_ids(request)

    @property
    def params_have_edits(self) -> bool:
        p = self.request.params
        return bool(
            p.logit_bias
            or p.allowed_token_ids
            or self.request.bad_word_ids
            or self._has_penalties
            or p.min_tokens > self.output_count
            or self.matcher
        )

    @property
    def must_wait(self) -> bool:
        """Whether the next row needs a token that is still on the device: its edits count it."""
        p = self.request.params
        follows = self.matcher or self.drafts or self._has_penalties or self.request.bad_word_ids
        return self.awaited > 0 and bool(follows or p.min_tokens > self.output_count)

    @property
    def _has_penalties(self) -> bool:
        p = self.request.params
        return (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def output_count(self) -> int:
        return len(self.tokens) - self.prompt_count

    @property
    def left(self) -> int:
        """Tokens still to launch, an awaited one included."""
        return len(self.tokens) + self.awaited - self.planned

    @property
    def is_decoding(self) -> bool:
        """Whether the next step takes its last token alone, or that and drafts."""
        is_generating = self.output_count + self.awaited > 0 and not self.is_scoring_prompt
        return is_generating and self.left == 1 and self.planned > 0

    @property
    def is_scoring_prompt(self) -> bool:
        """Whether prompt tokens' logits are wanted, so that each needs a sample row."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_count

    def show(self, media: PromptMedia, vision: VisionInfo) -> None:
        """Give it the pictures of its prompt."""
        self.pictures = PromptPictures(media, vision, self.request.cache_salt)
        self._marks = self.pictures.marks

    def known(self, start: int = 0, stop: int | None = None) -> list[int]:
        """Its tokens as prefixes are compared by: with pictures among them."""
        known = self.tokens[start:stop]
        for position, mark in self._marks.items():
            if start <= position < start + len(known):
                known[position - start] = mark
        return known

    def media(self, count: int) -> ChunkMedia | None:
        """What its next tokens take of pictures."""
        return None if self.pictures is None else self.pictures.chunk(self.planned, count)

    def append(self, token: int) -> None:
        self.tokens.append(token)
        if self.matcher is not None:
            self.is_refused = not self.matcher.advance(token)
        if self._has_penalties:
            self._counts[token] = self._counts.get(token, 0) + 1

    def rewind(self, count: int) -> None:
        """Take the tokens from `count` on once more, for the drafter's sake."""
        self.planned = self.computed = count

    def restart(self) -> None:
        """Forget the cache after preemption; known tokens are computed again."""
        self.blocks, self.digest, self.remembered = [], b"", 0
        self.planned = self.computed = 0
        self.proposed, self.drafts, self.absorbed = [], [], 0
        self.epoch += 1

    def room(self, model_len_max: int) -> int:
        """How many drafts could all stand: one more token follows them."""
        limit, left = self.request.params.max_tokens, model_len_max - len(self.tokens)
        left = left if limit is None else min(left, limit - self.output_count)
        return max(left - self.awaited - 1, 0)

    def permitted(self, tokens: list[int]) -> list[int]:
        """Of guesses those before the first that its grammar refuses."""
        if self.matcher is None or not tokens:
            return tokens
        return tokens[: self.matcher.permitted(tokens)]

    def uniforms(self, count: int) -> list[float]:
        """For the draws of a drafter, from the position after the next token's on."""
        if self.request.params.is_greedy:
            return []
        first = len(self.tokens) + self.awaited + 1
        return [uniform(self.seed, first + i) for i in range(count)]

    def samples(self, chunk: int, offset: int) -> list[Sample]:
        """The row that draws the next token, and one behind each draft as if it were output."""
        found = [self.sample(chunk, offset)]
        for i, token in enumerate(self.drafts, 1):
            self.append(token)
            found.append(self.sample(chunk, offset + i))
        if self.matcher is not None and self.drafts:
            self.matcher.rollback(len(self.drafts))
        for _ in self.drafts:
            token = self.tokens.pop()
            if token in self._counts:
                self._counts[token] -= 1
        return found

    def sample(self, chunk: int, offset: int) -> Sample:
        """The row that draws the next token."""
        p = self.request.params
        position = len(self.tokens) + self.awaited
        return Sample(
            chunk=chunk,
            offset=offset,
            temperature=0.0 if p.is_greedy else p.temperature,
            top_k=p.top_k,
            top_p=p.top_p,
            min_p=p.min_p,
            uniform=0.0 if p.is_greedy else uniform(self.seed, position),
            logprobs=-1 if p.logprobs is None and p.best_of is None else p.logprobs or 0,
            edits=self._edits() if self.params_have_edits else None,
        )

    def score(self, chunk: int, offset: int, target_id: int) -> Sample:
        """The row that scores a known prompt token."""
        wanted = self.request.params.prompt_logprobs or 0
        return Sample(chunk=chunk, offset=offset, target_id=target_id, logprobs=wanted)

    def _edits(self) -> LogitEdits:
        p = self.request.params
        bias = {token: float(value) for token, value in (p.logit_bias or {}).items()}
        for token in self._bans():
            bias[token] = -np.inf
        seen = dict.fromkeys(self.tokens, True) if self._has_penalties else {}
        ids = np.fromiter({**seen, **dict.fromkeys(bias, True)}, np.int32)
        return LogitEdits(
            token_ids=ids,
            counts=np.fromiter((self._counts.get(t, 0) for t in ids), np.int32, len(ids)),
            seen=np.fromiter((t in seen for t in ids), np.bool_, len(ids)),
            bias=np.fromiter((bias.get(int(t), 0.0) for t in ids), np.float32, len(ids)),
            repetition=p.repetition_penalty,
            frequency=p.frequency_penalty,
            presence=p.presence_penalty,
            allowed=self._allowed(),
        )

    def _allowed(self) -> NDArray[np.uint32] | None:
        ids = self.request.params.allowed_token_ids
        listed = _bitmask(ids) if ids else None
        if self.matcher is None:
            return listed
        mask = self.matcher.mask()
        return mask if listed is None else mask[: len(listed)] & listed[: len(mask)]

    def _bans(self) -> set[int]:
        """Ids that may not come next: ends before min_tokens, last words of bad words."""
        banned = set()
        if self.output_count < self.request.params.min_tokens:
            banned |= self._banned
        for words in self.request.bad_word_ids:
            if words[:-1] == self.tokens[len(self.tokens) - len(words) + 1 :]:
                banned.add(words[-1])
        return banned


def _banned_ids(request: Request) -> set[int]:
    return {*request.end_token_ids, *(request.params.stop_token_ids or ())}


def _bitmask(ids: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    mask = np.zeros(max(ids) // 32 + 1, np.uint32)
    for token in ids:
        mask[token >> 5] |= np.uint32(1 << (token & 31))
    return mask
