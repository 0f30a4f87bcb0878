"""The accuracy report as text and as a JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ranvier.targets.logit_match import LogitMatch, TokenMatch

__all__ = ["PromptResult", "document", "text"]


@dataclass(frozen=True)
class PromptResult:
    """What was compared for one prompt; None: not asked for."""

    tokens: TokenMatch | None
    logits: LogitMatch | None

    @property
    def passed(self) -> bool:
        checks = [check.passed for check in (self.tokens, self.logits) if check is not None]
        return all(checks)


def document(head: dict[str, Any], results: Sequence[PromptResult]) -> dict[str, Any]:
    """`passed` for all, then every prompt."""
    prompts = [_fields(result) for result in results]
    return {**head, "passed": all(result.passed for result in results), "prompts": prompts}


def text(head: dict[str, Any], results: Sequence[PromptResult]) -> str:
    """A few lines for each prompt, the verdict last."""
    lines = [f"{head['model']} in {head['dtype']} against {head['reference']} ({head['made_by']})"]
    for i, result in enumerate(results):
        if result.tokens is not None:
            lines.append(f"prompt {i}: {_tokens(result.tokens)}")
        if result.logits is not None:
            lines += [f"prompt {i}: {line}" for line in _logits(result.logits)]
    passed = sum(result.passed for result in results)
    verdict = "passed" if passed == len(results) else "FAILED"
    lines.append(f"{verdict}: {passed} of {len(results)} prompts, mode {head['mode']}")
    return "\n".join(lines)


def _fields(result: PromptResult) -> dict[str, Any]:
    fields: dict[str, Any] = {"passed": result.passed}
    if result.tokens is not None:
        first = result.tokens.first
        fields["tokens"] = {
            "passed": result.tokens.passed,
            "matched": result.tokens.matched,
            "count": result.tokens.count,
            "first_divergence": first
            and {"position": first[0], "expected": first[1], "found": first[2]},
        }
    if result.logits is not None:
        fields["logits"] = _logit_fields(result.logits)
    return fields


def _logit_fields(match: LogitMatch) -> dict[str, Any]:
    return {
        "passed": match.passed,
        "first_divergence": match.first_divergence,
        "divergences": [
            {
                "position": d.position,
                "expected": d.expected,
                "found": d.found,
                "difference": d.difference,
                "allowed": d.is_allowed,
            }
            for d in match.divergences
        ],
        "tolerances": [
            {
                "name": r.tolerance.name,
                "atol": r.tolerance.atol,
                "rtol": r.tolerance.rtol,
                "passed": r.passed,
                "error": r.error,
                "allowed": r.allowed,
                "position": r.position,
            }
            for r in match.results
        ],
        "error_by_position": list(match.errors),
    }


def _tokens(match: TokenMatch) -> str:
    if match.first is None:
        return f"tokens: all {match.count} equal"
    position, expected, found = match.first
    got = f"{found}" if found >= 0 else "nothing"
    return (
        f"tokens: {match.matched} of {match.count} equal; first divergence at position {position}: "
        f"expected {expected}, found {got}"
    )


def _logits(match: LogitMatch) -> list[str]:
    lines = []
    for r in match.results:
        mark = "ok" if r.passed else "BEYOND"
        lines.append(
            f"logits {r.tolerance.name:<8} largest error {r.error:.3g} of {r.allowed:.3g} allowed, "
            f"at position {r.position}: {mark}"
        )
    for d in match.divergences[:3]:
        mark = "allowed" if d.is_allowed else "NOT ALLOWED"
        lines.append(
            f"divergence at position {d.position}: expected {d.expected}, found {d.found}, "
            f"{d.difference:.3g} apart in the reference: {mark}"
        )
    return lines
