"""llama.cpp as a worker, by its low-level API: many sequences in one llama_decode.

The first run of a workload tries contexts (flash attention on or off, physical batch 512 or 2048,
one KV buffer or one a sequence) and keeps the fastest for it: the peer at its best.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import llama_cpp
import numpy as np
from protocol import CONTEXT_MAX, Timer, Workload, prompts, work

TOKENS_MAX = 2048
EACH_MAX = 512
"""Tokens of a sequence where there are many."""
TRIES = 2
STEPS_TRIED = 16


@dataclass(frozen=True)
class _Setting:
    """What a context is made with."""

    flash: int
    ubatch: int
    is_unified: bool


class _Context:
    """One context and its batch."""

    def __init__(self, model: Any, threads: int, workload: Workload, setting: _Setting) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max = workload.batch
        params.n_ctx = CONTEXT_MAX if workload.batch == 1 else workload.batch * EACH_MAX
        params.n_batch, params.n_ubatch = TOKENS_MAX, setting.ubatch
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = setting.flash
        params.kv_unified = setting.is_unified
        params.no_perf = True
        self.setting = setting
        self._context = llama_cpp.llama_init_from_model(model, params)
        assert self._context, "llama.cpp made no context"
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(TOKENS_MAX, 0, 1)
        vocab = llama_cpp.llama_model_get_vocab(model)
        self._vocab = llama_cpp.llama_vocab_n_tokens(vocab)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def run(self, workload: Workload, seed: int) -> tuple[float, int]:
        llama_cpp.llama_memory_clear(self._memory, True)
        rows = prompts(workload, seed)
        timer = Timer()
        tokens = self._prefill(rows)
        if workload.kind == "decode":
            timer.start()
        steps = workload.new if workload.kind == "decode" else workload.new - 1
        for step in range(steps):
            tokens = self._step(tokens, workload.prompt + step)
        seconds = timer.seconds
        asked, made = workload.batch * workload.prompt, workload.batch * workload.new
        return seconds, {"decode": made, "throughput": asked + made, "prefill": asked}[
            workload.kind
        ]

    def _prefill(self, rows: list[list[int]]) -> list[int]:
        """The first token of every row; as many whole rows in a batch as fit."""
        tokens: list[int] = []
        per_batch = max(1, TOKENS_MAX // len(rows[0]))
        for first in range(0, len(rows), per_batch):
            count = 0
            ends = []
            for row, ids in enumerate(rows[first : first + per_batch], first):
                for position, token in enumerate(ids):
                    self._put(count, token, position, row, position == len(ids) - 1)
                    count += 1
                ends.append(count - 1)
            tokens += self._decode(count, ends)
        return tokens

    def _step(self, tokens: list[int], position: int) -> list[int]:
        for row, token in enumerate(tokens):
            self._put(row, token, position, row, True)
        return self._decode(len(tokens), list(range(len(tokens))))

    def _put(self, i: int, token: int, position: int, row: int, wants_logits: bool) -> None:
        batch = self._batch
        batch.token[i], batch.pos[i] = token, position
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        batch.logits[i] = int(wants_logits)

    def _decode(self, count: int, wanted: list[int]) -> list[int]:
        self._batch.n_tokens = count
        code = llama_cpp.llama_decode(self._context, self._batch)
        assert code == 0, f"llama_decode: {code}"
        return [self._best(i) for i in wanted]

    def _best(self, i: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, i)
        address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(address, (self._vocab,)).argmax())


class LlamaEngine:
    def __init__(self, model: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = True  # its own repacking of quantised matrices
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), params)
        assert self._model, f"llama.cpp does not load {model}"
        self._threads = threads
        self._best: dict[str, _Context] = {}

    def describe(self) -> dict[str, object]:
        info = llama_cpp.llama_print_system_info().decode()
        version = llama_cpp.__version__
        return {"engine": "llama.cpp", "version": version, "threads": self._threads, "info": info}

    def run(self, workload: Workload, seed: int) -> tuple[float, int]:
        if workload.name not in self._best:
            self._best[workload.name] = self._fastest(workload)
        return self._best[workload.name].run(workload, seed)

    def _fastest(self, workload: Workload) -> _Context:
        """Try every setting on a short form of the workload; the context of the best."""
        unified = (True,) if workload.batch == 1 else (True, False)
        seconds: dict[_Setting, float] = {}
        short = replace(workload, new=min(workload.new, STEPS_TRIED))
        for setting in (_Setting(*values) for values in product((0, 1), (512, 2048), unified)):
            context = self._context(workload, setting)
            seconds[setting] = min(context.run(short, -1 - i)[0] for i in range(TRIES))
            context.close()
            print(f"llama.cpp, {workload.name}: {setting} {seconds[setting]:.3f} s", flush=True)
        best = min(seconds, key=lambda setting: seconds[setting])
        print(f"llama.cpp, {workload.name}: kept {best}", flush=True)
        return self._context(workload, best)

    def _context(self, workload: Workload, setting: _Setting) -> _Context:
        return _Context(self._model, self._threads, workload, setting)


if __name__ == "__main__":
    work(LlamaEngine)
