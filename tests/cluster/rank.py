"""One rank as a process, on a simulated device: python -m tests.cluster.rank JSON.

The leader speaks to the test over an inherited socket as an engine process does to its front.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time

from ranvier.cli.serving.ranks import follow, lead
from ranvier.cluster.detect import Place
from ranvier.core.buckets import BucketSet
from ranvier.core.config import EngineConfig
from ranvier.core.errors import DeviceError, RanvierError
from ranvier.core.step import RunnerInfo
from ranvier.engine.loop import Engine
from ranvier.link.message import Failure, Ready
from ranvier.link.service import EngineLink, EngineService
from ranvier.sim.runner import SimulatedRunner

KEY = b"k" * 32
VOCAB = 997
INFO = RunnerInfo(
    buckets=BucketSet(tokens=(1, 8, 32)), rows_max=8, block_tokens=4, block_count=400,
    model_len_max=4096, vocab_size=VOCAB, logprobs_max=4, edits_max=64,
)  # fmt: skip


def main(given):
    logging.basicConfig(level="INFO", format="%(message)s")
    place = Place(given["rank"], given["count"], given.get("address", "127.0.0.1"), given["port"])
    facts = {"ranks": str(place.count), "code": "1", **given.get("facts", {})}
    key = given.get("key", KEY.decode()).encode()
    link = None
    if place.is_leader:
        link = EngineLink(socket.socket(fileno=given["fd"]), lambda: None)

    def load(agree):
        agree("artifact", given.get("artifact", {"key": "a"}))
        time.sleep(given.get("load_s", 0))
        return runner(given)

    if link is None:
        follow(place, key, facts, load, 20)
    try:
        engine = Engine(
            lead(place, key, facts, load, link, 20), EngineConfig(max_num_batched_tokens=32)
        )
        link.send(Ready(INFO))
        EngineService(engine, link).run()
        engine.runner.close()
    except RanvierError as error:
        link.send(Failure.of(error))
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def runner(given):
    """A simulated device that takes its time, and may fail or hang at a step."""
    device = SimulatedRunner(INFO)

    def on_step(plan):
        time.sleep(given.get("step_s", 0))
        if device.steps == given.get("fail_at"):
            raise DeviceError("out of order")
        if device.steps == given.get("hang_at"):
            threading.Event().wait()

    device.on_step = on_step
    return device


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
