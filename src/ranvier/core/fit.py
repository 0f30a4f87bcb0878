"""What can never run on an artifact: one rule for the scheduler and for the server's edge."""

from __future__ import annotations

from ranvier.core.errors import RequestError
from ranvier.core.request import Request
from ranvier.core.step import RunnerInfo

__all__ = ["check_fits"]


def check_fits(request: Request, info: RunnerInfo, *, param: str = "prompt") -> None:
    """Raise RequestError for an empty prompt and for one that does not fit; `param` names it."""
    length, limit = len(request.prompt_token_ids), info.model_len_max
    if not length:
        raise RequestError("The prompt is empty.", param=param)
    needs_room = request.params.max_tokens != 0
    if length + needs_room > limit:
        raise RequestError(
            f"The prompt has {length} tokens; at most {limit - needs_room} fit into the "
            f"model's length of {limit}.",
            param=param,
            hint="Shorten it, or set truncate_prompt_tokens.",
        )
    longest = min(length + (request.params.max_tokens or 1), limit)
    needed, total = -(-longest // info.block_tokens), info.block_count - 1
    if needed > total:
        raise RequestError(
            f"The request may need {needed} KV blocks; there are {total}.", param="max_tokens"
        )
