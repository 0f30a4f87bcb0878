"""OpenAI's routes from the client's side: models, streams of chunks, errors by their message.

Needs no library beyond the HTTP client beside it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ranvier.client.http import Address, Answer, send
from ranvier.core.errors import ServerError

__all__ = ["Server", "chunk_text"]

DATA = b"data:"
DONE = b"[DONE]"


@dataclass(frozen=True)
class Server:
    """A server's /v1 and how to ask it: `address.path` usually ends in /v1."""

    address: Address
    api_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    async def models(self) -> list[str]:
        """The names of the models that the server has. Raises ServerError."""
        async with send(self.address, "GET", "/models", headers=self._headers()) as answer:
            fields = await _json(answer)
        cards = fields.get("data") or []
        return [str(card["id"]) for card in cards if isinstance(card, dict) and "id" in card]

    async def stream(
        self, route: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """POST a body that asks for a stream; its chunks as they come.

        Raises ServerError for a refusal, an error inside the stream, and a stream without its end.
        Leaving early closes the connection, which cancels the request.
        """
        data, own = msgspec.json.encode(body), {**self._headers(), **(headers or {})}
        async with send(self.address, "POST", route, body=data, headers=own) as answer:
            if answer.status != 200:
                raise _refusal(answer.status, await answer.body())
            async for line in answer.lines():
                if not line.startswith(DATA):
                    continue
                value = line[len(DATA) :].strip()
                if value == DONE:
                    return
                yield _chunk(value)
        raise ServerError("The stream ended without its last line.")

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {**key, **self.headers}


def chunk_text(chunk: Mapping[str, Any]) -> str:
    """The new text of a chunk of either route, reasoning included."""
    texts = []
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or choice
        texts += [delta.get("reasoning"), delta.get("content"), delta.get("text")]
    return "".join(text for text in texts if text)


def _chunk(value: bytes) -> dict[str, Any]:
    try:
        chunk = msgspec.json.decode(value)
    except msgspec.DecodeError:
        raise ServerError(f"The stream holds what is not JSON: {value[:80]!r}.") from None
    if not isinstance(chunk, dict):
        raise ServerError(f"The stream holds what is no object: {value[:80]!r}.")
    if "error" in chunk:
        raise ServerError(_message(chunk) or "The server failed inside the stream.")
    return chunk


async def _json(answer: Answer) -> dict[str, Any]:
    data = await answer.body()
    if answer.status != 200:
        raise _refusal(answer.status, data)
    try:
        fields = msgspec.json.decode(data)
    except msgspec.DecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise ServerError("What listens there is no OpenAI-compatible server: no JSON object came.")
    return fields


def _refusal(status: int, data: bytes) -> ServerError:
    try:
        fields = msgspec.json.decode(data)
    except msgspec.DecodeError:
        fields = {}
    said = _message(fields) if isinstance(fields, dict) else ""
    hint = "Give its key with --api-key." if status == 401 else ""
    return ServerError(f"The server answered {status}: {said or '(no message)'}", hint=hint)


def _message(fields: Mapping[str, Any]) -> str:
    error = fields.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else str(error or "")
