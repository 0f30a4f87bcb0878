"""LLM: generate and chat by vLLM's names, the engine in this process."""
