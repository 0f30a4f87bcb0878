"""Messages between the server's process and the engine's: declared types, framed, bounded.

A frame is four bytes of length, big-endian, then that many bytes of MessagePack. Whoever receives a
frame that is too large or does not decode closes the connection: there is no way to resynchronise.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from ranvier.core.errors import (
    AdapterError,
    AdapterUnavailable,
    ArtifactError,
    CapacityError,
    CheckpointError,
    ClusterError,
    ConfigError,
    InternalError,
    ModelNotFound,
    RanvierError,
    RequestError,
    TargetError,
    TooManyRequests,
)
from ranvier.core.limits import LIMITS
from ranvier.core.request import EngineStats, Event, Request
from ranvier.core.step import RunnerInfo

__all__ = [
    "HEAD_BYTES",
    "AdapterAnswer",
    "Admit",
    "Alive",
    "Cancel",
    "Failure",
    "FromEngine",
    "LoadAdapter",
    "Located",
    "News",
    "Phase",
    "ProtocolFault",
    "Ready",
    "Refused",
    "ResetPrefixCache",
    "Stop",
    "ToEngine",
    "UnloadAdapter",
    "decode",
    "frame",
    "frame_size",
]

HEAD = struct.Struct(">I")
HEAD_BYTES = HEAD.size
KINDS: dict[str, type[RanvierError]] = {
    kind.__name__: kind
    for kind in (
        AdapterError,
        ArtifactError,
        CheckpointError,
        ClusterError,
        ConfigError,
        InternalError,
        TargetError,
    )  # fmt: skip
}
T = TypeVar("T")


class ProtocolFault(Exception):
    """A frame is too large or is not one of the declared messages."""


class Failure(msgspec.Struct, tag="failure"):
    """An error on its way to the other process; `exit_code` and `status` follow from `kind`."""

    kind: str
    message: str
    hint: str = ""
    param: str | None = None
    retry_after_s: int = 1

    @classmethod
    def of(cls, error: RanvierError) -> Failure:
        return cls(
            type(error).__name__,
            error.message,
            error.hint,
            getattr(error, "param", None),
            getattr(error, "retry_after_s", 1),
        )

    def error(self) -> RanvierError:
        """The same error here."""
        for kind in (CapacityError, TooManyRequests):
            if self.kind == kind.__name__:
                return kind(self.message, retry_after_s=self.retry_after_s, hint=self.hint)
        for wrong in (AdapterUnavailable, ModelNotFound, RequestError):
            if self.kind == wrong.__name__:
                return wrong(self.message, param=self.param, hint=self.hint)
        return KINDS.get(self.kind, InternalError)(self.message, hint=self.hint)


class Admit(msgspec.Struct, tag="admit"):
    """Take these requests; each is answered by events or by Refused."""

    requests: list[Request]


class Cancel(msgspec.Struct, tag="cancel"):
    """End a request, or one sequence of it."""

    request_id: str
    index: int | None = None


class ResetPrefixCache(msgspec.Struct, tag="reset_prefix_cache"):
    """Forget every cached prefix."""


class LoadAdapter(msgspec.Struct, tag="load_adapter"):
    """Serve the adapter in a folder under a name; answered by AdapterAnswer with the ticket."""

    ticket: int
    name: str
    path: str
    is_inplace: bool = False
    is_pinned: bool | None = None


class UnloadAdapter(msgspec.Struct, tag="unload_adapter"):
    """Serve a name no longer; answered by AdapterAnswer."""

    ticket: int
    name: str


class Stop(msgspec.Struct, tag="stop"):
    """End the process now; open requests end with "abort"."""


class Phase(msgspec.Struct, tag="phase"):
    """A phase of the start is over."""

    name: str
    seconds: float


class Located(msgspec.Struct, tag="located"):
    """The artifact is there: the front can load its tokenizer while the engine loads weights."""

    folder: str


class Ready(msgspec.Struct, tag="ready"):
    """The start is over. `cache` are the labels of the cache's metric."""

    info: RunnerInfo
    cache: dict[str, str] = {}


class Alive(msgspec.Struct, tag="alive"):
    """The process runs, whatever its loop does; rank 0 of a cluster says it at every beat."""


class News(msgspec.Struct, tag="news"):
    """What a turn brought; without events a heartbeat. `stats` comes twice a second."""

    events: list[Event] = []
    stats: EngineStats | None = None


class Refused(msgspec.Struct, tag="refused"):
    """A request was not admitted."""

    request_id: str
    failure: Failure


class AdapterAnswer(msgspec.Struct, tag="adapter_answer"):
    """What became of a LoadAdapter or UnloadAdapter."""

    ticket: int
    failure: Failure | None = None


ToEngine = Admit | Cancel | LoadAdapter | ResetPrefixCache | Stop | UnloadAdapter
FromEngine = AdapterAnswer | Alive | Failure | Located | News | Phase | Ready | Refused


def frame(message: ToEngine | FromEngine) -> bytes:
    """One message as it goes over the socket. Raises ProtocolFault when it is too large."""
    body = msgspec.msgpack.encode(message)
    if len(body) > LIMITS.request_bytes_max:
        raise ProtocolFault(f"a message of {len(body)} bytes; {LIMITS.request_bytes_max} at most")
    return HEAD.pack(len(body)) + body


def frame_size(head: bytes) -> int:
    """The length that a frame announces. Raises ProtocolFault when it is beyond the limit."""
    size: int = HEAD.unpack(head)[0]
    if size > LIMITS.request_bytes_max:
        raise ProtocolFault(f"a message of {size} bytes; {LIMITS.request_bytes_max} at most")
    return size


def decode(body: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """One message. Raises ProtocolFault."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RanvierError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolFault(f"a malformed message: {error}") from None
