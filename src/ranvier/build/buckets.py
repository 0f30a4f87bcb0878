"""Which buckets a build has: what the user listed, or automatic ones; proven to cover the limits.

Pure arithmetic on the host, without jax.
"""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.build.traffic import automatic_unragged
from ranvier.core.buckets import BucketLimits, BucketRequest, BucketSet, Listed, prove_coverage
from ranvier.core.errors import ConfigError

__all__ = ["Resolved", "resolve_ragged", "resolve_unragged", "token_buckets"]

RATIO = 4
SMALLEST = 8


@dataclass(frozen=True, slots=True)
class Resolved:
    """The set, and what the user should know about it."""

    buckets: BucketSet
    notices: tuple[str, ...] = ()


def token_buckets(max_num_seqs: int, max_num_batched_tokens: int) -> tuple[int, ...]:
    """Ascending bucket sizes; the largest equals max_num_batched_tokens. Raises ConfigError.

    Kernels stop at the live rows, so a wide ladder costs little padding and few compiles; there is
    a bucket for one row (decode alone) and one for a full decode batch.
    """
    _check_step(max_num_seqs, max_num_batched_tokens)
    return tuple(sorted({1, max_num_seqs, *_ladder(max_num_batched_tokens)}))


def resolve_ragged(request: BucketRequest, limits: BucketLimits) -> Resolved:
    """Buckets of `step.t{T}`: the prefill list and the row list together. Raises ConfigError."""
    rows, tokens = limits.max_num_seqs, limits.max_num_batched_tokens
    _check_step(rows * (1 + limits.lookahead), tokens)
    notices = []
    for listed in (request.contexts, request.prefixes):
        if listed:
            notices.append(
                f"{listed.key} makes no programs: kernels of this target read only what a sequence "
                "holds, so one program serves every context"
            )
    if request.single:
        sizes = {rows, tokens}
    else:
        chunks = _listed(request.prefill_tokens, tokens, "max_num_batched_tokens")
        counts = _listed(request.decode_rows, rows, "max_num_seqs")
        sizes = {*(chunks or _ladder(tokens)), *(counts or (1, rows)), rows, tokens}
    buckets = BucketSet(tokens=tuple(sorted(sizes)))
    prove_coverage(buckets, limits)
    return Resolved(buckets, tuple(notices))


def resolve_unragged(request: BucketRequest, limits: BucketLimits) -> Resolved:
    """Buckets of `prefill.t{T}.c{C}` and `decode.r{R}.c{C}`. Raises ConfigError."""
    chosen = automatic_unragged(limits)
    automatic = chosen.buckets
    chunk, rows, whole = limits.prefill_max, limits.max_num_seqs, limits.context_max
    is_short = limits.context_max < limits.max_num_batched_tokens
    chunk_name = "max_model_len" if is_short else "max_num_batched_tokens"
    tokens = _listed(request.prefill_tokens, chunk, chunk_name)
    counts = _listed(request.decode_rows, rows, "max_num_seqs")
    contexts, notices = _contexts(request, limits)
    if request.single:
        tokens, counts, contexts = (chunk,), (rows,), (whole,)
    buckets = BucketSet(
        prefill_tokens=_with(tokens, chunk) or automatic.prefill_tokens,
        decode_rows=_with(counts, rows) or automatic.decode_rows,
        contexts=_with(contexts, whole) or automatic.contexts,
    )
    prove_coverage(buckets, limits)
    if buckets == automatic:
        notices.append(
            f"{chosen.program_count} programs are chosen for lengths as in ShareGPT; expected "
            f"padding: prefill {chosen.prefill_padding:.0%}, decode {chosen.decode_padding:.0%}"
        )
    return Resolved(buckets, tuple(notices))


def _contexts(request: BucketRequest, limits: BucketLimits) -> tuple[tuple[int, ...], list[str]]:
    """Listed contexts in whole blocks, and one for each prefix with the longest prefill."""
    listed = _listed(request.contexts, limits.max_model_len, "max_model_len")
    prefixes = _listed(request.prefixes, limits.max_model_len, "max_model_len")
    longest = request.prefill_tokens.sizes[-1] if request.prefill_tokens else limits.prefill_max
    sums = [min(prefix + longest, limits.max_model_len) for prefix in (0, *prefixes) if prefixes]
    block = limits.block_tokens
    sizes = tuple(sorted({-(-size // block) * block for size in (*listed, *sums)}))
    notices = []
    if request.contexts and any(size % block for size in listed):
        notices.append(f"{request.contexts.key} is rounded up to blocks of {block}: {list(sizes)}")
    return sizes, notices


def _ladder(largest: int) -> tuple[int, ...]:
    sizes = []
    size = SMALLEST
    while size < largest:
        sizes.append(size)
        size *= RATIO
    return (*sizes, largest)


def _with(sizes: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """The sizes below the limit, and the limit; nothing stays nothing."""
    return (*(size for size in sizes if size < limit), limit) if sizes else ()


def _listed(listed: Listed | None, limit: int, limit_name: str) -> tuple[int, ...]:
    """The sizes of a list, none of them beyond its limit."""
    if listed is None:
        return ()
    beyond = [size for size in listed.sizes if size > limit]
    if beyond:
        raise ConfigError(
            f"{listed.key} has {beyond}, beyond {limit_name}={limit}.",
            hint=f"Leave out what is larger, or raise {limit_name}.",
        )
    return listed.sizes


def _check_step(decoded: int, tokens: int) -> None:
    if tokens < decoded:
        raise ConfigError(
            f"max_num_batched_tokens={tokens} is below the {decoded} tokens of a step that decodes "
            "every sequence (max_num_seqs).",
            hint="Raise --max-num-batched-tokens or lower --max-num-seqs.",
        )
