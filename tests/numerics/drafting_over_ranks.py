"""A child process with four CPU devices: tokens with drafters over ranks, one JSON line each.

Arguments: a folder for artifacts, then a JSON list of {"name", "options"}; the largest number of
ranks comes first, since jax makes its devices once. Guesses are made wherever there is room.
"""

from __future__ import annotations

import json
import sys

from ranvier import LLM, SamplingParams

PARAMS = [
    SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, seed=7, max_tokens=12, ignore_eos=True),
]
PROMPTS = [{"prompt_token_ids": list(range(3, 3 + n))} for n in (1, 7, 40)]


def main(artifacts, cases):
    for case in json.loads(cases):
        llm = LLM(dtype="float32", max_model_len=96, max_num_seqs=2, max_num_batched_tokens=8,
                  artifacts=artifacts, **case["options"])  # fmt: skip
        policy = llm._engine.scheduler.speculation.policy
        policy.choose = lambda rows, rooms: 2 if any(rooms) else 0
        tokens = [list(out.outputs[0].token_ids) for params in PARAMS
                  for out in llm.generate(PROMPTS, params, use_tqdm=False)]  # fmt: skip
        stats = llm.stats()
        llm.close()
        print(json.dumps({
            "name": case["name"], "tokens": tokens, "compiles": stats.compiles_after_ready,
            "drafted": stats.draft_tokens, "accepted": stats.accepted_tokens,
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
