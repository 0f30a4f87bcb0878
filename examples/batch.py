"""Complete every line of a file: python examples/batch.py IN.jsonl OUT.jsonl [MODEL].

A line in is {"prompt": "...", "max_tokens": 20}; a line out is {"prompt", "text", "finish_reason"}.
The engine batches by itself: give it all prompts at once.
"""

import json
import sys
from pathlib import Path

from ranvier import LLM, SamplingParams


def main(source: Path, target: Path, model: str) -> None:
    rows = [json.loads(line) for line in source.read_text().splitlines() if line.strip()]
    params = [SamplingParams(temperature=0, max_tokens=row.get("max_tokens", 64)) for row in rows]
    with LLM(model) as llm, target.open("w") as out:
        for output in llm.generate([row["prompt"] for row in rows], params):
            part = output.outputs[0]
            found = {
                "prompt": output.prompt,
                "text": part.text,
                "finish_reason": part.finish_reason,
            }
            out.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "smollm2-135m")
