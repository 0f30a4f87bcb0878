"""A picture of a run: latencies by percentile, tokens and open requests over time.

matplotlib comes with the extra `bench` and is imported only here, when a picture is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ranvier.bench.load import Record
from ranvier.bench.metrics import per_second
from ranvier.core.errors import ConfigError

__all__ = ["check_plot", "draw"]

SHARES = np.linspace(0, 100, 201)


def check_plot(path: Path) -> None:
    """Refuse before the run what could not be drawn after it. Raises ConfigError."""
    if path.suffix != ".png":
        raise ConfigError(f"plot: {path} must end in .png.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"plot: the folder of {path} does not exist.")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "plot needs matplotlib.", hint="Install it: pip install 'ranvier[bench]'."
        ) from None


def draw(path: Path, records: list[Record], title: str) -> None:
    """Write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whole = [record for record in records if not record.error]
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    left, right = figure.subplots(2, 2)
    _percentiles(left[0], "Time to first token (ms)", [r.ttft_s for r in whole])
    _percentiles(left[1], "Inter-token latency (ms)", [g for r in whole for g in r.itls_s])
    _over_time(right[0], whole)
    _arrivals(right[1], whole)
    figure.savefig(path, dpi=110)


def _percentiles(axes: Any, label: str, values_s: list[float]) -> None:
    """One curve: which share of the values is at most so large."""
    values = np.percentile(np.asarray(values_s or [0.0]) * 1e3, SHARES)
    axes.plot(SHARES, values, color="tab:blue")
    for share in (50, 90, 99):
        value = float(np.interp(share, SHARES, values))
        axes.axvline(share, color="0.85", linewidth=1, zorder=0)
        axes.annotate(
            f"p{share} {value:.1f}", (share, value), textcoords="offset points", xytext=(-4, 8),
            ha="right", fontsize=9,
        )  # fmt: skip
        axes.plot([share], [value], "o", color="tab:blue", markersize=4)
    axes.set(xlabel="percentile", ylabel=label, xlim=(0, 101))
    axes.set_ylim(bottom=0, top=float(values[-1]) * 1.15 or 1)


def _over_time(axes: Any, whole: list[Record]) -> None:
    pieces, together = per_second(whole)
    seconds = np.arange(len(pieces)) + 0.5
    axes.bar(seconds, pieces, width=1.0, color="tab:blue", alpha=0.7, label="tokens per second")
    axes.set(xlabel="time (s)", ylabel="output tokens per second", xlim=(0, len(pieces) or 1))
    axes.set_ylim(bottom=0, top=max(pieces, default=1) * 1.25)
    other = axes.twinx()
    other.step(seconds, together, where="mid", color="tab:orange", label="open requests")
    other.set_ylabel("open requests")
    other.set_ylim(bottom=0, top=max(together, default=1) * 1.25)
    handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    labels = ["tokens per second", "open requests"]
    axes.legend(handles, labels, loc="upper right", fontsize=9, ncols=2)


def _arrivals(axes: Any, whole: list[Record]) -> None:
    """Each request's first token and end against the moment it was due."""
    first = min((record.start_s for record in whole), default=0.0)
    starts = [record.start_s - first for record in whole]
    axes.plot(starts, [r.latency_s for r in whole], "o", ms=4, alpha=0.6, label="end to end")
    axes.plot(starts, [r.ttft_s for r in whole], "o", ms=4, alpha=0.6, label="first token")
    axes.set(xlabel="request was due at (s)", ylabel="seconds from there")
    axes.set_ylim(bottom=0, top=max((r.latency_s for r in whole), default=1.0) * 1.25)
    axes.legend(loc="upper right", fontsize=9, ncols=2)
