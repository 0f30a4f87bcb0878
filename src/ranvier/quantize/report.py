"""What a quantised model weighs and loses, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ranvier.quantize.measure import Divergence

__all__ = ["Report"]

WORST = 5


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of one run; `errors`: relative squared error of each module's weights."""

    model: str
    scheme: str
    calibration: str | None
    evaluation: str | None
    bytes_original: int
    bytes_quantised: int
    seconds: float
    errors: dict[str, float]
    divergence: Divergence | None

    def fields(self) -> dict[str, Any]:
        """As JSON holds it."""
        found = {key: value for key, value in vars(self).items() if key != "divergence"}
        found["layers"] = self.layers()
        found["divergence"] = None
        if self.divergence is not None:
            found["divergence"] = {
                **asdict(self.divergence),
                "perplexity_increase": self.divergence.perplexity_increase,
            }
        return found

    def layers(self) -> dict[str, float]:
        """The mean error of the modules of each layer."""
        parts: dict[str, list[float]] = {}
        for module, error in self.errors.items():
            pieces = module.split(".")
            at = pieces.index("layers") + 2 if "layers" in pieces else len(pieces)
            parts.setdefault(".".join(pieces[:at]), []).append(error)
        return {layer: sum(errors) / len(errors) for layer, errors in parts.items()}

    def lines(self) -> list[str]:
        """As a terminal shows it."""
        ratio = self.bytes_quantised / self.bytes_original
        how = f"calibrated on {self.calibration}" if self.calibration else "rounded to nearest"
        found = [
            f"{self.model} in {self.scheme}, {how}, in {self.seconds:.0f} s",
            f"size         {self.bytes_original / 1e6:,.1f} MB in 16 bits, now "
            f"{self.bytes_quantised / 1e6:,.1f} MB ({ratio:.0%})",
        ]
        gone = self.divergence
        if gone is not None:
            found += [
                f"text         {self.evaluation}, {gone.tokens} tokens",
                f"perplexity   {gone.perplexity_original:.3f} before, "
                f"{gone.perplexity_quantised:.3f} after ({gone.perplexity_increase:+.2%})",
                f"KL           {gone.kl_mean:.5f} nats a token",
                f"same top     {gone.same_top_share:.1%} of the tokens",
            ]
        worst = sorted(self.errors.items(), key=lambda item: -item[1])[:WORST]
        found.append("worst weights, by relative squared error")
        found += [f"  {error:.6f}  {module}" for module, error in worst]
        return found
