"""FrontOptions: the options of the HTTP server; the engine's are in settings."""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass

from ranvier.core.errors import ConfigError

__all__ = ["FrontOptions", "bind_socket", "check_front"]


@dataclass(frozen=True, kw_only=True)
class FrontOptions:
    """Where and how the server listens, by vLLM's names."""

    host: str = "127.0.0.1"
    """Address to listen on; loopback unless told otherwise."""
    port: int = 8000
    """TCP port; 0 takes a free one."""
    uds: str | None = None
    """Path of a Unix socket to listen on instead of a port."""
    root_path: str = ""
    """Path under which a proxy serves this server."""
    api_key: tuple[str, ...] = ()
    """Keys of which a request must bring one; none: no key is asked."""
    served_model_name: tuple[str, ...] = ()
    """Names that the API answers to; the first is reported. Default: the model as named."""
    strict_params: bool = False
    """Answer 400 to unknown request fields instead of a warning."""
    shutdown_timeout: float = 30.0
    """Seconds that requests in flight get to finish after SIGINT or SIGTERM."""
    engine_stall_timeout: float = 120.0
    """Seconds without a turn of the engine after which /health says 503."""


def check_front(front: FrontOptions) -> None:
    """Raises ConfigError for options that cannot work."""
    if not 0 <= front.port < 2**16:
        raise ConfigError(f"port is {front.port}; it must be in [0, 65535].")
    for name in ("shutdown_timeout", "engine_stall_timeout"):
        if not getattr(front, name) >= 0:
            raise ConfigError(f"{name} is {getattr(front, name)}; it must be at least 0.")


def bind_socket(front: FrontOptions) -> socket.socket:
    """The listening socket, bound and not yet listening. Raises ConfigError when it is taken."""
    try:
        return _bind_path(front.uds) if front.uds else _bind_port(front.host, front.port)
    except OSError as error:
        where = front.uds or f"{front.host}:{front.port}"
        raise ConfigError(
            f"Cannot listen on {where}: {error.strerror or error}.",
            hint="Choose another with --port, --host or --uds.",
        ) from None


def _bind_port(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    return listener


def _bind_path(path: str) -> socket.socket:
    """A socket that only this user can open. One that nobody listens on is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.path.exists(path):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(0, "a file is there that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(path) == 0:
                raise OSError(0, "a server listens there")
        os.unlink(path)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    return listener
