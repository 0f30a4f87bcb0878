"""OpenVINO GenAI as a worker, on a GGUF file: one sequence at a time.

The first run of a workload tries both attention back ends and keeps the faster: the peer at its
best. All else is the library's choice: activations quantised while running, KV in 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import Timer, Workload, prompts, work

BACKENDS = ("PA", "SDPA")
TRIES = 2


class _Clock(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Seconds from its making to every token."""

    def __init__(self) -> None:
        super().__init__()
        self._timer = Timer()
        self.seconds: list[float] = []

    def write(self, token: Any) -> Any:
        count = len(token) if isinstance(token, list) else 1
        self.seconds += [self._timer.seconds] * count
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is kept back."""


class OpenvinoEngine:
    def __init__(self, model: str, threads: int) -> None:
        self._model, self._threads = model, threads
        self._pipelines = {backend: self._pipeline(backend) for backend in BACKENDS}
        self._best: dict[str, str] = {}

    def describe(self) -> dict[str, object]:
        version = openvino_genai.__version__
        return {"engine": "openvino-genai", "version": version, "threads": self._threads}

    def run(self, workload: Workload, seed: int) -> tuple[float, int]:
        assert workload.batch == 1, f"{workload.name}: this worker runs one sequence at a time"
        if workload.name not in self._best:
            self._best[workload.name] = self._fastest(workload)
        return self._run(self._pipelines[self._best[workload.name]], workload, seed)

    def _fastest(self, workload: Workload) -> str:
        seconds = {}
        for name, pipeline in self._pipelines.items():
            seconds[name] = min(self._run(pipeline, workload, -1 - i)[0] for i in range(TRIES))
            print(f"OpenVINO, {workload.name}: {name} {seconds[name]:.3f} s", flush=True)
        best = min(seconds, key=lambda name: seconds[name])
        print(f"OpenVINO, {workload.name}: kept {best}", flush=True)
        return best

    def _run(self, pipeline: Any, workload: Workload, seed: int) -> tuple[float, int]:
        steps = workload.new if workload.kind == "decode" else workload.new - 1
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = 1 + steps, True, False
        ids = np.array(prompts(workload, seed), np.int64)
        given = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        clock = _Clock()
        pipeline.generate(given, config, clock)
        seconds = clock.seconds
        assert len(seconds) == 1 + steps, f"{len(seconds)} tokens, not {1 + steps}"
        if workload.kind == "decode":
            return seconds[-1] - seconds[0], steps
        return seconds[-1], workload.prompt

    def _pipeline(self, backend: str) -> Any:
        return openvino_genai.LLMPipeline(
            self._model,
            "CPU",
            ATTENTION_BACKEND=backend,
            INFERENCE_NUM_THREADS=self._threads,
            NUM_STREAMS=1,
            PERFORMANCE_HINT="LATENCY",
        )


if __name__ == "__main__":
    work(OpenvinoEngine)
