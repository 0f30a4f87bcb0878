"""Talk to a server from a terminal: a conversation, or prompts one by one, answers as they come.

Ctrl-C ends the answer on its way (the connection closes, so the server stops too); Ctrl-D, or the
end of input, ends the program.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ranvier.client.openai import Server, chunk_text
from ranvier.core.errors import ServerError

__all__ = ["Talk", "converse"]


@dataclass
class Talk:
    """One conversation, or, where `is_chat` is false, prompts that stand alone."""

    server: Server
    model: str
    is_chat: bool
    sampling: Mapping[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    has_stats: bool = False

    def ask(self, text: str) -> bool:
        """Print the answer to `text` as it comes; False when it was cut off.

        What was shown is kept as the conversation's history. Raises ServerError.
        """
        heard: list[str] = []
        try:
            asyncio.run(self._answer(text, heard))
            is_whole = True
        except KeyboardInterrupt:
            print("\n(cancelled)", file=sys.stderr)
            is_whole = False
        self.messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "".join(heard)},
        ]
        return is_whole

    async def _answer(self, text: str, heard: list[str]) -> None:
        start_s, first_s, count = time.perf_counter(), 0.0, 0
        route = "/chat/completions" if self.is_chat else "/completions"
        async for chunk in self.server.stream(route, self._body(text)):
            count = (chunk.get("usage") or {}).get("completion_tokens") or count
            piece = chunk_text(chunk)
            if piece:
                first_s = first_s or time.perf_counter() - start_s
                heard.append(piece)
                print(piece, end="", flush=True)
        print()
        if self.has_stats and first_s:
            total_s = time.perf_counter() - start_s
            print(f"TTFT: {first_s * 1e3:.2f} ms", file=sys.stderr)
            rate = f"{count / total_s:.2f} tokens/s ({count} tokens in {total_s:.2f}s)"
            print(f"TPS:  {rate}", file=sys.stderr)

    def _body(self, text: str) -> dict[str, Any]:
        body = {"model": self.model, "stream": True, **self.sampling}
        body["stream_options"] = {"include_usage": True}
        if self.is_chat:
            return {**body, "messages": [*self.messages, {"role": "user", "content": text}]}
        return {**body, "prompt": text}


def converse(talk: Talk, greeting: str) -> None:
    """Read lines until the end of input; an error of one answer is told and the talk goes on."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  arrow keys and history in input()

        print(f"{greeting} Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends)", file=sys.stderr)
            continue
        if not text:
            continue
        try:
            talk.ask(text)
        except ServerError as error:
            print(f"ranvier: error: {error}", file=sys.stderr)
