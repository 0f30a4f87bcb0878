"""What an answer tells of its own request: times and guesses, by vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.server.metrics import SequenceTimes
from ranvier.server.options import ServerOptions
from ranvier.server.wire.answers import RequestMetrics
from ranvier.speculate.tally import Level, Tally

__all__ = ["Telling"]


@dataclass(frozen=True, kw_only=True)
class Telling:
    """What answers of one sequence tell; `guessed_max`: tokens guessed a step, 0: none ever."""

    with_times: bool = False
    guesses: Level = "none"
    guessed_max: int = 0

    @classmethod
    def of(cls, options: ServerOptions, guessed_max: int) -> Telling:
        """What a server was asked to tell."""
        return cls(
            with_times=options.enable_per_request_metrics,
            guesses=options.per_request_spec_decode_metrics,
            guessed_max=guessed_max,
        )

    @property
    def is_silent(self) -> bool:
        return not self.with_times and self.guesses == "none"

    def metrics(self, times: SequenceTimes, tally: Tally) -> RequestMetrics:
        """Of a sequence as far as it has come."""
        found = RequestMetrics()
        if self.with_times:
            _time(found, times)
        if self.guesses != "none":
            figures = tally.metrics(self.guessed_max) if self.guessed_max else None
            found.speculative_decoding = figures.to_dict(self.guesses) if figures else None
        return found


def _time(found: RequestMetrics, times: SequenceTimes) -> None:
    """The times of a sequence; null is what it has not reached, or is no mean of anything."""
    first_s, count, scheduled_s = times.first_s, times.generated, times.arrival_s + times.queue_s
    is_begun, is_told = first_s is not None, count > 1
    start_s = first_s or 0.0
    whole_s = times.last_s - scheduled_s
    found.queue_time_ms = 1e3 * times.queue_s if is_begun else None
    found.time_to_first_token_ms = 1e3 * (start_s - scheduled_s) if is_begun else None
    found.generation_time_ms = 1e3 * (times.last_s - start_s) if is_begun else None
    found.mean_itl_ms = 1e3 * (times.last_s - start_s) / (count - 1) if is_told else None
    found.tokens_per_second = count / whole_s if is_begun and whole_s > 0 else None
