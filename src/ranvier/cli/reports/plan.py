"""A plan as text for people and as a JSON document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ranvier.build.plan import Estimate, Plan, Wish
from ranvier.build.traffic import Automatic
from ranvier.targets.collectives import FORMULA as COLLECTIVE_FORMULA
from ranvier.targets.collectives import KINDS, Collective
from ranvier.targets.neuron.compile_cost import FORMULA
from ranvier.targets.roofline import DECODE_FORMULA, PREFILL_FORMULA, PUBLISHED

__all__ = ["document", "text"]

GIB = 2**30
UNPROVEN = "Estimates from published numbers; nothing here was measured on Neuron hardware."
MEASURED = (
    "Measured just now: bandwidth of numpy's sum on one thread times the cores; FLOP/s of an f32 "
    "matrix product, in bfloat16 times 16 with AMX, times 2 with AVX-512 BF16 (ratio of the peaks)."
)
FLOOR_HEAD = ["rows", "tokens", "ms", "tok/s", "bound by"]


def document(wish: Wish, plans: Sequence[Plan], *, is_single: bool) -> dict[str, Any]:
    """One plan's fields at the top, or a list under `instances`."""
    own = wish.sizes
    head = {
        "model": wish.model.name,
        "parameters": wish.model.parameters,
        "dtype": own.dtype,
        "max_model_len": own.max_model_len,
        "max_num_seqs": own.max_num_seqs,
        "max_num_batched_tokens": own.max_num_batched_tokens,
        "note": MEASURED if plans[0].instance is None else UNPROVEN,
    }
    if is_single:
        return {**head, **_plan_fields(plans[0])}
    return {**head, "instances": [_plan_fields(plan) for plan in plans]}


def text(wish: Wish, plans: Sequence[Plan], *, is_single: bool) -> str:
    """Tables; all instances in one, a single one in full."""
    own = wish.sizes
    head = (
        f"{wish.model.name}: {wish.model.parameters:,} weights in {own.dtype}, max_model_len "
        f"{own.max_model_len}, max_num_seqs {own.max_num_seqs}"
    )
    if is_single:
        return f"{head}\n\n{_single(plans[0])}"
    first = next((plan for plan in plans if plan.memory.fits), plans[0])
    return f"{head}\n\n{_overview(plans, own.max_num_seqs)}\n\n{_single(first)}"


def _plan_fields(plan: Plan) -> dict[str, Any]:
    compiled = plan.compile
    return {
        "instance": plan.name,
        "target": plan.instance.chip.target if plan.instance else "cpu",
        "tensor_parallel_size": plan.tensor_parallel,
        "pipeline_parallel_size": plan.axes.stages,
        "data_parallel_size": plan.axes.replicas,
        "nnodes": plan.axes.hosts,
        "sequence_parallel": plan.axes.is_sequence,
        "price_hour": plan.price,
        "fits": plan.memory.fits,
        "problems": list(plan.memory.problems),
        "memory": {
            "limit_bytes": plan.memory.limit_bytes,
            "total_bytes": plan.memory.total_bytes,
            "rows": [
                {"kind": row.kind, "bytes": row.bytes, "formula": row.formula}
                for row in plan.memory.rows
            ],
        },
        "host_adapters": plan.host_adapters
        and {"bytes": plan.host_adapters.bytes, "formula": plan.host_adapters.formula},
        "tensor_parallel": [
            {
                "size": entry.degree.size,
                "is_legal": entry.degree.is_legal,
                "problem": entry.degree.problem,
                "note": entry.degree.note,
                "fits": entry.memory.fits,
                "total_bytes": entry.memory.total_bytes,
                "decode_ms": entry.decode.seconds * 1e3,
            }
            for entry in plan.degrees
        ],
        "largest": [
            {"max_num_seqs": seqs, "max_model_len": length} for seqs, length in plan.largest.items()
        ],
        "buckets": _bucket_fields(plan.automatic),
        "collectives": {
            "formula": COLLECTIVE_FORMULA,
            "programs": [
                {"name": t.name, "calls": [_collective_fields(c) for c in t.collectives]}
                for t in plan.traded
            ],
        },
        "compile": compiled
        and {
            "seconds": compiled.seconds,
            "workers": compiled.workers,
            "host_bytes": compiled.host_bytes,
            "formula": FORMULA,
        },
        "roofline": _roofline_fields(plan),
    }


def _roofline_fields(plan: Plan) -> dict[str, Any]:
    return {
        "bandwidth_bytes_s": plan.core.bandwidth_bytes_s,
        "flops_s": plan.core.flops_s,
        "decode_formula": DECODE_FORMULA,
        "prefill_formula": PREFILL_FORMULA,
        "decode": [_floor_fields(entry) for entry in plan.decode],
        "prefill": [_floor_fields(entry) for entry in plan.prefill],
    }


def _bucket_fields(automatic: Automatic) -> dict[str, Any]:
    own = automatic.buckets
    return {
        "tokens": list(own.tokens),
        "prefill_tokens": list(own.prefill_tokens),
        "decode_rows": list(own.decode_rows),
        "contexts": list(own.contexts),
        "program_count": automatic.program_count,
        "prefill_padding": automatic.prefill_padding,
        "decode_padding": automatic.decode_padding,
    }


def _collective_fields(found: Collective) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "count": found.count,
        "ranks": found.ranks,
        "array_bytes": found.bytes,
        "sent_bytes": found.sent_bytes,
    }


def _floor_fields(entry: Estimate) -> dict[str, Any]:
    ms = entry.floor.seconds * 1e3
    return {"rows": entry.rows, "tokens": entry.tokens, "ms": ms, "bound": entry.floor.bound}


