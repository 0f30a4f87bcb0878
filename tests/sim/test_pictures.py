"""Pictures through the real engine on a simulated device: mixes, sharing, faults, pressure."""

from __future__ import annotations

import random
from bisect import bisect_right

import numpy as np
import pytest

from ranvier.core.buckets import BucketSet
from ranvier.core.config import EngineConfig
from ranvier.core.errors import RequestError
from ranvier.core.media import ImageItem, PromptMedia, VisionInfo
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.core.step import RunnerInfo
from ranvier.engine.loop import Engine
from ranvier.media.vision import rope_axes
from ranvier.sim.checker import check_scheduler
from ranvier.sim.runner import SimulatedRunner, next_token

VOCAB, IMAGE = 997, 996
TURNS_MAX = 20_000
BUCKETS = {
    "ragged": BucketSet(tokens=(1, 8, 32)),
    "unragged": BucketSet(prefill_tokens=(8, 32), decode_rows=(1, 4, 8), contexts=(16, 48, 96)),
}
KINDS = {
    "llava": VisionInfo(family="llava", unit="tiles", units=(1, 4), rows=40, images_max=3),
    "gemma3": VisionInfo(
        family="gemma3", unit="tiles", units=(1,), rows=40, images_max=3, is_whole=True
    ),
    "qwen2_vl": VisionInfo(
        family="qwen2_vl", unit="patches", units=(16, 64), rows=40, images_max=3,
        has_rope_axes=True,
    ),
    "mllama": VisionInfo(
        family="mllama", unit="tiles", units=(1, 4), rows=13, images_max=3, is_cross=True
    ),
}  # fmt: skip


def make(kind, *, buckets="ragged", order="plain", blocks=400, caching=True, **rates):
    info = RunnerInfo(
        buckets=BUCKETS[buckets], rows_max=8, block_tokens=4, block_count=blocks,
        model_len_max=96, vocab_size=VOCAB, logprobs_max=4, edits_max=64, vision=KINDS[kind],
    )  # fmt: skip
    runner = SimulatedRunner(info, **rates)
    config = EngineConfig(max_num_batched_tokens=32, enable_prefix_caching=caching, order=order)
    return Engine(runner, config)


def request(name, kind, words, pictures=(), **fields):
    """Words (counts of ids) with pictures between them; a picture is a number."""
    rng = random.Random(f"{words}")
    ids, items = [], []
    for i, count in enumerate(words):
        ids += [rng.randrange(VOCAB - 1) for _ in range(count)]
        if i < len(pictures):
            item = picture(kind, pictures[i], len(ids))
            items.append(item)
            ids += [IMAGE] * item.token_count
    media = None
    if items:
        media = PromptMedia(images=tuple(items))
        if KINDS[kind].has_rope_axes:
            rope, delta = rope_axes(len(ids), items)
            media = PromptMedia(images=tuple(items), rope=rope, rope_delta=delta)
    params = SamplingParams(temperature=0, max_tokens=fields.pop("max_tokens", 9), n=1)
    return Request(
        request_id=name, prompt_token_ids=ids, params=params, seed=1, media=media, **fields
    )


def picture(kind, number, at):
    tiles = 1 + number % 4
    digest = bytes([number]) * 20
    if kind == "mllama":
        grid, shape, count = (1, 1, tiles), (tiles, 3, 1, 1), 1
    elif kind == "qwen2_vl":
        grid, shape, count = (1, 2 * tiles, 4), (8 * tiles, 1), 2 * tiles
    else:
        grid, shape, count = (1, 1, tiles), (tiles if kind == "llava" else 1, 3, 1, 1), 5 + tiles
    return ImageItem(
        digest=digest, pixels=b"", shape=shape, grid=grid, size=(2, 2), spans=((at, count),)
    )


