"""Training a head: what it unrolls is what serving does, it learns, and it resumes exactly."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.build.eagle.features import FeatureModel, Features
from ranvier.build.eagle.open import open_eagle
from ranvier.core.errors import ConfigError
from ranvier.train.adam import Adam
from ranvier.train.examples import Example
from ranvier.train.loop import Course, Training
from ranvier.train.loss import Batch, Frozen, Objective
from ranvier.train.rows import Rows, RowShape
from ranvier.train.save import save_head
from ranvier.train.start import HeadSize, head_spec, start_params
from ranvier.train.unroll import Unroll
from ranvier.weights.drafts.convert import convert_head
from ranvier.weights.drafts.eagle import EMBED, HEAD
from tests.parity.test_eagle import Head, target

METHODS = ("eagle", "eagle3")
VOCAB, DRAFT = 160, 96
IDS = np.arange(DRAFT, dtype=np.int32) + 40


def made(method, folder, seed=0):
    """A head's spec, its params rounded as they are saved, and the folder."""
    checkpoint, spec = target()
    size = HeadSize(method, 96, DRAFT, (1, 2, 3) if method == "eagle3" else None)
    own = head_spec(spec, size)
    rng = np.random.default_rng(seed)
    params = {
        name: (value + rng.normal(0, 0.1, value.shape)).astype(jnp.bfloat16).astype(np.float32)
        for name, value in start_params(own, checkpoint, spec, seed).items()
    }
    save_head(folder, own, params, IDS, checkpoint.config)
    return own, params


@pytest.mark.parametrize("method", METHODS)
def test_unrolled_steps_are_the_passes_of_serving(method, tmp_path):
    own, params = made(method, tmp_path / "head")
    head = Head("head", "reference", tmp_path)
    rng = np.random.default_rng(1)
    ids = rng.integers(3, VOCAB, 24)
    features = rng.normal(size=(24, own.feature_size)).astype(np.float32)
    fed = np.append(ids[1:], 7)
    checkpoint, spec = target()
    embeds = checkpoint.read(spec.array("embed").sources[0][0])[fed].astype(np.float32)
    unroll = Unroll(own, 3)
    streams = unroll.outputs(params, features[None], embeds[None])
    _, first = head.run(features, fed, 0)
    assert np.abs(first - streams[0][0]).max() < 2e-4
    for start in (4, 15):  # a chain whose last feature of the target is at `start`
        logits, x = head.run(features[: start + 1], fed[: start + 1], 0)
        for step in (1, 2):
            place = start + step
            logits, x = head.run(x[-1:], fed[place : place + 1], place, is_fused=True)
            assert np.abs(x[0] - streams[step][0, place]).max() < 2e-4
        matrix = jnp.asarray(head.weights["head"][0].T, jnp.float32)
        want = unroll.logits(params, streams[2][:, start + 2], matrix)
        assert np.abs(logits[0] - want[0]).max() < 1e-3


class Text:
    """A target whose answers repeat a cycle, and features that are the ids' embeddings."""

    def __init__(self, size, seed=0):
        self.table = np.random.default_rng(seed).normal(size=(VOCAB, size)).astype(np.float32)

    def run(self, ids):
        none = np.zeros((len(ids), 0))
        return Features(self.table[list(ids)], none.astype(np.int32), none)


def training(folder, method="eagle3", epochs=6, steps=2, count=28):
    checkpoint, spec = target()
    tokens = 24
    own = head_spec(spec, HeadSize(method, 32, VOCAB, (1, 2, 3) if method == "eagle3" else None))
    rng = np.random.default_rng(5)
    examples = []
    for _ in range(count):
        at, step = rng.integers(0, 50), rng.integers(1, 3)
        ids = tuple(int(40 + (at + i * step) % 50) for i in range(tokens))
        examples.append(Example(ids, 4))
    shape = RowShape(count, tokens, own.feature_size, 0, "test")
    rows = Rows(folder / "rows", shape)
    rows.make(examples, lambda: Text(own.feature_size), lambda done: None)
    embed = checkpoint.read(spec.array("embed").sources[0][0])
    head = checkpoint.read(spec.array("head").sources[0][0]).astype(np.float32)
    course = Course(
        epochs=epochs, unroll_epochs=epochs - 1, batch_rows=4, rate=1e-2, seed=0, held_out=4,
        checkpoint_steps=6,
    )  # fmt: skip
    objective = Objective(Unroll(own, steps), 1.0)
    frozen = Frozen(jnp.asarray(embed, jnp.float32), jnp.asarray(head))
    start = start_params(own, checkpoint, spec, 0)
    return Training(folder, rows, objective, frozen, course), start


