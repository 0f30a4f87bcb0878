"""The loader's thread: order, errors, and how much it reads ahead."""

from __future__ import annotations

import threading

from tests.conftest import eventually

from ranvier.adapters.loading import UNTAKEN_MAX, ThreadLoader
from ranvier.core.errors import AdapterError, InternalError
from ranvier.sim.adapters import simulated_weights


class Reader:
    """Reads when it may; `paths` in the order of reading."""

    def __init__(self):
        self.may, self.paths = threading.Event(), []

    def __call__(self, path):
        assert self.may.wait(10)
        self.paths.append(path)
        if path == "bad":
            raise AdapterError("bad: no adapter.")
        if path == "broken":
            raise ValueError("a bug")
        return simulated_weights(path)


def taken(loader, count):
    found = []
    eventually(lambda: found.extend(loader.take()) or len(found) >= count, 10)
    return found


def test_urgent_loads_come_first_and_whatever_is_raised_is_an_answer():
    reader = Reader()
    loader = ThreadLoader(reader)
    calls = []
    loader.on_done = lambda: calls.append(threading.current_thread().name)
    for key, path in enumerate(("first", "bad", "broken", "last")):
        loader.ask(key, path, is_urgent=False)
    loader.ask("now", "urgent", is_urgent=True)
    reader.may.set()
    found = {loaded.key: loaded.found for loaded in taken(loader, 5)}
    assert reader.paths in (
        ["first", "urgent", "bad", "broken", "last"], ["urgent", "first", "bad", "broken", "last"]
    )  # fmt: skip
    assert found[0].digest == "first" and found["now"].digest == "urgent"
    assert isinstance(found[1], AdapterError) and isinstance(found[2], InternalError)
    assert "broken" in found[2].message
    assert calls == ["adapter loader"] * 5
    loader.close()


def test_it_does_not_read_far_ahead_of_its_user():
    reader = Reader()
    reader.may.set()
    loader = ThreadLoader(reader)
    for key in range(20):
        loader.ask(key, str(key), is_urgent=False)
    eventually(lambda: len(reader.paths) == UNTAKEN_MAX + 1, 10)
    assert not threading.Event().wait(0.05) and len(reader.paths) == UNTAKEN_MAX + 1
    assert len(taken(loader, 20)) == 20


def test_a_slow_host_holds_up_nothing_on_a_disk():
    answers = threading.Event()

    def read(path):
        assert path != "org/far" or answers.wait(10)
        return simulated_weights(path)

    loader = ThreadLoader(read, is_remote=lambda path: path.startswith("org/"))
    loader.ask(0, "org/far", is_urgent=True)
    for key in range(1, 5):
        loader.ask(key, "near", is_urgent=False)
    assert [loaded.key for loaded in taken(loader, 4)] == [1, 2, 3, 4]
    answers.set()
    assert [loaded.key for loaded in taken(loader, 1)] == [0]
    loader.close()
