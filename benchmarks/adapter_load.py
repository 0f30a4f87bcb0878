"""What the load of a LoRA adapter at run time costs those who are being answered meanwhile.

    python benchmarks/adapter_load.py --model smollm2-135m --rows 8 --rank 16

Rows of the base model decode without pause in one engine of this process. In turn nothing comes, a
short request of the base model comes, and an adapter is loaded from its folder that a short request
then names. Told: from the load to that request's token, and the longest turn of each kind over the
median turn while nothing comes. JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from adapter_traffic import MODULES, write_adapter

from ranvier import LLM, SamplingParams
from ranvier.cli.wire import locate
from ranvier.core.request import Request
from ranvier.models.table import resolve
from ranvier.weights.checkpoint import open_checkpoint

KINDS = ("nothing", "a request", "a new adapter")
ROW_TOKENS = 900
"""Of a row; all rows fit into the KV cache."""
PROMPT = 8
"""Tokens of the short requests."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    for name, value in (("rows", 8), ("rank", 16), ("rounds", 15), ("turns", 40)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--modules", choices=MODULES, default="all")
    given = parser.parse_args()
    spec = resolve(open_checkpoint(locate(given.model)).config)
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / f"a{i}" for i in range(given.rounds)]
        for seed, folder in enumerate(folders):
            write_adapter(folder, spec, given.rank, seed, given.modules)
        with LLM(
            given.model, quantization="none", enable_lora=True, max_loras=4,
            max_lora_rank=given.rank, max_model_len=2048, max_num_seqs=given.rows + 1,
            enable_prefix_caching=False, lora_target_modules=MODULES[given.modules],
            artifacts=f"{root}/artifacts",
        ) as llm:  # fmt: skip
            report(given, measure(Load(llm._engine, given.rows), folders, given))


class Load:
    """An engine whose rows decode without pause."""

    def __init__(self, engine: Any, rows: int) -> None:
        self.engine = engine
        self._rows, self._count = rows, 0
        self._random = np.random.default_rng(0)
        self._open: set[str] = set()

    def admit(self, tokens: int, adapter: str = "") -> str:
        self._count += 1
        name = f"r{self._count}"
        ids = self._random.integers(10, 40000, PROMPT).tolist()
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        self.engine.admit(
            Request(request_id=name, prompt_token_ids=ids, params=params, seed=1, adapter=adapter)
        )
        return name

    def turns(self) -> Iterator[tuple[float, set[str]]]:
        """Seconds of each turn and the requests that it ended, the rows kept full beside them."""
        while True:
            while len(self._open) < self._rows:
                self._open.add(self.admit(ROW_TOKENS))
            start = time.perf_counter()
            events = self.engine.turn()
            spent = time.perf_counter() - start
            ended = {e.request_id for e in events if e.finish_reason is not None}
            self._open -= ended
            yield spent, ended


def measure(
    load: Load, folders: list[Path], given: argparse.Namespace
) -> dict[str, list[tuple[list[float], float]]]:
    """By kind, of each round: seconds of its turns, and from its begin to the request's token."""
    found: dict[str, list[tuple[list[float], float]]] = {kind: [] for kind in KINDS}
    turns = load.turns()
    for _ in range(2 * given.turns):
        next(turns)
    for index, folder in enumerate(folders):
        for kind in KINDS:
            times, first_s, asked = [], 0.0, ""
            start = time.perf_counter()
            if kind == "a request":
                asked = load.admit(1)
            if kind == "a new adapter":
                load.engine.adapters.load(index, folder.name, str(folder))
            while len(times) < given.turns or (kind != "nothing" and not first_s):
                spent, ended = next(turns)
                times.append(spent)
                if load.engine.adapter_answers:
                    [answer] = load.engine.adapter_answers
                    load.engine.adapter_answers.clear()
                    assert answer.error is None, answer
                    asked = load.admit(1, folder.name)
                if asked in ended:
                    first_s = time.perf_counter() - start
            found[kind].append((times, first_s))
    return found


def report(given: argparse.Namespace, found: dict[str, list[tuple[list[float], float]]]) -> None:
    usual = statistics.median(t for times, _ in found["nothing"] for t in times)
    print(f"{given.rows} rows decode, {1e3 * usual:.2f} ms a turn (median while nothing comes)")
    result: dict[str, Any] = {**vars(given), "turn_ms": 1e3 * usual}
    for kind, rounds in found.items():
        longest = sorted(max(times) / usual for times, _ in rounds)
        first = [first_s for _, first_s in rounds if first_s]
        told = f", first token after {1e3 * statistics.median(first):.0f} ms" if first else ""
        print(
            f"{kind:14}: longest turn of a round {statistics.median(longest):.2f} x (median), "
            f"{longest[-1]:.2f} x (worst of {len(longest)}){told}"
        )
        result[kind] = {"longest": longest, "first_token_s": first}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
