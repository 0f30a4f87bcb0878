"""`ranvier serve`: load, then serve on loopback until a signal; drains by default."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn

from ranvier.cli.front import FrontOptions
from ranvier.cli.settings import Options
from ranvier.cli.wire import open_engine
from ranvier.core.limits import LIMITS
from ranvier.engine.client import ThreadClient
from ranvier.server.app import ServerOptions, make_app

__all__ = ["serve"]

DRAIN_S = 30


def serve(options: Options, front: FrontOptions, start_s: float) -> None:
    """Serve until SIGINT or SIGTERM. Requests in flight get DRAIN_S seconds to finish."""
    phases = [("imports and options", time.perf_counter() - start_s)]
    engine, codec = open_engine(options, phases)
    _show(phases, time.perf_counter() - start_s)
    server = ServerOptions(
        model_name=front.served_model_name[0] if front.served_model_name else options.model,
        api_keys=front.api_key,
        is_strict=front.strict_params,
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await state["app"](scope, receive, send)

    state: dict[str, Any] = {}

    @contextlib.asynccontextmanager
    async def running() -> AsyncIterator[None]:
        client = ThreadClient(engine)
        state["app"] = make_app(server, codec, client, created=int(time.time()))
        yield
        await client.close()

    async def main() -> None:
        async with running():
            config = uvicorn.Config(
                app,
                host=front.host,
                port=front.port,
                uds=front.uds,
                lifespan="off",
                log_level="warning",
                h11_max_incomplete_event_size=LIMITS.header_bytes_max,
                timeout_graceful_shutdown=DRAIN_S,
            )
            where = front.uds or f"http://{front.host}:{front.port}"
            print(f"ranvier: ready at {where} (model {server.model_name})", file=sys.stderr)
            await uvicorn.Server(config).serve()

    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main())


def _show(phases: list[tuple[str, float]], total_s: float) -> None:
    """The start's phases; `other` makes them sum to the wall time."""
    rows = [*phases, ("other", total_s - sum(s for _, s in phases)), ("total", total_s)]
    for name, seconds in rows:
        print(f"ranvier: {name:<24} {seconds:7.2f} s", file=sys.stderr)
