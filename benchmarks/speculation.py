"""What guessing gives: the same prompts with and without it, in pairs, on one model in one process.

    python benchmarks/speculation.py --prompts copy \\
        --config '{"method": "ngram", "num_speculative_tokens": 4}'
    python benchmarks/speculation.py --prompts questions \\
        --config '{"model": HEAD, "num_speculative_tokens": 3}'
    python benchmarks/speculation.py --model qwen2.5-coder-1.5b --prompts code \\
        --config '{"method": "draft_model", "model": "qwen2.5-coder-0.5b", "quantization": "int4"}'
    python benchmarks/speculation.py --model qwen2.5-coder-0.5b --prompts code \\
        --config '{"method": "draft_model", "model": "qwen2.5-coder-0.5b", "quantization": "int4"}'
    python benchmarks/speculation.py --rows 32 --prompts code --config ...

Both sides keep the target in bfloat16 unless --quantization says otherwise. Prints each pair, then
the medians; outputs that differ between the two are counted. JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from ranvier import LLM, SamplingParams

PASSAGE = (
    "The river rose in the night and carried the bridge away, so the miller's daughter crossed by "
    "the old ford with her basket of eggs held high above the water. On the other bank a grey "
    "horse stood and watched her come."
)
CODE = """def total_price(items, tax_rate):
    subtotal = 0.0
    for item in items:
        subtotal += item.price * item.quantity
    tax = subtotal * tax_rate
    return subtotal + tax
"""
PROMPTS = {
    "copy": [
        f"Repeat this text word for word: {PASSAGE}",
        f"Copy the following function without any change:\n{CODE}",
        f"Write this text again, exactly as it is. {PASSAGE} {PASSAGE}",
    ],
    "code": [
        "Write a Python function that checks whether a string is a palindrome.",
        f"Rename the variable subtotal to base in this function:\n{CODE}",
        "Write a Python class for a stack with push, pop and peek.",
    ],
    "questions": [
        "What is the difference between weather and climate?",
        "How do I make a simple tomato soup?",
        "Why does the moon have phases?",
        "Give me three tips for learning a new language.",
    ],
}


def timed(llm: LLM, messages: list[Any], params: SamplingParams) -> tuple[float, list[list[int]]]:
    """Tokens a second of all of them together, and the ids."""
    start = time.perf_counter()
    outputs = llm.chat(messages, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    ids = [output.outputs[0].token_ids for output in outputs]
    return sum(map(len, ids)) / seconds, ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--config", type=json.loads, required=True)
    parser.add_argument("--prompts", choices=PROMPTS, default="copy")
    parser.add_argument("--rows", type=int, default=1, help="sequences at once")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--artifacts", default=None)
    given = parser.parse_args()
    options = {
        "quantization": given.quantization, "max_model_len": 1024, "max_num_seqs": given.rows,
        "enable_prefix_caching": False, "artifacts": given.artifacts,
    }  # fmt: skip
    if given.artifacts:
        Path(given.artifacts).mkdir(parents=True, exist_ok=True)
    plain, guessing = (
        LLM(given.model, **options),
        LLM(given.model, speculative_config=given.config, **options),
    )
    params = SamplingParams(temperature=0, max_tokens=given.tokens, ignore_eos=True)
    prompts = PROMPTS[given.prompts]
    asked = [prompts[i % len(prompts)] for i in range(max(given.rows, len(prompts)))]
    conversations = [[{"role": "user", "content": text}] for text in asked]
    batches = [conversations[i : i + given.rows] for i in range(0, len(asked), given.rows)]
    pairs, differing = [], 0
    for batch in batches:
        timed(guessing, batch, params)  # the policy has measured
        timed(plain, batch, params)
        for _ in range(given.pairs):
            (ours, ids), (theirs, expected) = (
                timed(guessing, batch, params),
                timed(plain, batch, params),
            )
            differing += sum(a != b for a, b in zip(ids, expected, strict=True))
            pairs.append((ours, theirs))
            print(f"guessing {ours:8.1f}, plain {theirs:8.1f} tokens/s, ratio {ours / theirs:.2f}")
    stats = guessing.stats()
    shares = [count / max(stats.drafts, 1) for count in stats.accepted_per_position]
    length = 1 + stats.accepted_tokens / max(stats.drafts, 1)
    ratios = [ours / theirs for ours, theirs in pairs]
    found = {
        "model": given.model, "config": given.config, "prompts": given.prompts, "rows": given.rows,
        "ratio_median": statistics.median(ratios), "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "tokens_s": [statistics.median(side) for side in zip(*pairs, strict=True)],
        "acceptance_length": length, "acceptance_per_position": shares, "drafts": stats.drafts,
        "steps": stats.steps, "differing": differing,
    }  # fmt: skip
    print(
        f"median {found['ratio_median']:.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"acceptance length {length:.2f} (tokens a verification yields, over {stats.drafts} "
        f"in {stats.steps} steps); "
        f"{differing} outputs differ"
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
