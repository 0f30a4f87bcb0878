"""Pictures of a plan: memory of each instance against its limit, and the padding of its buckets.

matplotlib is an extra, imported here alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ranvier.build.plan import Plan, Wish
from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.memory import MemoryReport

__all__ = ["draw", "require_matplotlib"]

GIB = 2**30
SHARE_MAX = 1.6
LIMIT = "#b00020"
COLOURS = {
    "weights": "#3b6fb6", "kv cache": "#e08a2e", "draft": "#7d5ba6", "lora": "#b5527a",
    "activations": "#4f9d69", "programs": "#8c8c8c", "runtime": "#c9c9c9",
}  # fmt: skip


def require_matplotlib() -> Any:
    """matplotlib's pyplot without a display. Raises ConfigError that says what to install."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError(
            "--plot needs matplotlib, which is not installed.",
            hint="pip install 'ranvier[bench]'",
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(wish: Wish, plans: Sequence[Plan], path: Path) -> None:
    """Write the picture; the format follows the name. Raises ConfigError when it can't."""
    pyplot = require_matplotlib()
    bars = _bars(plans)
    ladders = _ladders(plans[0])
    figure = pyplot.figure(figsize=(10, 4.6 + 0.32 * len(bars)), layout="constrained")
    grid = figure.add_gridspec(2, len(ladders), height_ratios=[1.0 + 0.32 * len(bars), 2.6])
    own = wish.sizes
    figure.suptitle(
        f"{wish.model.name} in {own.dtype}: max_model_len {own.max_model_len}, "
        f"max_num_seqs {own.max_num_seqs}",
        fontsize=12,
    )
    what = "this process" if plans[0].instance is None else "one logical core"
    _memory(figure.add_subplot(grid[0, :]), bars, what)
    for column, ladder in enumerate(ladders):
        _padding(figure.add_subplot(grid[1, column]), *ladder)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be written: {error}.") from error
    finally:
        pyplot.close(figure)


def _bars(plans: Sequence[Plan]) -> list[tuple[str, MemoryReport]]:
    """Many instances: one bar each; a single one: one bar for each legal degree."""
    if len(plans) > 1:
        return [(f"{p.name}, TP {p.tensor_parallel}", p.memory) for p in plans]
    (plan,) = plans
    legal = [(f"TP {d.degree.size}", d.memory) for d in plan.degrees if d.degree.is_legal]
    return legal or [("this machine", plan.memory)]


def _memory(axes: Any, bars: Sequence[tuple[str, MemoryReport]], what: str) -> None:
    """Bars stacked by part, as a share of the limit; longer ones are cut and say so."""
    names, left = [name for name, _ in bars], np.zeros(len(bars))
    for part, colour in COLOURS.items():
        sizes = np.asarray([m.bytes_of(part) / m.limit_bytes for _, m in bars])
        if sizes.any():
            axes.barh(names, sizes, left=left, color=colour, label=part, height=0.65)
            left += sizes
    right = max(1.1, min(left.max() * 1.05, SHARE_MAX))
    for row, (_, memory) in enumerate(bars):
        used, limit = memory.total_bytes / GIB, memory.limit_bytes / GIB
        does_fit = memory.total_bytes <= memory.limit_bytes
        text = f"{used:.1f} of {limit:.0f} GiB{'  (cut)' if left[row] > right else ''}"
        axes.text(
            1.01, row, text, va="center", fontsize=9, color="#222222" if does_fit else LIMIT,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    axes.axvline(1.0, color=LIMIT, linewidth=1.2, linestyle="--", label="limit")
    axes.set_xlim(0, right)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel(f"memory of {what}, share of its limit")
    axes.invert_yaxis()
    axes.legend(fontsize=8, ncols=8, loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _ladders(plan: Plan) -> list[tuple[str, tuple[int, ...], str]]:
    """(title, sizes, colour) of each axis that has buckets."""
    own = plan.automatic
    found = own.buckets
    table = [
        ("step tokens", found.tokens, "#4f9d69"),
        (f"prefill tokens ({own.prefill_padding:.0%} padding)", found.prefill_tokens, "#3b6fb6"),
        (f"decode rows ({own.decode_padding:.0%} padding)", found.decode_rows, "#7d5ba6"),
        ("context", found.contexts, "#e08a2e"),
    ]
    return [entry for entry in table if entry[1]]


def _padding(axes: Any, title: str, sizes: tuple[int, ...], colour: str) -> None:
    """What runs for each size asked for; the area above the diagonal is padding."""
    ladder = np.asarray(sizes)
    asked = np.unique(np.linspace(1, ladder[-1], 2000).round())
    runs = ladder[np.searchsorted(ladder, asked)]
    axes.fill_between(asked, asked, runs, color=colour, alpha=0.2, linewidth=0, label="padding")
    axes.plot(asked, runs, color=colour, linewidth=1.6)
    axes.plot(asked, asked, color="#999999", linewidth=1, linestyle=":")
    axes.set_xticks(_apart(sizes), [str(size) for size in _apart(sizes)], fontsize=8)
    axes.set_yticks(_apart(sizes), [str(size) for size in _apart(sizes)], fontsize=8)
    axes.set_xlabel("asked for", fontsize=9)
    axes.set_ylabel("runs as", fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _apart(sizes: tuple[int, ...]) -> list[int]:
    """Sizes from the largest down that lie far enough apart to be read as ticks."""
    kept = [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if kept[-1] - size >= sizes[-1] * 0.09:
            kept.append(size)
    return kept[::-1]
