"""The real app on a simulated engine: milliseconds to start, the same wire."""

from __future__ import annotations

from ranvier.core.buckets import BucketSet
from ranvier.core.config import EngineConfig, SpeculationConfig
from ranvier.core.step import RunnerInfo
from ranvier.engine.loop import Engine
from ranvier.server.app import make_app
from ranvier.server.options import ServerOptions
from ranvier.sim.runner import SimulatedRunner
from ranvier.text.codec import TextCodec
from tests.conftest import TEMPLATE, byte_tokenizer
from tests.server.running import Server

VOCAB, LENGTH = 259, 96
CONFIG = {
    "chat_template": TEMPLATE, "eos_token": "</s>", "bos_token": "<s>", "name_or_path": "/secret",
}  # fmt: skip


def simulated_engine(adapters=None, adapter_slots=0, drafts=()):
    """An engine on a simulated device; `runner.on_step` may be replaced to hold it.

    `drafts`: counts of a drafter, which is always right and always asked for the largest.
    """
    info = RunnerInfo(
        buckets=BucketSet(
            tokens=(1, 8, 32), drafts=drafts, lookahead=max(drafts, default=0),
            has_drafter=bool(drafts),
        ), rows_max=4, block_tokens=4, block_count=200,
        model_len_max=LENGTH, vocab_size=VOCAB, logprobs_max=20, edits_max=1200,
        adapter_slots=adapter_slots, adapter_rank_max=16 if adapter_slots else 0,
    )  # fmt: skip
    speculation = SpeculationConfig(method="draft_model") if drafts else None
    config = EngineConfig(max_num_batched_tokens=32, speculation=speculation)
    runner = SimulatedRunner(info)
    runner.skill = 1.0
    engine = Engine(runner, config, adapters=adapters)
    if drafts:
        choose = lambda rows, rooms: max(drafts) if any(rooms) else 0  # noqa: E731
        engine.scheduler.speculation.policy.choose = choose
    return engine


def simulated(adapters=None, adapter_slots=0, drafts=(), **options):
    """A running server on a simulated engine."""
    engine = simulated_engine(adapters, adapter_slots, drafts)
    info = engine.runner.info
    codec = TextCodec(
        byte_tokenizer(VOCAB), CONFIG, {"eos_token_id": 2}, vocab_size=VOCAB, model_len_max=LENGTH
    )
    options.setdefault("model_names", ("sim",))
    settings = ServerOptions(**options)
    return Server(engine, lambda client: make_app(settings, codec, client, info, created=7))
