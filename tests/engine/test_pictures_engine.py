"""Requests with pictures through the real engine and programs: transformers' tokens, in any mix."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tests.conftest import byte_tokenizer
from tests.parity.vision_model import GOLDENS, case_of

from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact, load_engine
from ranvier.core.media import PromptMedia
from ranvier.core.request import Request
from ranvier.core.sampling import SamplingParams
from ranvier.models.table import resolve

FAMILIES = {"mllama": ("none", "later", "three"), "qwen2_vl": ("none", "one", "three")}


@pytest.fixture(scope="module", params=FAMILIES)
def engine_of(request, tmp_path_factory):
    family = request.param
    folder = tmp_path_factory.mktemp("engine") / family
    shutil.copytree(GOLDENS / family, folder)
    (folder / "tokenizer.json").write_text(byte_tokenizer(128))
    (folder / "tokenizer_config.json").write_text("{}")
    options = parse_options({
        "model": str(folder), "dtype": "float32", "max_model_len": 128, "max_num_seqs": 4,
        "max_num_batched_tokens": 16, "artifacts": str(folder.parent / "artifacts"),
    })  # fmt: skip
    engine = load_engine(ensure_artifact(options), options, [])
    yield family, engine, resolve(json.loads((folder / "config.json").read_text()))
    engine.runner.close()


def request_of(family, spec, label, name):
    golden = np.load(GOLDENS / family / "golden.npz")
    case = case_of(family, spec, label, golden[f"{label}/ids"])
    rope = b"" if case.rope is None else np.ascontiguousarray(case.rope).tobytes()
    media = PromptMedia(images=tuple(case.images), rope=rope, rope_delta=case.rope_delta)
    wanted = golden[f"{label}/tokens"].tolist()
    request = Request(
        request_id=name, prompt_token_ids=case.ids.tolist(), seed=0,
        params=SamplingParams(temperature=0.0, max_tokens=len(wanted), ignore_eos=True),
        media=media if case.images else None,
    )  # fmt: skip
    return request, wanted


def run(engine, requests):
    """Each request's tokens, all of them running together."""
    tokens = {request.request_id: [] for request in requests}
    for request in requests:
        engine.admit(request)
    left = len(requests)
    while left:
        for event in engine.turn():
            assert event.error is None
            tokens[event.request_id] += event.token_ids
            left -= event.finish_reason is not None
    return tokens


def test_a_mix_with_and_without_pictures_gives_the_reference_tokens(engine_of):
    family, engine, spec = engine_of
    made = {label: request_of(family, spec, label, label) for label in FAMILIES[family]}
    found = run(engine, [request for request, _ in made.values()])
    assert found == {label: wanted for label, (_, wanted) in made.items()}


def test_a_repeated_picture_is_not_encoded_again(engine_of):
    family, engine, spec = engine_of
    label = FAMILIES[family][-1]
    encoded, encode = [], engine.runner.encode
    engine.reset_mm_cache()
    engine.reset_prefix_cache()
    engine.runner.encode = lambda image, rows: (encoded.append(image.digest), encode(image, rows))
    try:
        for turn in range(2):
            request, wanted = request_of(family, spec, label, f"again-{turn}")
            assert run(engine, [request]) == {f"again-{turn}": wanted}
            engine.reset_prefix_cache()
    finally:
        del engine.runner.encode
    assert len(encoded) == len(set(encoded)) == len(request.media.images)
    assert engine.stats().compiles_after_ready == 0