HEAD_OF = np.arange(VOCAB, dtype=np.int32)


class Cut(Exception):
    pass


def test_it_learns(tmp_path):
    run, start = training(tmp_path / "whole")
    before = run.measure(jax.tree.map(jnp.asarray, start), HEAD_OF)
    losses = []
    params = run.run(start, HEAD_OF, lambda turn: losses.append(turn.measured.loss))
    after = run.measure(params, HEAD_OF)
    assert after.loss < 0.75 * before.loss
    assert before.length == 1.0 and after.length > 1.4
    assert after.by_position[0] >= after.by_position[1] > 0.05
    assert len(losses) == run.steps == 36


def test_a_run_that_was_cut_ends_with_the_same_weights(tmp_path):
    def cut(turn):
        if turn.step == 8:
            raise Cut

    run, start = training(tmp_path / "whole", epochs=2, steps=1)
    params = run.run(start, HEAD_OF, lambda turn: None)
    run, start = training(tmp_path / "cut", epochs=2, steps=1)
    with pytest.raises(Cut):
        run.run(start, HEAD_OF, cut)
    run, start = training(tmp_path / "cut", epochs=2, steps=1)
    steps = []
    again = run.run(start, HEAD_OF, lambda turn: steps.append(turn.step))
    assert steps[0] == 7, "it goes on behind the checkpoint of step 6"
    assert any(not np.array_equal(value, start[name]) for name, value in params.items())
    for name, value in params.items():
        assert np.array_equal(value, again[name]), name


def test_eagle_of_the_first_kind_learns_too(tmp_path):
    run, start = training(tmp_path, "eagle", epochs=4, steps=1)
    before = run.measure(jax.tree.map(jnp.asarray, start), HEAD_OF)
    after = run.measure(run.run(start, HEAD_OF, lambda turn: None), HEAD_OF)
    assert after.loss < before.loss and after.length > before.length


def test_another_course_in_the_same_folder_is_an_error(tmp_path):
    run, start = training(tmp_path, epochs=2, steps=1)
    run.run(start, HEAD_OF, lambda turn: None)
    other, start = training(tmp_path, epochs=3, steps=1)
    with pytest.raises(ConfigError, match="holds a run with epochs=2"):
        other.run(start, HEAD_OF, lambda turn: None)
    with pytest.raises(ConfigError, match="features of other data"):
        Rows(tmp_path / "rows", RowShape(28, 24, 192, 0, "another model"))


def test_too_little_data_is_an_error(tmp_path):
    run, _ = training(tmp_path, count=28)
    course = dataclasses.replace(run.course, held_out=26)
    with pytest.raises(ConfigError, match="do not fill one batch of 4"):
        Training(tmp_path, run.rows, Objective(Unroll(None, 1), 1.0), Frozen(0, 0), course)


def test_batches_say_what_follows_the_next_token(tmp_path):
    run, _ = training(tmp_path)
    batch = run.rows.batch([3], HEAD_OF)
    ids = np.asarray(run.rows._ids[3])
    assert np.array_equal(batch.next_ids[0, :-1], ids[1:])
    assert np.array_equal(batch.label_ids[0, :-2, 0], ids[2:])
    # The answer begins at 4: the first guess has token 4 for its newest and guesses token 5.
    assert np.flatnonzero(batch.is_live[0]).tolist() == list(range(3, 22))
    assert batch.label_probs[0, :, 0].tolist() == [1.0] * 22 + [0.0] * 2


