"""Write the greedy goldens of the real models with transformers in f32.

Run in an environment of its own that has torch, transformers and gguf:
    python tests/real/make_goldens.py NAME FILE.gguf
transformers dequantises the same GGUF file by its own reader, so weights, prompts and tokens are an
oracle for all of Ranvier. Each golden holds, per prompt, its ids, the greedy ids and the gap
between the two best logits at every step (a tie below 1e-3 may go either way).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "The three laws of thermodynamics are",
    "Water boils at a temperature of",
    "In 1969, the first humans",
    "To make a good cup of coffee, you should",
    "The difference between a list and a tuple in Python is",
    "My favourite season is autumn because",
    "Shakespeare wrote many plays, among them",
    "A prime number is",
    "The quick brown fox",
    "import numpy as np\n\nx = np.array(",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8,",
    "La tour Eiffel se trouve",
)
TOKENS = 64


def main(name: str, path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    folder, file = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    model.eval()
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        out, gaps, cache, feed = [], [], None, torch.tensor([ids])
        with torch.no_grad():
            for _ in range(TOKENS):
                step = model(feed, past_key_values=cache, use_cache=True)
                cache = step.past_key_values
                best = step.logits[0, -1].topk(2)
                out.append(int(best.indices[0]))
                gaps.append(round(float(best.values[0] - best.values[1]), 5))
                feed = torch.tensor([[out[-1]]])
        rows.append({"prompt": prompt, "prompt_ids": ids, "token_ids": out, "gaps": gaps})
        print(name, len(rows), repr(tokenizer.decode(out))[:90], flush=True)
    target = Path(__file__).parent / "goldens" / f"{name}.json"
    target.write_text(json.dumps({"model": name, "rows": rows}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