def look(request, kind, position, token):
    """What the layers see of a token, by hand."""
    media, found = request.media, token
    if media is None:
        return token
    starts = [item.start for item in media.images]
    before = bisect_right(starts, position)
    if kind == "mllama":
        tiles = [(i.digest, n) for i in media.images[:before] for n in range(i.shape[0])]
        near = before - 1
        while near > 0 and starts[near - 1] + 1 == starts[near]:
            near -= 1
        far = sum(i.shape[0] for i in media.images[: max(near, 0)])
        return (token, tuple(tiles[far:]))
    if before:
        item = media.images[before - 1]
        if position < item.start + item.token_count:
            found = (item.digest, position - item.start)
    if kind == "qwen2_vl":
        axes = np.frombuffer(media.rope, np.int32).reshape(3, -1)
        is_prompt = position < axes.shape[1]
        behind = position + media.rope_delta
        found = (found, tuple(axes[:, position].tolist()) if is_prompt else (behind,) * 3)
    return found


def expected(request, kind):
    history = [look(request, kind, p, t) for p, t in enumerate(request.prompt_token_ids)]
    found = []
    for _ in range(request.params.max_tokens):
        found.append(next_token(history, 0.0, VOCAB))
        history.append(look(request, kind, len(history), found[-1]))
    return found


def drain(engine, arrivals, cancel=None):
    arrivals, tokens, reasons = list(arrivals), {}, {}
    for turn in range(TURNS_MAX):
        if arrivals and turn % 2 == 0:
            engine.admit(arrivals.pop(0))
        if cancel is not None:
            cancel(engine)
        for event in engine.turn():
            name = event.request_id
            assert name not in reasons, "an event after the terminal one"
            tokens.setdefault(name, []).extend(event.token_ids)
            if event.finish_reason is not None:
                reasons[name] = event.finish_reason
        check_scheduler(engine.scheduler)
        if not arrivals and not engine.has_work:
            return tokens, reasons
    raise AssertionError("the engine did not come to an end")


def mix(kind, seed, count=16):
    """Text alone, one picture and three, from few pictures so that some come again."""
    rng = random.Random(seed)
    for i in range(count):
        pictures = [rng.randrange(6) for _ in range(rng.choice([0, 1, 3]))]
        words = [rng.choice([0, 4, 9]) for _ in pictures] + [rng.randint(1, 12)]
        fields = {"max_tokens": rng.randint(1, 12), "cache_salt": rng.choice(["", "", "t"])}
        yield request(f"r{i}", kind, words, pictures, **fields)


