"""A child process with four CPU devices: tokens of prompts with pictures over ranks, a line each.

Arguments: a folder for artifacts, then a JSON list of {"name", "family", "labels", "options"}: the
prompts and pictures of golden cases, asked of any model of their family. The largest number of
ranks comes first, since jax makes its devices once.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact, load_engine, open_model
from ranvier.core.media import PromptMedia
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.models.table import resolve
from tests.parity.vision_cases import GOLDENS, pictures_of, rope_of


def request_of(spec, family, label):
    ids = np.load(GOLDENS / family / "golden.npz")[f"{label}/ids"]
    images = pictures_of(family, label, ids)
    rope, delta = rope_of(spec, ids, images)
    media = PromptMedia(
        images=tuple(images), rope=b"" if rope is None else np.ascontiguousarray(rope).tobytes(),
        rope_delta=delta,
    )  # fmt: skip
    return Request(
        request_id=label, prompt_token_ids=ids.tolist(), seed=0, media=media if images else None,
        params=SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True),
    )  # fmt: skip


def tokens_of(engine, requests):
    """Each request's tokens, all of them running together."""
    tokens, left = {request.request_id: [] for request in requests}, len(requests)
    for request in requests:
        engine.admit(request)
    while left:
        for event in engine.turn():
            assert event.error is None
            tokens[event.request_id] += event.token_ids
            left -= event.finish_reason is not None
    return tokens


def main(artifacts, cases):
    for case in json.loads(cases):
        options = parse_options({
            "dtype": "float32", "max_model_len": 128, "max_num_seqs": 4,
            "max_num_batched_tokens": 32, "artifacts": artifacts, **case["options"],
        })  # fmt: skip
        spec = resolve(open_model(options).config)
        engine = load_engine(ensure_artifact(options), options, [])
        requests = [request_of(spec, case["family"], label) for label in case["labels"]]
        tokens = tokens_of(engine, requests)
        engine.runner.close()
        print(json.dumps({"name": case["name"], "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
