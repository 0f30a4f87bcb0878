"""A child process with eight CPU devices: tokens of models over ranks, one JSON line each.

Arguments: a folder for artifacts, then a JSON list of {"name", "options"}; the largest number of
ranks comes first, since jax makes its devices once.
"""

from __future__ import annotations

import json
import sys

from ranvier import LLM, SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.8, top_p=0.9, seed=7, max_tokens=6, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": list(range(3, 3 + n))} for n in (1, 7, 40)]


def main(artifacts, cases):
    for case in json.loads(cases):
        llm = LLM(dtype="float32", max_model_len=96, max_num_seqs=4, max_num_batched_tokens=16,
                  artifacts=artifacts, **case["options"])  # fmt: skip
        tokens = [
            list(out.outputs[0].token_ids)
            for params in (PARAMS, SEEDED)
            for out in llm.generate(PROMPTS, params, use_tqdm=False)
        ]
        llm.close()
        print(json.dumps({"name": case["name"], "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
