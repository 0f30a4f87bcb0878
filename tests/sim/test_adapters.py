"""The real engine with adapters on a simulated device, whose tokens depend on who wrote each block
and on what lies in each slot: a mix-up is a wrong token."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ranvier.adapters.registry import Adapters
from ranvier.core.buckets import BucketSet
from ranvier.core.config import EngineConfig
from ranvier.core.errors import (
    AdapterUnavailable,
    DeviceError,
    ModelNotFound,
    RequestError,
    StateLost,
)
from ranvier.core.random import derive_seed, uniform
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.core.step import RunnerInfo
from ranvier.engine.loop import Engine
from ranvier.sim.adapters import SimulatedLoader, simulated_weights
from ranvier.sim.checker import check_scheduler
from ranvier.sim.runner import SimulatedRunner, next_token

VOCAB = 997
TURNS_MAX = 20_000
NAMES = [f"lora{i}" for i in range(6)]
RAGGED = BucketSet(tokens=(1, 8, 32))
UNRAGGED = BucketSet(prefill_tokens=(8, 32), decode_rows=(1, 4, 8), contexts=(16, 48, 96))
KINDS = (
    {},
    {"cancel_rate": 0.3},
    {"fault_rate": 0.03, "late_fault_rate": 0.03},
    {"loss_rate": 0.02, "cancel_rate": 0.1},
    {"churn_rate": 0.3},
    {"churn_rate": 0.2, "fault_rate": 0.02, "cancel_rate": 0.1},
)


def make(order="plain", slots=2, buckets=RAGGED, blocks=60, host_max=3, config=(), **weather):
    info = RunnerInfo(
        buckets=buckets, rows_max=8, block_tokens=4, block_count=blocks, model_len_max=96,
        vocab_size=VOCAB, logprobs_max=4, edits_max=64, adapter_slots=slots, adapter_rank_max=16,
    )  # fmt: skip
    loader = SimulatedLoader(
        {name: f"{name}v1" for name in NAMES}, turns_max=4, pieces=3, seed=weather.get("seed", 0)
    )
    adapters = Adapters(loader, host_max=host_max, slots=slots)
    for name in NAMES:
        adapters.add(name, name, simulated_weights(f"{name}v1", 3))
    settings = EngineConfig(max_num_batched_tokens=32, order=order, **dict(config))
    return Engine(SimulatedRunner(info, **weather), settings, adapters=adapters)


def request(name, ids, adapter="", seed=1, **params):
    params = SamplingParams(**{"max_tokens": 8, "temperature": 0, **params})
    return Request(request_id=name, prompt_token_ids=ids, params=params, seed=seed, adapter=adapter)


def workload(seed, count=40):
    """Few prompts, so that prefixes meet under many adapters."""
    rng = random.Random(seed)
    shared = [rng.randrange(VOCAB) for _ in range(24)]
    for i in range(count):
        own = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 20))]
        yield request(
            f"r{i}", shared[: rng.choice([8, 24])] + own, rng.choice(["", *NAMES]),
            seed=rng.randrange(2**31), max_tokens=rng.randint(1, 16), n=rng.choice([1, 1, 2]),
            temperature=rng.choice([0.0, 1.0]),
            prompt_logprobs=rng.choice([None, None, None, 1]),
        )  # fmt: skip


def expected(request, index, digest):
    params, tokens = request.params, list(request.prompt_token_ids)
    seed = derive_seed(request.seed, index)
    for _ in range(params.max_tokens):
        draw = 0.0 if params.is_greedy else uniform(seed, len(tokens))
        tokens.append(next_token(tokens, draw, VOCAB, digest))
    return tokens[len(request.prompt_token_ids) :]


class Storm:
    """Runs a workload to its end; who was admitted under which content is written down."""

    def __init__(self, engine, seed, cancel_rate=0.0, churn_rate=0.0):
        self.engine, self.rng = engine, random.Random(seed)
        self.cancel_rate, self.churn_rate = cancel_rate, churn_rate
        self.digests, self.admitted, self.refused = {}, {}, []
        self.tokens, self.reasons, self.events = {}, {}, []
        self.tickets, self.kept = 0, frozenset()

    def run(self, arrivals):
        arrivals, engine = list(arrivals), self.engine
        for _ in range(TURNS_MAX):
            while arrivals and self.rng.random() < 0.4:
                self.admit(arrivals.pop(0))
            if self.rng.random() < self.cancel_rate:
                engine.cancel(f"r{self.rng.randrange(40)}", self.rng.choice([None, 0, 1]))
            if self.rng.random() < self.churn_rate:
                self.churn()
            for event in engine.turn():
                self.take(event)
            check_scheduler(engine.scheduler)
            self.check_pins()
            if not arrivals and not engine.has_work and not engine.adapters.loading:
                break
        else:
            raise AssertionError("the engine did not come to an end")
        stats = engine.stats()
        assert stats.blocks_free == stats.blocks_total
        assert not engine.scheduler.slots.users
        assert len(engine.adapters._weights) <= engine.adapters._host_max
        assert all(not content.held for content in engine.adapters._contents.values())
        return self

    def admit(self, request):
        try:
            self.engine.admit(request)
        except ModelNotFound:
            self.refused.append(request)
            return
        self.admitted[request.request_id] = request
        self.digests[request.request_id] = self.engine._live[request.request_id][0].adapter

    def check_pins(self):
        """What is pinned and was in a slot is there still."""
        slots, pinned = self.engine.scheduler.slots, self.engine.adapters.pins.digests
        assert (self.kept & pinned) <= set(slots.slot_of)
        self.kept = pinned & set(slots.slot_of)

    def churn(self):
        """An adapter changes on disk and is loaded in place, or is unloaded, or comes back."""
        adapters, name = self.engine.adapters, self.rng.choice(NAMES)
        what = self.rng.choice(["change", "unload", "load", "pin", "unpin"])
        if what == "unload" and name in adapters._digest_of:
            adapters.unload(name)
        if what == "change":
            self.tickets += 1
            path = f"{name}/{self.tickets}"
            adapters._loader.digests[path] = f"{name}v{self.tickets}"
            adapters.load(self.tickets, name, path, is_inplace=True)
        if what == "load":
            self.tickets += 1
            adapters.load(self.tickets, name, name)
        has_room = len(adapters.pins.digests) + 1 < self.engine.scheduler.slots.count
        if what == "pin" and name in adapters._digest_of and has_room:
            adapters.pin(name)
        if what == "unpin" and name in adapters._digest_of:
            adapters.pin(name, is_pinned=False)

    def take(self, event):
        key = (event.request_id, event.index)
        assert key not in self.reasons, "an event after the terminal one"
        self.tokens.setdefault(key, []).extend(event.token_ids)
        if event.finish_reason is not None:
            self.reasons[key] = event.finish_reason
            self.events.append(event)

    def check(self, allowed):
        keys = {(r.request_id, i) for r in self.admitted.values() for i in range(r.params.n)}
        assert set(self.reasons) == keys
        assert set(self.reasons.values()) <= allowed
        for name, request in self.admitted.items():
            for index in range(request.params.n):
                want = expected(request, index, self.digests[name])
                got = self.tokens[name, index]
                assert got == want[: len(got)], f"{name} of {request.adapter!r}"
                if self.reasons[name, index] == "length":
                    assert len(got) == len(want)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("buckets", [RAGGED, UNRAGGED], ids=["ragged", "unragged"])
@pytest.mark.parametrize("order", ["plain", "overlapped"])
@pytest.mark.parametrize("weather", KINDS, ids=str)
def test_every_sequence_gets_the_tokens_of_its_own_adapter(weather, order, buckets, seed):
    rates = {k: v for k, v in weather.items() if k in ("cancel_rate", "churn_rate")}
    faults = {k: v for k, v in weather.items() if k not in rates}
    policy = {"adapter_eviction": ["lru", "lfu"][seed % 2], "adapter_decay_uses": 8}
    engine = make(
        order, slots=1 + seed % 3, buckets=buckets, config=policy.items(), seed=seed, **faults
    )
    storm = Storm(engine, seed, **rates).run(workload(seed))
    allowed = {"length"}
    allowed |= {"abort"} if "cancel_rate" in rates else set()
    allowed |= {"error"} if faults else set()
    storm.check(allowed)
    assert engine.stats().adapter_misses >= 6 or storm.refused


def run(engine, *requests):
    storm = Storm(engine, 0)
    storm.run(requests)
    return storm


def test_one_batch_mixes_adapters_and_the_base_model():
    engine, seen = make(slots=3, host_max=6), []
    engine.runner.on_step = lambda plan: seen.append({chunk.slot for chunk in plan.chunks})
    names = ["", *NAMES[:3]]
    run(engine, *(request(f"r{i}", [i], name, max_tokens=40) for i, name in enumerate(names)))
    assert {0, 1, 2, 3} in seen


def test_a_changed_adapter_never_reuses_old_blocks():
    engine, prompt = make(), list(range(40))
    run(engine, request("a", prompt, "lora0"))
    run(engine, request("b", prompt, "lora0"))
    assert engine.stats().prefix_hits == 36
    engine.adapters.add("lora0", "elsewhere", simulated_weights("new"), is_inplace=True)
    storm = run(engine, request("c", prompt, "lora0"))
    assert engine.stats().prefix_hits == 36
    assert storm.tokens["c", 0] == expected(storm.admitted["c"], 0, "new")


def test_a_salt_cannot_be_mistaken_for_an_adapter():
    engine, prompt = make(), list(range(40))
    run(engine, request("a", prompt, "lora0"))
    other = request("b", prompt)
    other.cache_salt = "lora0v1:"
    run(engine, other)
    assert engine.stats().prefix_hits == 0


def test_unloading_lets_open_requests_finish_and_new_ones_fail():
    engine = make()
    engine.admit(request("a", [1, 2], "lora0"))
    engine.admit(request("b", [3, 4], "lora0"))
    engine.turn()
    engine.adapters.unload("lora0")
    with pytest.raises(ModelNotFound, match="lora0"):
        engine.admit(request("c", [1, 2], "lora0"))
    storm = Storm(engine, 0)
    storm.admitted = {name: request(name, ids) for name, ids in (("a", [1, 2]), ("b", [3, 4]))}
    storm.digests = dict.fromkeys("ab", "lora0v1")
    storm.run([])
    storm.check({"length"})
    assert "lora0v1" not in engine.adapters._contents


def test_weights_that_cannot_be_read_again_end_their_requests_only():
    engine = make(host_max=1, slots=1)
    engine.adapters._loader.digests.pop("lora0")
    storm = run(
        engine, request("a", [1, 2], "lora0"), request("b", [1, 2], "lora1"), request("c", [1, 2])
    )
    assert storm.reasons == {("a", 0): "error", ("b", 0): "length", ("c", 0): "length"}
    (event,) = [event for event in storm.events if event.request_id == "a"]
    assert event.error.endswith("lora0: no such adapter.") and event.error_kind == "adapter"


def test_a_folder_that_has_changed_meanwhile_is_said_so():
    engine = make(host_max=1, slots=1)
    engine.adapters._loader.digests["lora0"] = "other"
    storm = run(engine, request("a", [1, 2], "lora0"))
    assert storm.reasons == {("a", 0): "error"}
    assert "has changed since it was loaded" in storm.events[0].error


def test_a_device_that_refuses_an_adapter_ends_its_requests_only():
    engine = make()
    place = engine.runner.place_adapter

    def refuse(slot, weights):
        if weights.digest == "lora0v1":
            raise DeviceError("no room")
        yield from place(slot, weights)

    engine.runner.place_adapter = refuse
    storm = run(engine, request("a", [1, 2], "lora0"), request("b", [1, 2], "lora1"))
    assert storm.reasons == {("a", 0): "error", ("b", 0): "length"}
    assert {e.request_id: e.error_kind for e in storm.events} == {"a": "device", "b": "device"}


@pytest.mark.parametrize("order", ["plain", "overlapped"])
def test_slots_lost_while_one_is_filled_end_what_runs_and_are_filled_again(order):
    engine = make(order)
    runner, place = engine.runner, engine.runner.place_adapter

    def lose(slot, weights):
        if weights.digest == "lora1v1":
            runner._digests = {0: ""}
            raise StateLost("every slot is empty now")
        yield from place(slot, weights)

    runner.place_adapter = lose
    engine.admit(request("a", [1, 2], "lora0", max_tokens=40))
    events = []
    while not engine.scheduler.running:
        events += engine.turn()
    engine.admit(request("b", [1, 2], "lora1"))
    while engine.has_work:
        events += engine.turn()
    ends = {event.request_id: event.error for event in events if event.finish_reason}
    assert ends == dict.fromkeys("ab", "every slot is empty now")
    again = run(engine, request("c", [1, 2], "lora0"), request("d", [1, 2]))
    assert again.reasons == {("c", 0): "length", ("d", 0): "length"}


def test_a_request_for_a_cold_adapter_neither_starves_nor_stops_the_others():
    engine = make(slots=1, host_max=6)
    ended, turn_of = [], {}
    engine.admit(request("hot0", [1, 2], "lora0"))
    for turn in range(200):
        if turn == 3:
            engine.admit(request("cold", [1, 2], "lora1"))
        engine.admit(request(f"hot{turn + 1}", [1, turn], "lora0", max_tokens=4))
        engine.admit(request(f"base{turn}", [1, turn], max_tokens=2))
        for event in engine.turn():
            if event.finish_reason:
                ended.append(event.request_id)
                turn_of.setdefault(event.request_id, turn)
        if "cold" in turn_of:
            break
    assert turn_of["cold"] < 40
    counts = Counter(name.rstrip("0123456789") for name in ended)
    assert counts["base"] > 5 and counts["hot"] > 2


def test_a_sleeping_engine_waits_for_a_load_and_for_nothing_else():
    engine = make(host_max=1, slots=1)
    engine.adapters._loader._turns_max = 50
    assert engine.can_sleep
    engine.admit(request("a", [1, 2], "lora0"))
    assert not engine.can_sleep
    sleeps = 0
    while engine.has_work:
        engine.turn()
        sleeps += engine.can_sleep
    assert sleeps > 5


def test_a_pinned_adapter_is_moved_at_once_and_keeps_its_slot():
    engine = make(slots=2, host_max=6)
    engine.adapters.pin("lora5")
    engine.turn()
    slot = engine.scheduler.slots.slot_of["lora5v1"]
    assert not engine.scheduler.slots.placing
    run(engine, *(request(name, [1, 2], name) for name in NAMES[:5]))
    assert engine.scheduler.slots.slot_of["lora5v1"] == slot
    engine.adapters.pin("lora5", is_pinned=False)
    run(engine, *(request(f"{name} again", [1, 2], name) for name in NAMES[:2]))
    assert set(engine.scheduler.slots.slot_of) == {"lora0v1", "lora1v1"}


def test_a_pinned_adapter_that_is_on_no_host_is_read_once_and_not_for_ever():
    engine = make(slots=2, host_max=2)
    loader = engine.adapters._loader
    loader.digests.pop("lora0")
    engine.adapters.pin("lora0")
    for _ in range(50):
        engine.turn()
    assert loader.reads == 1 and not engine.scheduler.slots.slot_of
    assert run(engine, request("b", [1, 2], "lora1")).reasons == {("b", 0): "length"}


def test_where_all_slots_are_pinned_others_are_told_so_and_never_wait():
    engine = make(slots=2, host_max=6)
    engine.adapters.pin("lora0")
    run(engine, request("first", [1, 2], "lora0"))
    engine.admit(request("runs", [1, 2], "lora1", max_tokens=30))
    while not engine.scheduler.running:
        engine.turn()
    engine.admit(request("waits", [1, 2], "lora2", n=2))
    engine.turn()
    engine.adapters.pin("lora3")
    with pytest.raises(AdapterUnavailable, match="'lora2' can't run: each of the 2 slots"):
        engine.admit(request("later", [1, 2], "lora2"))
    with pytest.raises(RequestError, match="'lora2' can't be pinned: 2 others are"):
        engine.adapters.pin("lora2")
    engine.admit(request("pinned", [1, 2], "lora3"))
    engine.admit(request("base", [1, 2]))
    ends = {}
    while engine.has_work:
        for event in engine.turn():
            if event.finish_reason:
                ends[event.request_id, event.index] = (event.finish_reason, event.error_kind)
    refused = ("error", "adapter")
    assert ends == {
        ("runs", 0): ("length", "device"), ("pinned", 0): ("length", "device"),
        ("base", 0): ("length", "device"), ("waits", 0): refused, ("waits", 1): refused,
    }  # fmt: skip
