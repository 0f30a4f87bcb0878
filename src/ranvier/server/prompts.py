"""What the prompt of a completion and the messages of a conversation may hold."""

from __future__ import annotations

from typing import Any

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS

__all__ = ["plain_message", "split_prompts", "with_role"]


def split_prompts(prompt: Any) -> list[Any]:
    """The prompts of a completion: texts and lists of ids. Raises RequestError for a mixture."""
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise RequestError("prompt mixes ids, strings and lists.", param="prompt")
    if not kinds or kinds == {int}:
        return [prompt]
    if len(prompt) > LIMITS.prompts_max:
        raise RequestError(f"{len(prompt)} prompts, at most {LIMITS.prompts_max}.", param="prompt")
    return list(prompt)


def with_role(message: dict[str, Any]) -> dict[str, Any]:
    """A message that has a role, its reasoning by the name of templates. Raises RequestError."""
    if not isinstance(message.get("role"), str):
        raise RequestError("A message has no role.", param="messages")
    if "reasoning_content" in message:
        message = {**message, "reasoning": message["reasoning_content"]}
    return message


def plain_message(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its text parts joined. Raises RequestError for other parts."""
    message = with_role(message)
    content = message.get("content")
    if content is None or isinstance(content, str):
        return {**message, "content": content or ""}
    if not isinstance(content, list):
        raise RequestError("The content of a message must be text.", param="messages")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RequestError(
                f"Content of type {str(kind)[:64]!r} is not supported.", param="messages"
            )
    return {**message, "content": "".join(str(part.get("text", "")) for part in content)}
