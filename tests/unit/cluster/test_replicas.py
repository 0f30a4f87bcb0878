"""Several engines behind one client: all requests are served; a dead one takes only its own."""

from __future__ import annotations

import pytest
from tests.server.running import EngineThread
from tests.server.simulated import simulated_engine

from ranvier.cluster.replicas import ReplicaClient
from ranvier.cluster.router import Router
from ranvier.core.errors import InternalError, RequestError
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams


def request(name, tokens=(5, 6, 7), count=5):
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=count)
    return Request(request_id=name, prompt_token_ids=list(tokens), params=params, seed=1)


async def start(count=2):
    threads = [EngineThread(simulated_engine()) for _ in range(count)]
    clients = [await thread.client() for thread in threads]
    info = threads[0].engine.runner.info
    router = Router(count, block_tokens=info.block_tokens, block_count=info.block_count)
    return threads, ReplicaClient(clients, router)


async def read(stream):
    tokens = {}
    async with stream:
        async for events in stream:
            for event in events:
                tokens.setdefault(event.request_id, []).extend(event.token_ids)
    return tokens


async def test_requests_of_one_submission_spread_and_come_back_in_one_stream():
    threads, client = await start()
    found = await read(client.submit([request(f"r{i}") for i in range(6)]))
    assert len(found) == 6 and len({tuple(tokens) for tokens in found.values()}) == 1
    steps = [thread.engine.stats().steps for thread in threads]
    assert all(steps)
    assert client._owners == {} and [client._router.work(i) for i in (0, 1)] == [0, 0]
    await client.close()


async def test_a_dead_replica_ends_its_own_requests_and_the_others_go_on():
    threads, client = await start()
    holds = [_hold(thread.engine) for thread in threads]
    streams = [client.submit([request(f"r{i}", count=20)]) for i in range(2)]
    owners = [client._owners[f"r{i}"] for i in range(2)]
    assert sorted(owners) == [0, 1]
    dead = owners[0]
    threads[dead].theirs.shutdown(2)
    with pytest.raises(InternalError, match="died"):
        await read(streams[0])
    for hold in holds:
        hold.set()
    assert len((await read(streams[1]))["r1"]) == 20
    assert client.trouble() is None
    assert client.degraded().startswith(f"Replica {dead + 1} of 2")
    for i in range(4):
        assert len((await read(client.submit([request(f"n{i}")])))[f"n{i}"]) == 5
    threads[1 - dead].theirs.shutdown(2)
    await client._clients[1 - dead].lost.wait()
    assert "Replica 1 of 2" in client.trouble() and "Replica 2 of 2" in client.trouble()
    with pytest.raises(InternalError, match="Every replica"):
        client.submit([request("last")])
    await client.close()


async def test_an_id_in_use_is_refused_and_a_stream_that_is_left_is_cancelled():
    threads, client = await start()
    holds = [_hold(thread.engine) for thread in threads]
    async with client.submit([request("a", count=80)]):
        with pytest.raises(RequestError, match="in use"):
            client.submit([request("a")])
    for hold in holds:
        hold.set()
    assert client._owners == {}
    assert len((await read(client.submit([request("a")])))["a"]) == 5
    await client.close()


async def test_numbers_are_of_all_replicas_together():
    threads, client = await start()
    heard = []
    client.on_stats = heard.append
    await read(client.submit([request(f"r{i}") for i in range(4)]))
    while client.stats().generation_tokens < 20:
        await _next_news(client)
    stats = client.stats()
    assert stats.generation_tokens == 20 and stats.prompt_tokens == 12
    assert stats.blocks_total == 2 * 199
    assert sum(len(s.step_tokens) for s in heard) == stats.steps
    await client.close()


async def test_a_successor_has_the_adapters_and_goes_on_with_the_numbers():
    threads, client = await start()
    await read(client.submit([request(f"r{i}") for i in range(4)]))
    while client.stats().generation_tokens < 20:
        await _next_news(client)
    client._adapters = {"a": ("/nowhere", True)}  # there when it was loaded: the others have it
    threads[0].theirs.shutdown(2)
    await client._clients[0].lost.wait()
    successor = await EngineThread(simulated_engine()).client()
    asked = []
    successor.load_adapter = _recorded(asked)
    await client.replace(0, successor)
    assert asked == [("a", "/nowhere", True, True)]
    assert client.degraded() is None and client.stats().generation_tokens == 20
    found = await read(client.submit([request(f"n{i}") for i in range(6)]))
    assert all(len(tokens) == 5 for tokens in found.values())
    while client.stats().generation_tokens < 50:
        await _next_news(client)
    assert successor.stats().generation_tokens > 0
    await client.close()


def _recorded(asked):
    async def load_adapter(name, path, *, is_inplace=False, is_pinned=None):
        asked.append((name, path, is_inplace, is_pinned))
        raise InternalError("gone")

    return load_adapter


async def test_an_adapter_that_goes_while_a_successor_starts_stops_it_not():
    threads, client = await start()
    client._adapters = {"a": ("/nowhere", False)}
    threads[0].theirs.shutdown(2)
    await client._clients[0].lost.wait()
    successor = await EngineThread(simulated_engine()).client()

    async def load_adapter(name, path, **how):
        client._adapters.clear()
        raise InternalError("gone")

    successor.load_adapter = load_adapter  # and the engine has none to unload
    await client.replace(0, successor)
    assert client.degraded() is None
    await client.close()


async def test_no_replica_is_left_to_load_an_adapter():
    threads, client = await start()
    for thread, own in zip(threads, client._clients, strict=True):
        thread.theirs.shutdown(2)
        await own.lost.wait()
    with pytest.raises(InternalError, match="Every replica"):
        await client.load_adapter("a", "/nowhere")
    await client.close()


async def _next_news(client):
    import asyncio

    await asyncio.sleep(0.05)


def _hold(engine):
    import threading

    event = threading.Event()
    engine.runner.on_step = lambda plan: event.wait(30)
    return event