def test_chains_count_only_while_every_guess_held():
    """Labels by hand: a head of zeros always guesses id 0."""
    own = head_spec(target()[1], HeadSize("eagle3", 32, VOCAB, (1, 2, 3)))
    zeros = {k: np.zeros_like(v) for k, v in start_params(own, *target(), 0).items()}
    labels = np.array([[[0], [0], [5], [0], [0], [0]]], np.int32)
    batch = Batch(
        jnp.zeros((1, 6, own.feature_size)), jnp.zeros((1, 6), jnp.int32), jnp.asarray(labels),
        jnp.ones((1, 6, 1)), jnp.ones((1, 6), bool),
    )  # fmt: skip
    frozen = Frozen(jnp.zeros((VOCAB, 64)), jnp.zeros((VOCAB, 64)))
    _, report = Objective(Unroll(own, 3), 1.0)(zeros, frozen, batch)
    # Chains begin at 0..3: their labels are 0 0 5, 0 5 0, 5 0 0 and 0 0 0.
    assert (int(report.begun), report.held.tolist()) == (4, [3, 2, 1])


def test_adam_steps_against_the_gradient_by_its_sign_at_first():
    adam = Adam(rate=0.1, steps=100, warmup=1, decay=0.0)
    params = {"a": jnp.asarray([1.0, -2.0, 3.0])}
    grads = {"a": jnp.asarray([0.5, -0.5, 0.0])}
    moved, _ = adam.update(params, adam.start(params), grads, jnp.int32(0), jnp.float32(0.1))
    assert np.allclose(moved["a"], [0.9, -1.9, 3.0], atol=1e-5)
    rates = [Adam(rate=1.0, steps=100, warmup=10).rate_at(i) for i in (0, 9, 50, 100)]
    assert rates[0] == pytest.approx(0.1, rel=0.01) and rates[1] > 0.95
    assert rates[2] == pytest.approx(0.525) and rates[3] == pytest.approx(0.05)


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_head_opens_and_the_converted_one_says_the_same(method, tmp_path):
    own, params = made(method, tmp_path / "head")
    checkpoint, spec = target()
    head, draft = open_eagle(tmp_path / "head", checkpoint, spec, own.method)
    same = dataclasses.replace(draft.eagle, decoder=own.decoder)
    assert same == own
    embed = spec.array("embed").sources[0][0]
    added = convert_head(tmp_path / "full", head, checkpoint, embed)
    assert added == sorted([EMBED, HEAD])
    full, whole = open_eagle(tmp_path / "full", checkpoint, spec)
    assert whole.eagle.has_embed and whole.eagle.has_head
    assert whole.eagle.draft_vocab == draft.eagle.draft_vocab
    ids, rng = np.arange(10, 30), np.random.default_rng(2)
    features = rng.normal(size=(20, own.feature_size)).astype(np.float32)
    ours, theirs = (Head(n, "reference", tmp_path) for n in ("head", "full"))
    assert np.abs(ours.logits(features, ids, 0) - theirs.logits(features, ids, 0)).max() < 1e-5
    with pytest.raises(ConfigError, match="not an empty folder"):
        convert_head(tmp_path / "full", head, checkpoint, embed)
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    assert config == json.loads((tmp_path / "head" / "config.json").read_text())


def test_features_are_the_streams_and_the_likely_tokens():
    checkpoint, spec = target()
    ids = list(range(20, 50))

    def run(taps, tops):
        model = FeatureModel(
            checkpoint, spec, taps, dtype="float32", kernels="reference", tokens_max=32,
            top_count=tops,
        )  # fmt: skip
        return model.run(ids)

    whole, last = run((0, 3), 4), run((), 0)
    embed = checkpoint.read(spec.array("embed").sources[0][0])[ids].astype(np.float32)
    assert np.abs(whole.values[:, :64] - embed).max() < 1e-6
    assert (np.diff(whole.top_probs, axis=1) <= 0).all() and whole.top_ids.shape == (30, 4)
    stream = whole.values[:, 64:]
    norm = checkpoint.read("model.norm.weight").astype(np.float32)
    size = np.sqrt(np.mean(stream**2, axis=1, keepdims=True) + spec.norm_eps)
    assert np.abs(last.values - stream / size * norm).max() < 1e-4
    assert last.top_ids.shape == (30, 0)
