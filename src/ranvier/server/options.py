"""ServerOptions: what the HTTP side needs to know, by vLLM's names, checked by who made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ranvier.core.limits import LIMITS
from ranvier.speculate.tally import Level

__all__ = ["ServerOptions"]


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of one server; cli/options/front.py documents those that are flags."""

    model_names: tuple[str, ...]
    """Names that requests may use; the first is reported."""
    api_keys: tuple[str, ...] = ()
    strict_params: bool = False
    root_path: str = ""
    max_num_queued_reqs: int = LIMITS.requests_waiting_max
    max_num_queued_tokens: int | None = None
    default_chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    response_role: str = "assistant"
    trust_request_chat_template: bool = False
    trust_request_mm_kwargs: bool = False
    return_tokens_as_token_ids: bool = False
    enable_force_include_usage: bool = False
    enable_prompt_tokens_details: bool = True
    enable_per_request_metrics: bool = False
    per_request_spec_decode_metrics: Level = "none"
    enable_tokenizer_info_endpoint: bool = False
    enable_server_load_tracking: bool = False
    disable_fastapi_docs: bool = False
    server_dev_mode: bool = False
    metrics_compat: bool = False
    open_metrics: bool = False
    sse_keep_alive_interval: float = 0.0
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    disable_uvicorn_access_log: bool = False
    disable_access_log_for_endpoints: tuple[str, ...] = ()
    enable_log_requests: bool = False
    enable_log_outputs: bool = False
    max_log_len: int | None = None
    lora_folder: str | None = None
    allow_runtime_lora_updating: bool = False
    cache_labels: dict[str, str] = field(default_factory=dict)
    """Labels of vllm:cache_config_info."""

    @property
    def model_name(self) -> str:
        return self.model_names[0]
