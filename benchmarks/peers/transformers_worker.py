"""transformers as a worker: forward passes in bf16 with its own cache, greedy."""

from __future__ import annotations

from typing import Any

from protocol import Timer, Workload, prompts, work


class TransformersEngine:
    def __init__(self, model: str, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self._torch, self._threads, self._version = torch, threads, transformers.__version__
        kind = transformers.AutoModelForCausalLM
        self._model = kind.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()

    def describe(self) -> dict[str, object]:
        return {"engine": "transformers", "version": self._version, "threads": self._threads}

    def run(self, workload: Workload, seed: int) -> tuple[float, int]:
        with self._torch.inference_mode():
            timer = Timer()
            ids = self._torch.tensor(prompts(workload, seed))
            tokens, cache = self._forward(ids, None)
            if workload.kind == "decode":
                timer.start()
            steps = workload.new if workload.kind == "decode" else workload.new - 1
            for _ in range(steps):
                tokens, cache = self._forward(tokens, cache)
            seconds = timer.seconds
        asked, made = workload.batch * workload.prompt, workload.batch * workload.new
        return seconds, {"decode": made, "throughput": asked + made, "prefill": asked}[
            workload.kind
        ]

    def _forward(self, ids: Any, cache: Any) -> tuple[Any, Any]:
        out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values


if __name__ == "__main__":
    work(TransformersEngine)