@pytest.mark.parametrize("order", ["plain", "overlapped"])
@pytest.mark.parametrize("buckets", BUCKETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("blocks", "caching"), [(400, True), (34, True), (60, False)])
def test_a_mix_gives_each_the_tokens_that_it_gets_alone(kind, buckets, order, blocks, caching):
    for seed in range(4):
        requests = list(mix(kind, seed))
        engine = make(kind, buckets=buckets, order=order, blocks=blocks, caching=caching)
        tokens, reasons = drain(engine, requests)
        for r in requests:
            assert tokens[r.request_id] == expected(r, kind), r.request_id
            assert reasons[r.request_id] == "length"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_faults_and_cancellations_end_only_who_they_hit(kind, seed):
    rng, requests = random.Random(seed), list(mix(kind, seed, 30))
    engine = make(
        kind, blocks=60, fault_rate=0.02, late_fault_rate=0.02, loss_rate=0.01,
        encode_fault_rate=0.2, seed=seed, order=rng.choice(["plain", "overlapped"]),
    )  # fmt: skip

    def cancel(engine):
        if rng.random() < 0.05:
            engine.cancel(f"r{rng.randrange(30)}")

    tokens, reasons = drain(engine, requests, cancel)
    assert set(reasons) == {r.request_id for r in requests}
    for r in requests:
        got, want = tokens[r.request_id], expected(r, kind)
        assert got == want[: len(got)], r.request_id
    assert "length" in reasons.values() and "error" in reasons.values()


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoders_fault_ends_only_its_request(kind):
    engine = make(kind, encode_fault_rate=1.0)
    text = request("text", kind, [6])
    tokens, reasons = drain(engine, [request("seen", kind, [3, 4], [2]), text])
    assert reasons == {"seen": "error", "text": "length"}
    assert tokens["text"] == expected(text, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_picture_is_encoded_once(kind):
    engine = make(kind)
    drain(engine, [request("a", kind, [3, 4], [2])])
    drain(engine, [request("b", kind, [5, 7], [2]), request("c", kind, [1, 0, 2], [2, 2])])
    assert engine.runner.encodings == 1
    stats = engine.stats()
    assert (stats.mm_queries, stats.mm_hits) == (3, 2)
    engine.reset_mm_cache()
    engine.reset_prefix_cache()
    drain(engine, [request("d", kind, [5, 7], [2])])
    assert engine.runner.encodings == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_salt_shares_neither_prefix_nor_features(kind):
    engine = make(kind)
    drain(engine, [request("a", kind, [9, 9], [2], cache_salt="one")])
    drain(engine, [request("b", kind, [9, 9], [2], cache_salt="two")])
    assert engine.runner.encodings == 2
    assert engine.stats().prefix_hits == 0


@pytest.mark.parametrize("kind", KINDS)
def test_prefixes_are_shared_by_equal_pictures_alone(kind):
    engine = make(kind)
    first, same, other = (request(n, kind, [8, 12], [p]) for n, p in (("a", 1), ("b", 1), ("c", 5)))
    assert first.prompt_token_ids == other.prompt_token_ids
    tokens, _ = drain(engine, [first])
    drain(engine, [same])
    assert engine.stats().prefix_hits >= 16
    before = engine.stats().prefix_hits
    got, _ = drain(engine, [other])
    assert engine.stats().prefix_hits - before == 8
    assert got["c"] == expected(other, kind) != tokens["a"]


def test_a_cached_prefix_that_holds_the_picture_needs_no_features():
    engine = make("llava")
    drain(engine, [request("a", "llava", [2, 20], [3])])
    engine.reset_mm_cache()
    drain(engine, [request("b", "llava", [2, 20], [3])])
    assert engine.runner.encodings == 1


def test_a_sequence_waits_for_room_in_the_buffer():
    """Four pictures of ten rows are all that the buffer holds."""
    engine = make("llava")
    requests = [request(f"r{i}", "llava", [2, 2, 2, 2], [n, n + 4, n + 8]) for i, n in
                enumerate((3, 15, 27))]  # fmt: skip
    tokens, _ = drain(engine, requests)
    for r in requests:
        assert tokens[r.request_id] == expected(r, "llava")
    assert engine.runner.encodings == 9


def test_what_no_engine_takes_is_refused_at_admission():
    cases = [
        ("llava", request("a", "llava", [1] * 5, [0, 1, 2, 3]), "4 pictures"),
        ("llava", request("b", "mllama", [1, 1], [3]), None),
        ("mllama", request("c", "mllama", [1, 1, 1, 1], [3, 7, 11]), None),
        ("mllama", request("d", "mllama", [1, 1, 1, 1], [3, 7, 11, 15][:3]), None),
    ]
    for kind, one, told in cases:
        if told is None:
            make(kind).scheduler.check(one)
            continue
        with pytest.raises(RequestError, match=told):
            make(kind).admit(one)
    big = request("e", "llava", [1, 1], [3])
    item = big.media.images[0]
    wide = {"digest": b"", "pixels": b"", "size": (2, 2)}
    tiles = ImageItem(shape=(5, 3, 1, 1), grid=(1, 1, 5), spans=item.spans, **wide)
    long = ImageItem(shape=(1, 3, 1, 1), grid=(1, 1, 1), spans=((1, 41),), **wide)
    for kind, odd, told in (
        ("llava", tiles, "5 tiles of a picture; at most 4"),
        ("llava", long, "41 features of the pictures; at most 40"),
        ("gemma3", long, "41 tokens of a picture; at most 25"),
    ):
        big.media = PromptMedia(images=(odd,))
        with pytest.raises(RequestError, match=told):
            make(kind).admit(big)
    scored = request("f", "gemma3", [1, 1], [3])
    scored.params = scored.params.replace(prompt_logprobs=1)
    with pytest.raises(RequestError, match="not scored"):
        make("gemma3").admit(scored)
