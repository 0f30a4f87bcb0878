"""The error tree: every failure that Ranvier reports to a user is one of these.

Knows nothing of HTTP, jax or files. A message says what happened, the value seen and the limit;
the hint says what to do.
"""

from __future__ import annotations

__all__ = [
    "AdapterError",
    "AdapterUnavailable",
    "ArtifactError",
    "CapacityError",
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "DamagedArtifact",
    "DeviceError",
    "InternalError",
    "ModelNotFound",
    "RanvierError",
    "RequestError",
    "ServerError",
    "StateLost",
    "TargetError",
    "TooManyRequests",
]


class RanvierError(Exception):
    """Base of all errors that Ranvier raises on purpose.

    `status` is the HTTP status that a server answers with; `exit_code` is the process's.
    """

    status = 500
    exit_code = 1
    retryable = False

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or type(self).__name__

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(RanvierError):
    """An option or a config key is unknown, of a wrong type, or contradicts another."""

    status = 400
    exit_code = 2


class CheckpointError(RanvierError):
    """A model file is missing, malformed or of an unsupported kind; names file and field."""

    exit_code = 3


class AdapterError(RanvierError):
    """An adapter's files are missing or malformed, or don't fit the model or its slots."""

    status = 400
    exit_code = 3


class ArtifactError(RanvierError):
    """A compiled artifact is missing, corrupt or differs from what was asked for."""

    exit_code = 4


class DamagedArtifact(ArtifactError):
    """Files of an artifact are not what its manifest says, or its programs are refused."""

    def __init__(self, message: str, names: list[str], *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.names = names


class TargetError(RanvierError):
    """The target cannot hold or run this: legality, memory or compiler."""

    exit_code = 5


class RequestError(RanvierError):
    """A request is wrong; `param` names its field."""

    status = 400

    def __init__(self, message: str, *, param: str | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.param = param


class ModelNotFound(RequestError):
    """A request names a model or an adapter that is not served."""

    status = 404


class AdapterUnavailable(RequestError):
    """An adapter that is served can't be had now: its files have changed or are gone."""

    status = 409


class CapacityError(RanvierError):
    """The server is full now; the same request may succeed after `retry_after_s`."""

    status = 503
    retryable = True

    def __init__(self, message: str, *, retry_after_s: int = 1, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class TooManyRequests(CapacityError):
    """A client asks for more at once than is ever queued."""

    status = 429


class DeviceError(RanvierError):
    """A step failed on the device; the sequences in it fail, the others go on."""


class StateLost(DeviceError):
    """A failed step took the device's state with it: no sequence has a cache any more."""


class InternalError(RanvierError):
    """A bug in Ranvier."""


class ClusterError(RanvierError):
    """A rank is lost, or never came: every rank stops, and may be started again."""

    status = 503
    exit_code = 7
    retryable = True


class ServerError(RanvierError):
    """The server that a client command talks to is not there, refused, or broke off."""

    status = 502
    exit_code = 6
