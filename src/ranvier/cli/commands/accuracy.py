"""`ranvier accuracy MODEL --reference FILE`: are tokens and logits those of a reference?

Modes and tolerances are NxD Inference's. The reference is made in f32 on the plain kernels with
--make-reference, or written by another engine in the same form (docs/accuracy.md).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranvier.cli.options.flags import add_engine_arguments, engine_options
from ranvier.core.errors import ConfigError

if TYPE_CHECKING:
    from ranvier.cli.options.settings import Options
    from ranvier.cli.reports.accuracy import PromptResult
    from ranvier.targets.reference_file import Reference

__all__ = ["add_arguments", "run"]

MODES = ("token-matching", "logit-matching", "both", "draft-logit-matching")
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time there was a river that",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    group = parser.add_argument_group("accuracy options")
    group.add_argument("--reference", metavar="FILE", help="compare with this file")
    group.add_argument("--make-reference", metavar="FILE", help="write a reference in f32")
    text = "what to compare [both]"
    group.add_argument("--mode", choices=MODES, default="both", help=text)
    text = "a prompt of a new reference, again for more"
    group.add_argument("--prompt", action="append", metavar="TEXT", help=text)
    text = "one as token ids: 1,2,3"
    group.add_argument("--prompt-ids", action="append", metavar="IDS", help=text)
    text = "tokens after each prompt of a new reference [32]"
    group.add_argument("--tokens", type=int, default=32, help=text)
    text = 'JSON {"5": [atol, rtol], "all": ...} in place of NxD Inference\'s'
    group.add_argument("--tolerance-map", metavar="JSON", help=text)
    text = "how near a different token's logit may be [0.001]"
    group.add_argument("--divergence-difference-tol", type=float, default=0.001, help=text)
    group.add_argument("--json", action="store_true", help="one JSON document")


def run(given: argparse.Namespace, start_s: float) -> int | None:
    """1 when something is beyond its tolerance."""
    del start_s
    if not given.reference and not given.make_reference:
        raise ConfigError("Neither --reference nor --make-reference is given.")
    options = engine_options(given)
    if given.make_reference:
        _make(given, options, Path(given.make_reference))
    if not given.reference:
        return None
    return _compare(given, options, Path(given.reference))


def _make(given: argparse.Namespace, options: Options, path: Path) -> None:
    from ranvier.cli.options.settings import say
    from ranvier.cli.wire import open_model, set_flags
    from ranvier.models.table import resolve
    from ranvier.targets.reference_file import Reference, ReferencePrompt, save_reference
    from ranvier.version import __version__

    if not 1 <= given.tokens <= 4096:
        raise ConfigError(f"tokens must be 1 to 4096, is {given.tokens}.")
    checkpoint = open_model(options)
    spec = resolve(checkpoint.config)
    prompts = _prompts(given, checkpoint, spec)
    longest = max(map(len, prompts)) + given.tokens
    if longest > spec.model_len_max:
        raise ConfigError(f"{longest} tokens exceed the model's {spec.model_len_max}.")
    set_flags()
    from ranvier.build.logits import LogitsModel

    model = LogitsModel(checkpoint, spec, dtype="float32", kernels="reference", tokens_max=longest)
    made = []
    for ids in prompts:
        tokens, logits = model.greedy(ids, given.tokens)
        made.append(ReferencePrompt(tuple(ids), tuple(tokens), logits))
    by = f"ranvier {__version__}, float32, plain kernels"
    save_reference(path, Reference(Path(options.model).name, by, tuple(made)))
    say(f"wrote {path}: {len(made)} prompts x {given.tokens} tokens")


def _prompts(given: argparse.Namespace, checkpoint: Any, spec: Any) -> list[list[int]]:
    """Token ids of every prompt named; of the built-in ones when none is."""
    from ranvier.text.codec import TextCodec

    found = [_ids(text, spec.vocab_size) for text in given.prompt_ids or ()]
    texts = given.prompt or (() if found else PROMPTS)
    if texts:
        codec = TextCodec(
            checkpoint.tokenizer_json(), checkpoint.tokenizer_config, checkpoint.generation_config,
            vocab_size=spec.vocab_size, model_len_max=spec.model_len_max,
        )  # fmt: skip
        found += [codec.encode(text) for text in texts]
    if not all(found):
        raise ConfigError("A prompt has no tokens.")
    return found


def _ids(text: str, vocab_size: int) -> list[int]:
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"prompt-ids {text!r}: give numbers such as 1,2,3.") from None
    if not all(0 <= i < vocab_size for i in ids):
        raise ConfigError(f"prompt-ids {text!r}: ids must be 0 to {vocab_size - 1}.")
    return ids


def _compare(given: argparse.Namespace, options: Options, path: Path) -> int | None:
    from ranvier.cli.reports import accuracy as report
    from ranvier.cli.wire import open_model, plan
    from ranvier.targets.reference_file import load_reference

    reference = load_reference(path)
    checkpoint = open_model(options)
    planned = plan(options, checkpoint)
    if reference.vocab_size != planned.spec.vocab_size:
        raise ConfigError(
            f"{path} was made for a vocabulary of {reference.vocab_size} tokens, the model has "
            f"{planned.spec.vocab_size}."
        )
    longest = max(len(p.prompt_ids) + len(p.token_ids) for p in reference.prompts)
    if longest > planned.sizes.max_model_len:
        raise ConfigError(
            f"{path} needs {longest} tokens, max_model_len is {planned.sizes.max_model_len}.",
            hint=f"Give --max-model-len {longest}.",
        )
    head = {
        "model": Path(options.model).name,
        "dtype": planned.sizes.dtype,
        "kernels": planned.sizes.kernels,
        "reference": str(path),
        "made_by": reference.made_by,
        "mode": given.mode,
    }
    results = _results(given, options, reference, checkpoint, planned)
    if given.json:
        print(json.dumps(report.document(head, results), indent=1))
    else:
        print(report.text(head, results))
    return None if all(result.passed for result in results) else 1


def _results(
    given: argparse.Namespace, options: Options, reference: Reference, checkpoint: Any, planned: Any
) -> list[PromptResult]:
    from ranvier.cli.reports.accuracy import PromptResult
    from ranvier.targets.logit_match import match_tokens

    count = len(reference.prompts)
    tokens: list[Any] = [None] * count
    logits: list[Any] = [None] * count
    if given.mode in ("token-matching", "both"):
        found = _served_tokens(options, reference)
        pairs = zip(reference.prompts, found, strict=True)
        tokens = [match_tokens(prompt.token_ids, got) for prompt, got in pairs]
    if given.mode != "token-matching":
        logits = _matched_logits(given, reference, checkpoint, planned)
    return [PromptResult(t, x) for t, x in zip(tokens, logits, strict=True)]


def _served_tokens(options: Options, reference: Reference) -> list[list[int]]:
    """Greedy tokens as serving gives them: the artifact's programs, all prompts together."""
    from ranvier.cli.adapters import load_modules
    from ranvier.cli.wire import open_engine
    from ranvier.core.sampling import SamplingParams
    from ranvier.offline.llm import Offline

    engine, codec = open_engine(options, [])
    llm = Offline(engine, codec, seed=options.seed)
    load_modules(llm, options)
    outputs = llm.generate(
        [{"prompt_token_ids": list(p.prompt_ids)} for p in reference.prompts],
        [
            SamplingParams(temperature=0, max_tokens=len(p.token_ids), ignore_eos=True)
            for p in reference.prompts
        ],
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


def _matched_logits(
    given: argparse.Namespace, reference: Reference, checkpoint: Any, planned: Any
) -> list[Any]:
    from ranvier.build.logits import LogitsModel
    from ranvier.targets.logit_match import (
        DRAFT_TOLERANCES,
        TOLERANCES,
        Tolerance,
        match_logits,
        parse_tolerances,
    )

    is_draft = given.mode == "draft-logit-matching"
    tolerances: Sequence[Tolerance] = DRAFT_TOLERANCES if is_draft else TOLERANCES
    if given.tolerance_map:
        tolerances = parse_tolerances(_json(given.tolerance_map))
    longest = max(len(p.prompt_ids) + len(p.token_ids) for p in reference.prompts)
    sizes = planned.sizes
    model = LogitsModel(
        checkpoint, planned.spec, dtype=sizes.dtype, kernels=sizes.kernels, tokens_max=longest
    )
    found = []
    for prompt in reference.prompts:
        ids = [*prompt.prompt_ids, *prompt.token_ids[:-1]]
        ours = model.run(ids)[len(prompt.prompt_ids) - 1 :]
        found.append(
            match_logits(
                prompt.logits_NV, ours, tolerances=tolerances, is_draft=is_draft,
                divergence_tolerance=given.divergence_difference_tol,
            )
        )  # fmt: skip
    return found


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"tolerance-map is not JSON: {error}.") from error
