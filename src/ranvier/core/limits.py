"""Every bound of the host side, by name. A limit lives here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Fixed bounds; those that depend on a model or a config are in RunnerInfo."""

    n_max: int = 128
    """Sequences of one request."""
    stop_strings_max: int = 4
    """Stop strings of one request."""
    bad_words_max: int = 128
    """Bad words of one request."""
    grammar_chars_max: int = 2**18
    """The text of a schema, regex or grammar of one request."""
    grammar_read_s: float = 0.5
    """Time to read one; an engine reads it once more, between two steps."""
    logit_bias_max: int = 1024
    """Entries of logit_bias, and of bans, of one request."""
    logprobs_max: int = 20
    """Top log-probabilities per token."""
    drafts_max: int = 16
    """Tokens guessed of one sequence in one step."""
    prompts_max: int = 1024
    """Prompts of one completion request."""
    requests_waiting_max: int = 1024
    """Requests queued in the engine before admission answers 503."""
    request_bytes_max: int = 64 * 2**20
    """HTTP body, and one message between server and engine."""
    request_spare_bytes: int = 2**20
    """Of such a message: what is not the pictures of its prompt."""
    header_bytes_max: int = 64 * 2**10
    """HTTP request headers."""
    header_read_s: float = 30.0
    """Time for a new connection to send the headers of its first request."""
    ranks_max: int = 1024
    """Devices that run one model together."""
    template_render_s: float = 5.0
    """Time to render a chat template."""
    adapter_slots_max: int = 256
    """LoRA adapters on the device at a time."""
    adapters_max: int = 4096
    """Names of LoRA adapters that one engine serves."""
    adapters_shown_max: int = 64
    """Names in the labels of vllm:lora_requests_info."""
    adapters_bytes: int = 8 * 2**30
    """Weights of LoRA adapters in host memory, unless max_cpu_lora_bytes says otherwise."""
    adapter_loads_max: int = 64
    """Loads of adapters that wait, before more are answered 429."""
    stream_events_max: int = 4096
    """Undelivered events of one streaming client before it is cut off."""
    stream_write_s: float = 30.0
    """Time for a streaming client to take a write before it is cut off."""
    images_max: int = 64
    """Pictures of one request, whatever limit_mm_per_prompt says."""
    image_bytes_max: int = 32 * 2**20
    """A picture as it is sent: a file, an answer over HTTP, a data: URL decoded."""
    image_pixels_max: int = 30_000_000
    """Pixels of a picture, as sent and after resizing."""
    image_sides: tuple[int, int] = (2, 16384)
    """Least and greatest width and height of a picture, in pixels."""
    image_fetch_s: float = 5.0
    """Time to fetch a picture over HTTP."""
    image_prepare_s: float = 10.0
    """Time to decode and prepare a picture."""
    image_memory_bytes: int = 768 * 2**20
    """Memory that decoding and preparing a picture may take."""
    images_bytes_max: int = 512 * 2**20
    """Prepared pictures of all open requests of a server; more are answered 503."""
    handshake_s: float = 5.0
    """Time for a rank to prove who it is."""
    beat_s: float = 0.5
    """Between two signs of life of a rank."""
    silence_s: float = 7.0
    """Without a sign of life after which a rank counts as lost; a slow link's delay is less."""
    json_depth_max: int = 64
    """Nesting of a request's JSON."""
    gguf_strings_max: int = 4_000_000
    """Strings in a GGUF metadata array."""
    model_text_bytes_max: int = 64 * 2**20
    """config.json, tokenizer.json and the other texts of a model folder, each."""
    header_json_bytes_max: int = 100 * 2**20
    """JSON header of a safetensors file."""


LIMITS = Limits()
