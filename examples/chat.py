"""Chat in a terminal, the whole conversation in each prompt: python examples/chat.py [MODEL].

An empty line ends it. The prefix cache keeps the KV of what was said before.
"""

import sys

from ranvier import LLM, SamplingParams


def main(model: str) -> None:
    messages: list[dict[str, str]] = []
    params = SamplingParams(temperature=0.7, top_p=0.95, seed=1, max_tokens=200)
    with LLM(model) as llm:
        while text := input("> ").strip():
            messages.append({"role": "user", "content": text})
            (output,) = llm.chat(messages, params, use_tqdm=False)
            answer = output.outputs[0].text
            print(answer)
            messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
