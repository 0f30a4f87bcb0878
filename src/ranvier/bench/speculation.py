"""What guessing yielded in a run: vLLM's figures, from counters before and after it, explained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ranvier.client.http import send
from ranvier.client.openai import Server
from ranvier.core.request import EngineStats

__all__ = [
    "DraftCounts", "counts_of_server", "counts_of_stats", "read_counts", "report_lines",
    "speculation_figures",
]  # fmt: skip

PREFIX = "vllm:spec_decode_num_"
SAMPLE = re.compile(rf"^{PREFIX}(\w+?)_total(?:\{{(.*)\}})? (\S+)$", re.MULTILINE)
POSITION = re.compile(r'position="(\d+)"')
DEFINITION = (
    "Acceptance length: tokens that a verification yields on average, the target's own one",
    "included: 1 + accepted / drafts, where a draft is one sequence's guesses in one step.",
    "Acceptance at position i: share of all drafts whose guess i stood, and all before it.",
    "Steps without guesses (the policy's choice) are in neither.",
)


@dataclass(frozen=True)
class DraftCounts:
    """Counters of guessing since a start."""

    drafts: int = 0
    guessed: int = 0
    accepted: int = 0
    per_position: tuple[int, ...] = ()

    def since(self, before: DraftCounts) -> DraftCounts:
        """What came to these counts after `before`."""
        earlier = (*before.per_position, *[0] * len(self.per_position))
        pairs = zip(self.per_position, earlier, strict=False)
        return DraftCounts(
            self.drafts - before.drafts, self.guessed - before.guessed,
            self.accepted - before.accepted, tuple(a - b for a, b in pairs),
        )  # fmt: skip


def counts_of_stats(stats: EngineStats) -> DraftCounts:
    """Of an engine in this process."""
    return DraftCounts(
        stats.drafts, stats.draft_tokens, stats.accepted_tokens,
        tuple(stats.accepted_per_position),
    )  # fmt: skip


async def counts_of_server(server: Server) -> DraftCounts:
    """Of a running server, by its /metrics; zeros where it has none."""
    async with send(server.address, "GET", "/metrics") as answer:
        text = (await answer.body()).decode(errors="replace") if answer.status == 200 else ""
    return read_counts(text)


def read_counts(text: str) -> DraftCounts:
    """Of a Prometheus page; engines of one server are added up."""
    found: dict[str, int] = {}
    positions: dict[int, int] = {}
    for name, labels, value in SAMPLE.findall(text):
        place = POSITION.search(labels)
        if name == "accepted_tokens_per_pos" and place is not None:
            positions[int(place[1])] = positions.get(int(place[1]), 0) + int(float(value))
        else:
            found[name] = found.get(name, 0) + int(float(value))
    return DraftCounts(
        found.get("drafts", 0), found.get("draft_tokens", 0), found.get("accepted_tokens", 0),
        tuple(positions[i] for i in sorted(positions)),
    )  # fmt: skip


def speculation_figures(counts: DraftCounts) -> dict[str, Any]:
    """The keys of vLLM's results; empty where nothing was guessed."""
    if not counts.drafts:
        return {}
    return {
        "spec_decode_acceptance_rate": 100 * counts.accepted / max(counts.guessed, 1),
        "spec_decode_acceptance_length": 1 + counts.accepted / counts.drafts,
        "spec_decode_num_drafts": counts.drafts,
        "spec_decode_draft_tokens": counts.guessed,
        "spec_decode_accepted_tokens": counts.accepted,
        "spec_decode_per_position_acceptance_rates": [
            count / counts.drafts for count in counts.per_position
        ],
    }


def report_lines(counts: DraftCounts, width: int = 50) -> list[str]:
    """The block of `--spec-report`, with the definitions of its figures."""
    found = speculation_figures(counts)
    if not found:
        return ["Speculative decoding: nothing was guessed."]
    rows = [
        ("Acceptance rate (%):", f"{found['spec_decode_acceptance_rate']:.2f}"),
        ("Acceptance length:", f"{found['spec_decode_acceptance_length']:.2f}"),
        ("Drafts:", str(counts.drafts)),
        ("Draft tokens:", str(counts.guessed)),
        ("Accepted tokens:", str(counts.accepted)),
    ]
    for place, rate in enumerate(found["spec_decode_per_position_acceptance_rates"]):
        rows.append((f"Acceptance at position {place} (%):", f"{100 * rate:.2f}"))
    lines = [f"{name:<40} {value:<10}" for name, value in rows]
    return ["Speculative Decoding".center(width, "-"), *lines, *DEFINITION]