def _overview(plans: Sequence[Plan], seqs: int) -> str:
    rows = [["instance", "fits", "TP", "GiB a core", "of", f"longest x {seqs}", "decode ms", "why"]]
    for plan in plans:
        rows.append(
            [
                plan.name,
                "yes" if plan.memory.fits else "no",
                str(plan.tensor_parallel),
                f"{plan.memory.total_bytes / GIB:.1f}",
                f"{plan.memory.limit_bytes / GIB:.0f}",
                f"{plan.largest[seqs]}",
                f"{plan.decode[0].floor.seconds * 1e3:.1f}",
                plan.memory.problems[0].split(":")[0] if plan.memory.problems else "",
            ]
        )
    order = "price" if any(plan.price is not None for plan in plans) else "total HBM"
    return f"{_table(rows, left=(0, 7))}\nThose that fit first, by {order}."


def _single(plan: Plan) -> str:
    memory = plan.memory
    unit = "this machine" if plan.instance is None else "one logical core"
    rows = [[f"memory of {unit}", "GiB", "formula"]]
    rows += [[row.kind, f"{row.bytes / GIB:.3f}", row.formula] for row in memory.rows]
    rows.append(["total", f"{memory.total_bytes / GIB:.3f}", f"of {memory.limit_bytes / GIB:.2f}"])
    verdict = "fits" if memory.fits else "does not fit: " + "; ".join(memory.problems)
    parts = [f"{_place(plan)}: {verdict}", _table(rows, left=(0, 2))]
    if plan.host_adapters is not None:
        host = plan.host_adapters
        parts.append(f"{host.kind}, of each engine: {host.bytes / GIB:.3f} GiB, {host.formula}")
    if plan.degrees:
        parts.append(_degrees(plan))
    lengths = ", ".join(f"{length} x {seqs}" for seqs, length in plan.largest.items())
    parts.append(f"largest max_model_len x max_num_seqs, all at full length at once: {lengths}")
    parts += [_buckets(plan), _floors(plan)]
    if plan.traded:
        parts.append(_traded(plan))
    return "\n\n".join(parts)


def _place(plan: Plan) -> str:
    axes, found = plan.axes, [f"TP {plan.tensor_parallel}"]
    for name, size in (("PP", axes.stages), ("DP", axes.replicas)):
        found += [f"{name} {size}"] if size > 1 else []
    name = "this machine" if plan.instance is None else plan.name
    return ", ".join([f"{axes.hosts} x {name}" if axes.hosts > 1 else name, *found])


def _traded(plan: Plan) -> str:
    """MiB a core sends in a step, by program and kind."""
    rows = [["collectives: MiB sent", *(kind.replace("_", "-") for kind in KINDS), "all", "calls"]]
    for entry in plan.traded:
        sent = [sum(c.sent_bytes for c in entry.collectives if c.kind == kind) for kind in KINDS]
        calls = sum(c.count for c in entry.collectives)
        cells = [f"{size / 2**20:.3f}" if size else "" for size in (*sent, sum(sent))]
        rows.append([entry.name, *cells, str(calls)])
    return f"{_table(rows, left=(0,))}\n{COLLECTIVE_FORMULA}"


def _degrees(plan: Plan) -> str:
    rows = [["TP", "legal", "fits", "GiB a core", "decode ms", "why, or what it costs"]]
    for entry in plan.degrees:
        size = str(entry.degree.size)
        if not entry.degree.is_legal:
            rows.append([size, "no", "", "", "", entry.degree.problem])
            continue
        used, ms = entry.memory.total_bytes / GIB, entry.decode.seconds * 1e3
        fits = "yes" if entry.memory.fits else "no"
        rows.append([size, "yes", fits, f"{used:.2f}", f"{ms:.2f}", entry.degree.note])
    return _table(rows, left=(5,))


def _buckets(plan: Plan) -> str:
    own, found = plan.automatic, plan.automatic.buckets
    axes = [
        ("tokens", found.tokens),
        ("prefill tokens", found.prefill_tokens),
        ("decode rows", found.decode_rows),
        ("contexts", found.contexts),
    ]
    lines = [f"{name}: {', '.join(map(str, sizes))}" for name, sizes in axes if sizes]
    lines.append(
        f"{own.program_count} programs; expected padding {own.prefill_padding:.0%} of prefill, "
        f"{own.decode_padding:.0%} of decode"
    )
    if plan.compile is not None:
        minutes, host = math.ceil(plan.compile.seconds / 60), plan.compile.host_bytes / GIB
        lines.append(
            f"compile: about {minutes} min with {plan.compile.workers} compilers at once, "
            f"{host:.0f} GiB of host memory ({FORMULA})"
        )
    return "\n".join(["buckets", *(f"  {line}" for line in lines)])


def _floors(plan: Plan) -> str:
    rows = [["roofline", *FLOOR_HEAD]]
    for name, entries in (("decode", plan.decode), ("prefill", plan.prefill)):
        for entry in entries:
            seconds = entry.floor.seconds
            tokens = entry.rows if name == "decode" else entry.tokens
            each = [str(entry.rows), str(entry.tokens), f"{seconds * 1e3:.2f}"]
            rows.append([name, *each, f"{tokens / seconds:,.0f}", entry.floor.bound])
    speed = (
        f"{plan.core.bandwidth_bytes_s / 1e9:,.0f} GB/s, {plan.core.flops_s / 1e12:,.2f} TFLOP/s"
    )
    notes = [
        f"decode: {DECODE_FORMULA}",
        f"prefill: {PREFILL_FORMULA}",
        f"with {speed} a core. {PUBLISHED}" if plan.instance else f"with {speed} here",
        UNPROVEN if plan.instance else MEASURED,
    ]
    return "\n".join([_table(rows, left=(0, 5)), *notes])


def _table(rows: list[list[str]], *, left: tuple[int, ...]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
