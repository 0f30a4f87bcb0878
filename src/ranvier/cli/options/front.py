"""FrontOptions: the options of the HTTP server; the engine's are in settings."""

from __future__ import annotations

import dataclasses
import os
import socket
import stat
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from ranvier.core.errors import ConfigError
from ranvier.core.limits import LIMITS
from ranvier.server.options import ServerOptions
from ranvier.speculate.tally import Level

__all__ = ["FrontOptions", "bind_socket", "check_front", "server_options"]


FORMATS = ("text", "json")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
TELLING = get_args(Level)


@dataclass(frozen=True, kw_only=True)
class FrontOptions:
    """Where and how the server listens, by vLLM's names."""

    host: str = "127.0.0.1"
    """Address to listen on; loopback unless told otherwise."""
    port: int = 8000
    """TCP port; 0 takes a free one."""
    uds: str | None = None
    """Path of a Unix socket to listen on instead of a port; only this user may open it."""
    root_path: str = ""
    """Path under which a proxy serves this server."""
    api_key: tuple[str, ...] = ()
    """Keys of which a request must bring one; none: no key is asked."""
    served_model_name: tuple[str, ...] = ()
    """Names that the API answers to; the first is reported. Default: the model as named."""
    strict_params: bool = False
    """Answer 400 to unknown request fields instead of a warning."""
    ssl_keyfile: str | None = None
    """File of the TLS key."""
    ssl_certfile: str | None = None
    """File of the TLS certificate."""
    ssl_ca_certs: str | None = None
    """File of the authorities that sign clients' certificates."""
    ssl_cert_reqs: int = 0
    """Clients' certificates: 0 not asked for, 1 optional, 2 required."""
    ssl_ciphers: str = "TLSv1"
    """Ciphers that TLS may use, in OpenSSL's form; TLSv1 stands for all good ones."""
    allowed_origins: tuple[str, ...] = ()
    """Origins whose pages may read answers (CORS); none unless told."""
    allowed_methods: tuple[str, ...] = ("*",)
    """Methods that such pages may use."""
    allowed_headers: tuple[str, ...] = ("*",)
    """Headers that such pages may send."""
    allow_credentials: bool = False
    """Whether such pages may send cookies and keys."""
    max_num_queued_reqs: int = LIMITS.requests_waiting_max
    """Sequences that may wait beyond those that run; more are answered 503 with Retry-After."""
    max_num_queued_tokens: int | None = None
    """Prompt tokens that may wait for their first token; more are answered 503."""
    default_chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, under those of a request."""
    response_role: str = "assistant"
    """Role of the answers of chat completions."""
    trust_request_chat_template: bool = False
    """Let a request bring its own chat template; it runs in a sandbox that ends it in time."""
    trust_request_mm_kwargs: bool = False
    """Let a request bring its own mm_processor_kwargs; pictures stay within compiled sizes."""
    return_tokens_as_token_ids: bool = False
    """Show tokens of log-probabilities as token_id:N, unless a request says otherwise."""
    enable_force_include_usage: bool = False
    """End every stream with its usage."""
    enable_prompt_tokens_details: bool = True
    """Tell cached tokens in usage."""
    enable_per_request_metrics: bool = False
    """Tell the times of a request in its answer, under metrics; of streams in the usage chunk."""
    per_request_spec_decode_metrics: str = "none"
    """What an answer tells of its guesses: none, summary or detailed (every verification)."""
    enable_tokenizer_info_endpoint: bool = False
    """Serve /tokenizer_info."""
    enable_server_load_tracking: bool = False
    """Serve /load."""
    server_dev_mode: bool = False
    """Serve /reset_prefix_cache."""
    disable_fastapi_docs: bool = False
    """Do not serve /openapi.json."""
    open_metrics: bool = False
    """Serve /metrics without a key."""
    metrics_compat: bool = False
    """Also serve the old names of vLLM's metrics."""
    sse_keep_alive_interval: float = 0.0
    """Seconds without a chunk after which a stream gets a comment; 0: never."""
    disable_uvicorn_access_log: bool = False
    """No line per request."""
    disable_access_log_for_endpoints: tuple[str, ...] = ()
    """Paths without a line per request."""
    enable_log_requests: bool = False
    """Log the parameters and ids of requests."""
    enable_log_outputs: bool = False
    """Log the texts that are generated."""
    max_log_len: int | None = None
    """Ids and characters of a request or text that are logged."""
    log_format: str = "text"
    """text, or json: one object a line."""
    logging_level: str = "INFO"
    """Least level that is logged: DEBUG, INFO, WARNING or ERROR."""
    log_stats_interval: float = 10.0
    """Seconds between two lines of throughput; 0: none."""
    shutdown_timeout: float = 30.0
    """Seconds that requests in flight get to finish after SIGINT or SIGTERM."""
    engine_stall_timeout: float = 120.0
    """Seconds without a turn of the engine after which /health says 503."""
    timeout_keep_alive: int = 5
    """Seconds that an idle connection is kept."""
    lora_folder: str | None = None
    """Folder of adapters: a request that names one of them loads it, clients load from below it."""
    allow_runtime_lora_updating: bool = False
    """Let clients load adapters from any folder of this machine (/v1/load_lora_adapter)."""


