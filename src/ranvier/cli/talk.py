"""What `chat` and `complete` share: from arguments to a Talk with a running server."""

from __future__ import annotations

import argparse
import asyncio

from ranvier.cli.options.flags import add_option_arguments, given_for
from ranvier.cli.options.settings import client_key
from ranvier.client.http import parse_url
from ranvier.client.openai import Server
from ranvier.client.options import ClientOptions, SamplingOptions
from ranvier.client.terminal import Talk, converse
from ranvier.core.errors import ServerError

__all__ = ["add_talk_arguments", "talk"]


def add_talk_arguments(parser: argparse.ArgumentParser, placeholder: str) -> None:
    """The options of a client; -q asks once and ends."""
    parser.add_argument(
        "-q", "--quick", metavar=placeholder, help="ask this, print the answer and end"
    )
    add_option_arguments(parser, ClientOptions, "client")
    add_option_arguments(parser, SamplingOptions, "sampling")


def talk(given: argparse.Namespace, *, system_prompt: str | None, is_chat: bool) -> int:
    """Ask once, or until the input ends; the exit code. Raises ServerError."""
    options = ClientOptions(**given_for(given, ClientOptions))
    server = Server(parse_url(options.url), options.api_key or client_key())
    model = options.model_name or _first_model(server)
    sampling = SamplingOptions(**given_for(given, SamplingOptions)).fields
    for name in ("max_tokens", "seed"):
        if getattr(options, name) is not None:
            sampling[name] = getattr(options, name)
    if options.stop:
        sampling["stop"] = list(options.stop)
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    one = Talk(server, model, is_chat, sampling, system, options.stats)
    if given.quick is not None:
        return 0 if one.ask(given.quick) else 130
    converse(one, f"{model} at {options.url}.")
    return 0


def _first_model(server: Server) -> str:
    names = asyncio.run(server.models())
    if not names:
        raise ServerError(f"{server.address.url} serves no model.")
    return names[0]
