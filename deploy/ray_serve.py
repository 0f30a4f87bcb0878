"""Replicas of `ranvier serve` under Ray Serve, as many as the load asks for.

    pip install 'ranvier[ray]'
    serve run deploy.ray_serve:build model=smollm2-135m min_replicas=1 max_replicas=4

Each replica is a whole server on the machine where Ray puts it: one engine, or with
`tensor_parallel_size` several devices of that machine. Requests and streams pass through as they
are. Arguments that are not of this page are options of `ranvier serve`.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ranvier.client.http import parse_url, send
from ranvier.core.errors import ServerError

__all__ = ["Replica", "build"]

DRAIN_S = 30
"""Time that requests in flight get when a replica is taken away."""
FORWARDED = ("authorization", "content-type", "accept", "x-request-id")
PLACING = {
    "min_replicas": "1", "max_replicas": "1", "target_ongoing_requests": "16",
    "num_cpus": "1", "num_gpus": "0", "neuron_cores": "0",
}  # fmt: skip
"""Arguments about replicas, with their defaults; the last three are what each one reserves."""


class Replica:
    """One server process, and the way to it."""

    def __init__(self, words: list[str]) -> None:
        command = [sys.executable, "-m", "ranvier.cli.main", "serve", *words, "--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--shutdown-timeout", str(DRAIN_S)], stderr=subprocess.PIPE, text=True
        )
        self._address = parse_url(self._wait())

    async def __call__(self, request: Request) -> Response:
        """Pass a request on, and its answer back as it comes."""
        body = await request.body()
        headers = {k: v for k, v in request.headers.items() if k.lower() in FORWARDED}
        query = f"?{request.url.query}" if request.url.query else ""
        held = contextlib.AsyncExitStack()
        answer = await held.enter_async_context(
            send(self._address, request.method, request.url.path + query,
                 body=body or None, headers=headers)
        )  # fmt: skip

        async def parts() -> AsyncIterator[bytes]:
            async with held:
                async for part in answer.parts():
                    yield part

        kept = {k: v for k, v in answer.headers.items() if k in ("content-type", "retry-after")}
        return StreamingResponse(parts(), answer.status, headers=kept)

    async def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises."""
        async with send(self._address, "GET", "/health") as answer:
            if answer.status != 200:
                raise ServerError((await answer.body()).decode("utf-8", "replace"))

    def __del__(self) -> None:
        """Drain, then end: Ray Serve drops the object when it takes a replica away."""
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(DRAIN_S + 5)
            process.kill()

    def _wait(self) -> str:
        """The address that the server says it is ready at. Raises ServerError."""
        assert self._process.stderr is not None
        said: list[str] = []
        for line in self._process.stderr:
            sys.stderr.write(line)
            said.append(line)
            if "ready at " in line:
                threading.Thread(target=self._forward, daemon=True).start()
                return line.split("ready at ")[1].split()[0]
        raise ServerError(f"The server ended while it started: {''.join(said[-3:])}")

    def _forward(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            sys.stderr.write(line)


def build(arguments: Mapping[str, str]) -> Any:
    """The application for `serve run`, and for a config file of Ray Serve."""
    from ray import serve

    given = {**PLACING, **arguments}
    resources: dict[str, Any] = {"num_cpus": float(given["num_cpus"])}
    if float(given["num_gpus"]):
        resources["num_gpus"] = float(given["num_gpus"])
    if float(given["neuron_cores"]):
        resources["resources"] = {"neuron_cores": float(given["neuron_cores"])}
    deployment = serve.deployment(
        name="ranvier",
        ray_actor_options=resources,
        autoscaling_config={
            "min_replicas": int(given["min_replicas"]),
            "max_replicas": int(given["max_replicas"]),
            "target_ongoing_requests": float(given["target_ongoing_requests"]),
        },
        max_ongoing_requests=4 * int(float(given["target_ongoing_requests"])),
        health_check_period_s=10,
        graceful_shutdown_timeout_s=DRAIN_S + 10,
    )(Replica)
    return deployment.bind(words(given))


def words(given: Mapping[str, str]) -> list[str]:
    """The command line of `ranvier serve`: what is not of replicas; true and false are switches."""
    options = {k: v for k, v in given.items() if k not in PLACING and k != "model"}
    flags = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        switch = {"true": f"--{flag}", "false": f"--no-{flag}"}.get(value.lower())
        flags.append(switch or f"--{flag}={value}")
    return [given["model"], *flags]
