"""What ranks say to each other over the control channel: declared types as MessagePack, bounded.

Arrays of a plan travel as their bytes; their type is that of the field. Knows nothing of sockets.
"""

from __future__ import annotations

import typing
from typing import Any, TypeVar

import msgspec
import numpy as np

from ranvier.cluster.adapter import AdapterPart
from ranvier.core.errors import RanvierError
from ranvier.core.limits import LIMITS
from ranvier.core.media import ImageItem
from ranvier.core.step import StepPlan

__all__ = [
    "Beat",
    "Dispatch",
    "Encode",
    "Facts",
    "FillOn",
    "FillSlot",
    "Halt",
    "MessageFault",
    "ToFollower",
    "ToLeader",
    "Trouble",
    "Verdict",
    "decode",
    "encode",
    "follower_decoder",
    "leader_decoder",
]

T = TypeVar("T")


class MessageFault(Exception):
    """A message is too large or is not one of the declared ones."""


class Beat(msgspec.Struct, tag="beat"):
    """Still here. `step` is the last step that a follower has finished, 0 from the leader."""

    step: int = 0


class Facts(msgspec.Struct, tag="facts"):
    """What a follower knows at a stage of the start; it must equal what the leader knows."""

    stage: str
    host: str
    values: dict[str, str]


class Trouble(msgspec.Struct, tag="trouble"):
    """A follower cannot go on."""

    text: str


class Verdict(msgspec.Struct, tag="verdict"):
    """The leader's answer to Facts of a stage: how the ranks differ, or nothing."""

    stage: str
    differences: list[str] = []


class Dispatch(msgspec.Struct, tag="dispatch"):
    """Run this step; steps are numbered from 1 without a gap."""

    step: int
    plan: StepPlan


class Encode(msgspec.Struct, tag="encode"):
    """Put a picture's features into these rows."""

    image: ImageItem
    rows: list[int]


class FillSlot(msgspec.Struct, tag="fill_slot"):
    """Begin to fill a slot with the adapter whose parts have come, or to empty it."""

    slot: int
    is_empty: bool


class FillOn(msgspec.Struct, tag="fill_on"):
    """Move the next piece of it."""


class Halt(msgspec.Struct, tag="halt"):
    """Stop now. Without a reason: the server has been told to."""

    reason: str = ""


ToLeader = Beat | Facts | Trouble
ToFollower = AdapterPart | Beat | Dispatch | Encode | Halt | FillSlot | FillOn | Verdict


def encode(message: ToLeader | ToFollower) -> bytes:
    """The body of a frame. Raises MessageFault when it is too large."""
    body = _ENCODER.encode(message)
    if len(body) > LIMITS.request_bytes_max:
        raise MessageFault(f"a message of {len(body)} bytes; {LIMITS.request_bytes_max} at most")
    return body


def leader_decoder() -> msgspec.msgpack.Decoder[ToLeader]:
    """Reads what followers send; one a thread."""
    return msgspec.msgpack.Decoder(ToLeader)


def follower_decoder() -> msgspec.msgpack.Decoder[ToFollower]:
    """Reads what the leader sends; one a thread."""
    return msgspec.msgpack.Decoder(ToFollower, dec_hook=_array)


def decode(body: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """One message. Raises MessageFault."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RanvierError, RecursionError, ValueError) as error:
        raise MessageFault(f"a malformed message: {error}") from None


def _bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tobytes()
    raise NotImplementedError(type(value).__name__)


def _array(kind: Any, data: Any) -> Any:
    """A vector of the field's own type: NDArray[T] is ndarray[shape, dtype[T]]."""
    if typing.get_origin(kind) is not np.ndarray or not isinstance(data, bytes):
        raise ValueError(f"{type(data).__name__} where an array belongs")
    (item,) = typing.get_args(typing.get_args(kind)[1])
    return np.frombuffer(data, item)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_bytes)
