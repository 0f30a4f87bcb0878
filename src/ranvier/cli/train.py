"""Wiring of `ranvier train-eagle`: data, features, the course, the head's folder."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ranvier.cli.options.settings import say
from ranvier.cli.wire import LLM, locate, set_flags
from ranvier.core.errors import ConfigError
from ranvier.models.spec import DecoderSpec
from ranvier.models.table import resolve
from ranvier.text.codec import TextCodec
from ranvier.train.examples import Example, append_examples, count_examples, read_data
from ranvier.train.examples import read_examples as read_own
from ranvier.train.generate import Chat, generate_examples
from ranvier.train.start import HeadSize, head_spec, start_params
from ranvier.weights.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from ranvier.models.eagle import EagleSpec
    from ranvier.train.loop import Acceptance, Training, Turn
    from ranvier.train.rows import Rows

__all__ = ["DEFINITION", "train_head"]

PROMPT_USUAL, PROMPT_TOKENS = 32, 320
"""Of a prompt of ours: what a row keeps for it, and what the engine has room for."""
ROWS_MAX, STEP_TOKENS = 32, 256
LABELS = 4
MARK = "the-user-s-words"
"""Found in a rendered template, to know where a user's turn begins."""
DEFINITION = (
    "acceptance by position: the share of places of held-out answers at which the head's first 1, "
    "2, ... guesses are all the answer's own tokens (with --data: what the model itself would say "
    "there); length: 1 + their sum, tokens a step"
)


