"""What of pictures can never run on an artifact: one rule for the scheduler and the edge."""

from __future__ import annotations

from ranvier.core.errors import RequestError
from ranvier.core.request import Request
from ranvier.core.step import RunnerInfo
from ranvier.media.place import row_count

__all__ = ["check_media"]


def check_media(request: Request, info: RunnerInfo, tokens_max: int) -> None:
    """Raise RequestError for pictures that no encoder, buffer or step of this engine takes."""
    media, vision = request.media, info.vision
    if media is None:
        return
    if vision is None:
        raise RequestError("This model takes no pictures.", param="messages")
    _at_most("pictures", len(media.images), vision.images_max)
    for image in media.images:
        units = image.shape[0] if vision.unit == "tiles" else image.grid[1] * image.grid[2]
        _at_most(f"{vision.unit} of a picture", units, vision.units[-1])
        if vision.is_whole:
            # Of a ragged step the others' next tokens may take their part first.
            room = tokens_max - (info.rows_max - 1 if info.is_ragged else 0)
            _at_most("tokens of a picture", max(count for _, count in image.spans), room)
    rows = sum(row_count(image, vision) for image in media.images)
    _at_most("features of the pictures", rows, vision.rows - vision.is_cross)
    if vision.is_whole and request.params.prompt_logprobs is not None:
        raise RequestError(
            "Prompts with pictures are not scored for this model.", param="prompt_logprobs"
        )


def _at_most(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise RequestError(
            f"The prompt has {count} {what}; at most {limit} fit.",
            param="messages",
            hint="Send fewer or smaller pictures.",
        )
