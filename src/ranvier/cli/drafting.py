"""From speculative_config to an opened drafter: its checkpoint beside the target's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ranvier.build.eagle.open import open_eagle
from ranvier.cli.options.settings import Options, say
from ranvier.cli.options.speculative import Speculative, read_speculative
from ranvier.cli.quantisation import DENSE, quantisation_of, with_scheme
from ranvier.core.buckets import BucketSet
from ranvier.core.errors import ConfigError
from ranvier.models.draft import DraftSpec, check_pair
from ranvier.models.spec import DecoderSpec
from ranvier.models.table import resolve
from ranvier.weights.checkpoint import Checkpoint, open_checkpoint
from ranvier.weights.folder import ModelFolder

__all__ = ["Drafting", "open_drafting", "with_drafts"]

Locate = Callable[[str, str | None, str | None], Path]


@dataclass(frozen=True)
class Drafting:
    """A drafter on the device: what builds, keys and memory plans need of it."""

    checkpoint: Checkpoint
    spec: DraftSpec
    options: Options
    """Those of the target, with the draft's own quantization."""

    def quantization(self, dtype: str) -> str:
        """How its weights are kept."""
        return DENSE if self.spec.eagle else quantisation_of(self.options, self.checkpoint, dtype)


def open_drafting(
    options: Options, target: Checkpoint, spec: DecoderSpec, locate: Locate, memo: Path
) -> Drafting | None:
    """The drafter that the options name; None for none and for guesses on the host.

    Raises ConfigError, and CheckpointError, naming both sides of a pair that does not fit.
    """
    asked = read_speculative(options.speculative_config)
    if asked is None or asked.is_on_host:
        return None
    if options.pipeline_parallel_size > 1:
        raise ConfigError(
            f"speculative_config with pipeline_parallel_size={options.pipeline_parallel_size}: a "
            "drafter on the device is not cut over stages.",
            hint="The method ngram guesses on the host and works with any number; tensor_parallel_"
            "size cuts drafters too.",
        )
    assert asked.model is not None
    path = locate(asked.model, asked.revision, options.download_dir)
    own = dataclasses.replace(options, quantization=asked.quantization)
    if _is_head(asked, path):
        if asked.quantization is not None:
            raise ConfigError("speculative_config: heads are not quantised; give no quantization.")
        assert asked.method != "draft_model" and asked.method != "ngram"
        head, draft = open_eagle(path, target, spec, asked.method)
        return Drafting(head, draft, own)
    checkpoint = with_scheme(own, open_checkpoint(path, memo))
    decoder = resolve(checkpoint.config)
    check_pair(spec, decoder)
    return Drafting(checkpoint, DraftSpec("draft_model", decoder), own)


def with_drafts(buckets: BucketSet, asked: Speculative | None) -> BucketSet:
    """The buckets with the counts that steps verify, and that their programs draft."""
    if asked is None:
        return buckets
    counts: tuple[int, ...] = ()
    if not buckets.tokens:
        counts = (asked.count,)
    elif not asked.is_on_host:
        counts = tuple(sorted({1, min(2, asked.count), asked.count}))
    return dataclasses.replace(
        buckets, drafts=counts, lookahead=asked.count, has_drafter=not asked.is_on_host
    )


def _is_head(asked: Speculative, path: Path) -> bool:
    """Whether a checkpoint is a head: said by the method, else by its architecture."""
    if asked.method is not None:
        return asked.method != "draft_model"
    if not path.is_dir():
        return False
    config = ModelFolder(path).fields("config.json", is_required=True)
    names = [*config.get("architectures", ()), config.get("model_type", "")]
    is_head = "draft_vocab_size" in config or any("eagle" in str(n).lower() for n in names)
    say(f"speculative_config: {path.name} is {'a head' if is_head else 'a draft model'}")
    return is_head
