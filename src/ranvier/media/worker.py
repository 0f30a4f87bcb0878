"""Pictures of strangers are decoded and prepared in a process, with limits that the system keeps.

`python -m ranvier.media.worker` prepares one after another (worker/limited); what is made of one
crosses as it is, uncopied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS
from ranvier.media.decode import decode
from ranvier.media.process.prepared import Configs, Prepared
from ranvier.media.process.table import find_family
from ranvier.worker.limited import Ended, LimitedProcess, Part, serve

__all__ = ["PictureProcess", "main"]

PARAM = "messages"
SMALLER = "Send a smaller picture."


class _Job(msgspec.Struct):
    """How the picture is prepared; its bytes are the next part."""

    model: dict[str, Any]
    image: dict[str, Any]
    processor: dict[str, Any]


class _Made(msgspec.Struct):
    """A prepared picture; its values are the next part."""

    shape: tuple[int, ...]
    grid: tuple[int, int, int]
    size: tuple[int, int]
    text: str
    runs: tuple[int, ...]


class _Refusal(msgspec.Struct):
    message: str
    hint: str = ""
    param: str | None = PARAM


class PictureProcess:
    """The parent's side; blocks, one picture at a time. A process that was ended is replaced."""

    def __init__(self, *, limit_s: float = LIMITS.image_prepare_s) -> None:
        self._process = LimitedProcess(__name__, limit_s=limit_s)

    def start(self) -> None:
        """Start the process ahead of its first use."""
        self._process.start()

    def prepare(self, configs: Configs, data: bytes) -> Prepared:
        """What the encoder takes of a picture's bytes. Raises RequestError."""
        job = _Job(dict(configs.model), dict(configs.image), dict(configs.processor))
        try:
            parts = self._process.ask([msgspec.msgpack.encode(job), data])
        except Ended as ended:
            if not ended.is_late:
                raise _too_much_memory() from None
            limit_s = self._process.limit_s
            raise RequestError(
                f"Preparing the picture took longer than {limit_s:g} s and was ended.",
                param=PARAM,
                hint=SMALLER,
            ) from None
        if len(parts) == 1:
            refusal = msgspec.msgpack.decode(parts[0], type=_Refusal)
            raise RequestError(refusal.message, param=refusal.param, hint=refusal.hint)
        made = msgspec.msgpack.decode(parts[0], type=_Made)
        values = np.frombuffer(parts[1], np.float32).reshape(made.shape)
        return Prepared(values, made.grid, made.size, made.text, made.runs)

    def close(self) -> None:
        """End the process."""
        self._process.close()


def main() -> None:
    """Prepare what stdin brings until it ends."""
    serve(_answer, memory_bytes_max=LIMITS.image_memory_bytes)


def _answer(parts: list[bytearray]) -> Sequence[Part]:
    job = msgspec.msgpack.decode(parts[0], type=_Job)
    configs = Configs(job.model, job.image, job.processor)
    try:
        processor = find_family(configs.model).processor.read(configs)
        made = processor.prepare(decode(bytes(parts[1])))
        if made.values.nbytes > LIMITS.request_bytes_max:
            raise _too_much_memory()
    except RequestError as error:
        return _refused(error)
    except MemoryError:
        return _refused(_too_much_memory())
    told = _Made(made.values.shape, made.grid, made.size, made.text, made.runs)
    values = np.ascontiguousarray(made.values, np.float32)
    return [msgspec.msgpack.encode(told), values.reshape(-1).view(np.uint8).data]


def _refused(error: RequestError) -> Sequence[Part]:
    return [msgspec.msgpack.encode(_Refusal(error.message, error.hint, error.param))]


def _too_much_memory() -> RequestError:
    return RequestError(
        f"Preparing the picture takes more than {LIMITS.image_memory_bytes} bytes of memory.",
        param=PARAM,
        hint=SMALLER,
    )


if __name__ == "__main__":
    main()