def train_head(given: argparse.Namespace, start_s: float) -> int | None:
    """Train, write the folder, print what was reached. Raises ConfigError."""
    _check(given)
    set_flags()
    checkpoint = open_checkpoint(locate(given.model, given.revision))
    target = resolve(checkpoint.config)
    taps = _taps(given, target)
    work: Path = given.output.expanduser() / "training"
    work.mkdir(parents=True, exist_ok=True)
    examples = _examples(given, checkpoint, target, work / "examples.jsonl")
    if len(examples) <= given.held_out:
        raise ConfigError(
            f"{len(examples)} examples, of which {given.held_out} are held out.",
            hint="Give more data or a smaller --held-out.",
        )
    width = given.intermediate or -(-target.hidden * 3 // 2 // 32) * 32
    vocab = min(given.draft_vocab, target.vocab_size)
    spec = head_spec(target, HeadSize(given.method, width, vocab, taps))
    rows = _rows(given, checkpoint, target, spec, examples)
    training, head_of, ids = _training(given, checkpoint, target, spec, (rows, examples))
    start = start_params(spec, checkpoint, target, given.seed)
    params = _run(training, start, head_of)
    from ranvier.train.save import save_head

    arrays = {name: np.asarray(value) for name, value in params.items()}
    size = save_head(given.output.expanduser(), spec, arrays, ids, checkpoint.config)
    reached = training.measure(params, head_of)
    seconds = time.perf_counter() - start_s
    print(f"{given.output}: an {spec.method} head of {size / 1e6:.1f} MB; {_told(reached)}")
    print(DEFINITION)
    report = {
        "acceptance_by_position": reached.by_position, "acceptance_length": reached.length,
        "loss": reached.loss, "seconds": round(seconds, 1), "examples": len(examples),
    }  # fmt: skip
    print(json.dumps(report))
    return None


def _check(given: argparse.Namespace) -> None:
    counts = ("epochs", "unroll", "batch_rows", "draft_vocab", "held_out")
    for name in counts:
        if getattr(given, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be positive.")
    if not 0 <= given.unroll_epochs <= given.epochs:
        raise ConfigError(f"--unroll-epochs must be in [0, {given.epochs}].")
    if given.tokens < 16:
        raise ConfigError(f"--tokens is {given.tokens}, must be at least 16.")
    if given.self_generate is not None and given.self_generate < 1:
        raise ConfigError("--self-generate must be positive.")
    if given.method == "eagle" and given.aux_layers is not None:
        raise ConfigError("--aux-layers is of eagle3; eagle sees the last layer alone.")


def _taps(given: argparse.Namespace, target: DecoderSpec) -> tuple[int, ...] | None:
    """After how many layers the head looks; None: the usual. Raises ConfigError."""
    if given.aux_layers is None:
        return None
    taps = tuple(given.aux_layers)
    if sorted(set(taps)) != list(taps) or taps[0] < 0:
        raise ConfigError(f"--aux-layers is {list(taps)}, must be ascending whole numbers.")
    if taps[-1] > target.layers:
        raise ConfigError(
            f"--aux-layers ends at {taps[-1]}, but the target has {target.layers} layers."
        )
    return taps


def _examples(
    given: argparse.Namespace, checkpoint: Checkpoint, target: DecoderSpec, path: Path
) -> list[Example]:
    """What to learn from, made or read once and kept in the file."""
    if given.self_generate is not None:
        if count_examples(path) < given.self_generate:
            _generate(given, _codec(checkpoint, target), target.model_len_max, path)
        return list(read_own(path, given.tokens))[: given.self_generate]
    if not count_examples(path):
        codec = _codec(checkpoint, target)

        def chat_ids(messages: list[dict[str, Any]], is_open: bool) -> list[int]:
            text = codec.render_chat(messages, add_generation_prompt=is_open)
            return codec.encode(text, add_special_tokens=False)

        append_examples(path, read_data(given.data.expanduser(), codec.encode, chat_ids))
    return [e for e in read_own(path, given.tokens) if len(e.ids) > e.start + 1]


def _codec(checkpoint: Checkpoint, target: DecoderSpec) -> TextCodec:
    return TextCodec(
        checkpoint.tokenizer_json(), checkpoint.tokenizer_config, checkpoint.generation_config,
        vocab_size=target.vocab_size, model_len_max=target.model_len_max,
    )  # fmt: skip


def _generate(given: argparse.Namespace, codec: TextCodec, model_len_max: int, path: Path) -> None:
    say(f"generating {given.self_generate} answers; they go to {path}")
    llm = LLM(
        given.model, revision=given.revision,
        max_model_len=min(given.tokens + PROMPT_TOKENS, model_len_max),
        max_num_seqs=ROWS_MAX, max_num_batched_tokens=STEP_TOKENS,
    )  # fmt: skip
    with llm, tqdm(total=given.self_generate, desc="answers") as bar:

        def chat_ids(text: str) -> list[int]:
            return codec.encode(
                codec.render_chat([{"role": "user", "content": text}]), add_special_tokens=False
            )

        opening = (
            codec.render_chat([{"role": "user", "content": MARK}]) if codec.chat_template else ""
        )
        start = codec.encode(opening[: opening.rfind(MARK)], add_special_tokens=False)
        generate_examples(
            llm, path, given.self_generate,
            tokens_max=max(given.tokens - PROMPT_USUAL, 1), seed=given.seed,
            chat=Chat(chat_ids, start) if codec.chat_template else None, progress=bar.update,
        )  # fmt: skip


def _rows(
    given: argparse.Namespace,
    checkpoint: Checkpoint,
    target: DecoderSpec,
    spec: EagleSpec,
    examples: list[Example],
) -> Rows:
    """The target's features of the examples. The model's own words need no other label."""
    from ranvier.build.eagle.features import FeatureModel
    from ranvier.native import library
    from ranvier.train.rows import Rows, RowShape

    kernels = "cpu" if library.register() else "reference"
    labels = 0 if given.data is None else LABELS
    made_of = hashlib.sha256(f"{checkpoint.revision} {spec.taps}".encode())
    for example in examples:
        made_of.update(np.asarray([example.start, *example.ids], np.int32).tobytes())
    shape = RowShape(
        len(examples), given.tokens, spec.feature_size, labels, made_of.hexdigest()[:32]
    )
    rows = Rows(given.output.expanduser() / "training" / "rows", shape)
    with tqdm(total=len(examples), desc="features") as bar:
        rows.make(
            examples,
            lambda: FeatureModel(
                checkpoint, target, spec.taps, dtype="bfloat16", kernels=kernels,
                tokens_max=given.tokens, top_count=labels,
            ),
            bar.update,
        )  # fmt: skip
    return rows


def _training(
    given: argparse.Namespace,
    checkpoint: Checkpoint,
    target: DecoderSpec,
    spec: EagleSpec,
    data: tuple[Rows, list[Example]],
) -> tuple[Training, NDArray[np.int32], NDArray[np.int32]]:
    """The run, the head's id of each of the target's (-1: none), and the target's of the head's."""
    import jax.numpy as jnp

    from ranvier.train.loop import Course, Training
    from ranvier.train.loss import Frozen, Objective
    from ranvier.train.rows import frequent_ids
    from ranvier.train.unroll import Unroll

    rows, examples = data
    vocab = min(given.draft_vocab, target.vocab_size)
    ids = frequent_ids(examples[: -given.held_out], vocab, target.vocab_size)
    head_of = np.full(target.vocab_size, -1, np.int32)
    head_of[ids] = np.arange(len(ids), dtype=np.int32)
    embed = checkpoint.read(target.array("embed").sources[0][0])
    head = checkpoint.read(target.array("embed" if target.is_tied else "head").sources[0][0])
    frozen = Frozen(
        jnp.asarray(embed.astype(jnp.bfloat16)), jnp.asarray(head[ids].astype(np.float32))
    )
    course = Course(
        epochs=given.epochs, unroll_epochs=given.unroll_epochs, batch_rows=given.batch_rows,
        rate=given.rate, seed=given.seed, held_out=given.held_out,
    )  # fmt: skip
    objective = Objective(Unroll(spec, given.unroll), target.embed_scale)
    folder = given.output.expanduser() / "training"
    return Training(folder, rows, objective, frozen, course), head_of, ids


def _run(training: Training, start: dict[str, Any], head_of: NDArray[np.int32]) -> dict[str, Any]:
    with tqdm(total=training.steps, desc="training", unit="step") as bar:

        def show(turn: Turn) -> None:
            bar.update(turn.step - bar.n)
            bar.set_postfix_str(_told(turn.measured))
            if turn.held_out is not None:
                bar.write(f"epoch {turn.epoch}, held out: {_told(turn.held_out)}")

        return training.run(start, head_of, show)


def _told(found: Acceptance) -> str:
    shares = " ".join(f"{share:.3f}" for share in found.by_position)
    return f"loss {found.loss:.2f}, acceptance {shares}, length {found.length:.2f}"
