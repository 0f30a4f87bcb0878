"""deploy/ray_serve.py without Ray: a replica is a server; requests and streams pass through it."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
from starlette.requests import Request

from ranvier.core.errors import ServerError

PATH = Path(__file__).parents[2] / "deploy/ray_serve.py"
spec = importlib.util.spec_from_file_location("ray_serve", PATH)
ray_serve = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ray_serve)


def request(method, path, body=b"", query=b""):
    scope = {
        "type": "http", "method": method, "path": path, "query_string": query,
        "headers": [(b"content-type", b"application/json"), (b"cookie", b"secret")],
        "server": ("x", 80), "scheme": "http",
    }  # fmt: skip

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope, receive)


async def body_of(response):
    return b"".join([part async for part in response.body_iterator])


async def test_requests_and_streams_pass_through_and_the_server_ends_with_its_replica(tiny_options):
    given = {name: str(value) for name, value in tiny_options.items()}
    replica = ray_serve.Replica(ray_serve.words(given))
    await replica.check_health()
    response = await replica(request("GET", "/v1/models"))
    assert response.status_code == 200 and b'"object":"list"' in await body_of(response)
    ask = b'{"prompt": "Hi", "max_tokens": 4, "stream": true, "ignore_eos": true}'
    response = await replica(request("POST", "/v1/completions", ask))
    lines = (await body_of(response)).split(b"\n\n")
    assert lines[-2] == b"data: [DONE]" and len(lines) > 2
    response = await replica(request("POST", "/v1/completions", b"{}"))
    assert response.status_code == 400
    process = replica._process
    replica.__del__()
    assert process.returncode == 0
    with pytest.raises(ServerError):
        await replica.check_health()


def test_a_server_that_cannot_start_is_an_error_with_its_last_words():
    with pytest.raises(ServerError, match="no such folder"):
        ray_serve.Replica(["no-such-model"])


def test_arguments_are_of_replicas_or_of_the_server(monkeypatch):
    found = {}

    def deployment(**given):
        found.update(given)
        return lambda kind: types.SimpleNamespace(bind=lambda words: (kind, words))

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(
        serve=types.SimpleNamespace(deployment=deployment)))  # fmt: skip
    kind, words = ray_serve.build({
        "model": "m", "max_replicas": "4", "neuron_cores": "8", "tensor_parallel_size": "8",
        "require_artifacts": "true", "enable_prefix_caching": "False",
    })  # fmt: skip
    assert kind is ray_serve.Replica and words == [
        "m",
        "--tensor-parallel-size=8",
        "--require-artifacts",
        "--no-enable-prefix-caching",
    ]
    assert found["autoscaling_config"] == {
        "min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16.0,
    }  # fmt: skip
    assert found["ray_actor_options"] == {"num_cpus": 1.0, "resources": {"neuron_cores": 8.0}}
