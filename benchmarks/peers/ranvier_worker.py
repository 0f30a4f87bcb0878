"""Ranvier as a worker: the engine that a server runs, driven turn by turn."""

from __future__ import annotations

from protocol import BATCH_MAX, CONTEXT_MAX, Timer, Workload, prompts, work

from ranvier.artifact.read import read_manifest
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact, load_engine
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.version import __version__

SPARE = 16


class RanvierEngine:
    """`quantization`: as the option of that name; without it the checkpoint's own width."""

    def __init__(self, model: str, threads: int, quantization: str | None = None) -> None:
        given = {
            "model": model,
            "dtype": "bfloat16",
            "max_model_len": CONTEXT_MAX,
            "max_num_seqs": BATCH_MAX,
            **({} if quantization is None else {"quantization": quantization}),
        }
        options = parse_options(given)
        artifact = ensure_artifact(options)
        self._engine = load_engine(artifact, options, [])
        self._threads, self._weights = threads, read_manifest(artifact).key.quantization

    def describe(self) -> dict[str, object]:
        return {
            "engine": "ranvier",
            "version": __version__,
            "threads": self._threads,
            "quantization": self._weights,
        }

    def run(self, workload: Workload, seed: int) -> tuple[float, int]:
        if workload.kind == "decode":
            return self._decode(workload, seed)
        timer = Timer()
        self._admit(workload, seed, workload.new)
        made = 0
        while self._engine.has_work:
            made += self._turn()
        seconds = timer.seconds
        assert made == workload.batch * workload.new, made
        asked = workload.batch * workload.prompt
        return seconds, asked + (made if workload.kind == "throughput" else 0)

    def _decode(self, workload: Workload, seed: int) -> tuple[float, int]:
        names = self._admit(workload, seed, workload.new + SPARE)
        started: set[str] = set()
        while len(started) < workload.batch:
            started |= {event.request_id for event in self._engine.turn()}
        timer = Timer()
        made = sum(self._turn() for _ in range(workload.new))
        seconds = timer.seconds
        for name in names:
            self._engine.cancel(name)
        while self._engine.has_work:
            self._engine.turn()
        assert made == workload.batch * workload.new, made
        return seconds, made

    def _admit(self, workload: Workload, seed: int, new: int) -> list[str]:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        names = []
        for i, ids in enumerate(prompts(workload, seed)):
            names.append(f"{workload.name}-{seed}-{i}")
            request = Request(request_id=names[-1], prompt_token_ids=ids, params=params, seed=0)
            self._engine.admit(request)
        return names

    def _turn(self) -> int:
        return sum(len(event.token_ids) for event in self._engine.turn())


if __name__ == "__main__":
    work(RanvierEngine)
