"""FrontOptions: the options of the HTTP server; the engine's are in settings."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FrontOptions"]


@dataclass(frozen=True, kw_only=True)
class FrontOptions:
    """Where and how the server listens, by vLLM's names."""

    host: str = "127.0.0.1"
    """Address to listen on; loopback unless told otherwise."""
    port: int = 8000
    """TCP port."""
    uds: str | None = None
    """Path of a Unix socket to listen on instead of a port."""
    api_key: tuple[str, ...] = ()
    """Keys of which a request must bring one; none: no key is asked."""
    served_model_name: tuple[str, ...] = ()
    """Names that the API answers to; the first is reported. Default: the model as named."""
    strict_params: bool = False
    """Answer 400 to unknown request fields instead of a warning."""
