"""A child process with eight CPU devices: tokens of adapters over ranks, one JSON line each.

Arguments: a folder for artifacts, then a JSON list of {"name", "options", "adapters"}; the largest
number of ranks comes first, since jax makes its devices once.
"""

from __future__ import annotations

import json
import sys

from ranvier import LLM, LoRARequest, SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": list(range(3, 3 + n))} for n in (1, 7, 40, 5)]


def main(artifacts, cases):
    for case in json.loads(cases):
        llm = LLM(dtype="float32", max_model_len=96, max_num_seqs=4, max_num_batched_tokens=16,
                  artifacts=artifacts, enable_lora=True, max_loras=2, max_lora_rank=16,
                  **case["options"])  # fmt: skip
        folders = [*case["adapters"].items(), None]
        prompts = [prompt for prompt in PROMPTS for _ in folders]
        wanted = [LoRARequest(f[0], 1, f[1]) if f else None for f in folders] * len(PROMPTS)
        outputs = llm.generate(prompts, PARAMS, lora_request=wanted, use_tqdm=False)
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        compiles = llm.stats().compiles_after_ready
        llm.close()
        print(json.dumps({"name": case["name"], "tokens": tokens, "compiles": compiles}),
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