def check_front(front: FrontOptions) -> None:
    """Raises ConfigError for options that cannot work."""
    if not 0 <= front.port < 2**16:
        raise ConfigError(f"port is {front.port}; it must be in [0, 65535].")
    names = (
        "shutdown_timeout", "engine_stall_timeout", "sse_keep_alive_interval", "timeout_keep_alive",
        "log_stats_interval", "max_num_queued_reqs", "max_num_queued_tokens", "max_log_len",
    )  # fmt: skip
    for name in names:
        value = getattr(front, name)
        if value is not None and not value >= 0:
            raise ConfigError(f"{name} is {value}; it must be at least 0.")
    for name, known in (
        ("log_format", FORMATS), ("logging_level", LEVELS),
        ("per_request_spec_decode_metrics", TELLING),
    ):  # fmt: skip
        if getattr(front, name) not in known:
            told = ", ".join(known)
            raise ConfigError(f"{name} is {getattr(front, name)!r}; supported: {told}.")
    if front.ssl_cert_reqs not in (0, 1, 2):
        raise ConfigError(f"ssl_cert_reqs is {front.ssl_cert_reqs}; it must be 0, 1 or 2.")
    if bool(front.ssl_keyfile) != bool(front.ssl_certfile):
        raise ConfigError("Give both ssl_keyfile and ssl_certfile, or neither.")
    for path in (front.ssl_keyfile, front.ssl_certfile, front.ssl_ca_certs):
        if path is not None and not os.path.isfile(path):
            raise ConfigError(f"{path}: no such file.")
    if front.lora_folder is not None and not os.path.isdir(front.lora_folder):
        raise ConfigError(f"lora_folder: {front.lora_folder}: no such folder.")
    if any(not key for key in front.api_key):
        raise ConfigError("An api_key is empty.")
    if front.allow_credentials and "*" in front.allowed_origins:
        raise ConfigError("allow_credentials needs origins by name, not *.")


def server_options(front: FrontOptions, model: str, cache: dict[str, str]) -> ServerOptions:
    """What the server needs of these."""
    fields = {f.name for f in dataclasses.fields(ServerOptions)}
    shared = {k: v for k, v in vars(front).items() if k in fields}
    for name in ("allowed_origins", "allowed_methods", "allowed_headers"):
        shared[name] = _listed(name, shared[name])
    return ServerOptions(
        **{
            **shared,
            "default_chat_template_kwargs": front.default_chat_template_kwargs or {},
            "model_names": front.served_model_name or (model,),
            "api_keys": front.api_key,
            "cache_labels": cache,
        }
    )


def _listed(name: str, values: tuple[str, ...]) -> tuple[str, ...]:
    """vLLM gives these lists as JSON: '["*"]' is the same as '*'."""
    if len(values) != 1 or not values[0].startswith("["):
        return values
    try:
        return tuple(msgspec.json.decode(values[0], type=list[str]))
    except (msgspec.MsgspecError, ValueError):
        raise ConfigError(f"{name} is {values[0]!r}: no JSON list of texts.") from None


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
