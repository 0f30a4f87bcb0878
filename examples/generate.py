"""Complete a few prompts offline: python examples/generate.py [MODEL]."""

import sys

from ranvier import LLM, SamplingParams


def main(model: str) -> None:
    prompts = ["The capital of France is", "A haiku about rivers:"]
    params = SamplingParams(temperature=0, max_tokens=20)
    with LLM(model) as llm:
        for output in llm.generate(prompts, params):
            print(f"{output.prompt!r} -> {output.outputs[0].text!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
