"""Pictures through a built artifact and its runner: greedy tokens are transformers'."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tests.conftest import byte_tokenizer
from tests.parity.vision_model import GOLDENS, case_of, media_of

from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact, open_runner
from ranvier.core.errors import DeviceError
from ranvier.core.step import Chunk, Sample, StepPlan
from ranvier.models.table import resolve

CASES = {"mllama": "apart", "qwen2_vl": "three", "gemma3": "two", "idefics3": "tiles"}


@pytest.fixture(scope="module", params=CASES)
def loaded(request, tmp_path_factory):
    """A family, its artifact's runner, and its spec."""
    folder = tmp_path_factory.mktemp("seeing") / request.param
    shutil.copytree(GOLDENS / request.param, folder)
    (folder / "tokenizer.json").write_text(byte_tokenizer(128))
    (folder / "tokenizer_config.json").write_text("{}")
    options = parse_options({
        "model": str(folder), "dtype": "float32", "max_model_len": 128, "max_num_seqs": 2,
        "max_num_batched_tokens": 128, "artifacts": str(folder.parent / "artifacts"),
    })  # fmt: skip
    runner = open_runner(ensure_artifact(options), options, [])
    yield request.param, runner, resolve(json.loads((folder / "config.json").read_text()))
    runner.close()


def generate(runner, case, count):
    """Greedy tokens, each next step given the last one's token on the device."""
    vision, at = runner.info.vision, 1
    for image in case.images:
        size = image.shape[0] if vision.is_cross else image.token_count
        case.rows.append(list(range(at, at + size)))
        runner.encode(image, case.rows[-1])
        at += size
    prompt = len(case.ids)
    blocks = list(range(1, 1 + -(-(prompt + count) // runner.info.block_tokens)))
    chunk = Chunk(0, case.ids.tolist(), blocks, media=media_of(vision, case, 0, prompt))
    handle = runner.dispatch(StepPlan(runner.info.step(prompt), [chunk], [Sample(0, prompt - 1)]))
    tokens = [int(runner.collect(handle).token_ids[0])]
    for start in range(prompt, prompt + count - 1):
        chunk = Chunk(start, [0], blocks, 0, media=media_of(vision, case, start, start + 1))
        handle = runner.dispatch(StepPlan(runner.info.step(1), [chunk], [Sample(0, 0)]))
        tokens.append(int(runner.collect(handle).token_ids[0]))
    return tokens


def test_pictures_through_the_runner_give_the_reference_tokens(loaded):
    family, runner, spec = loaded
    golden = np.load(GOLDENS / family / "golden.npz")
    for label in ("none", CASES[family]):
        case = case_of(family, spec, label, golden[f"{label}/ids"])
        wanted = golden[f"{label}/tokens"].tolist()
        assert generate(runner, case, len(wanted)) == wanted, label


def test_a_picture_beyond_the_largest_encoder_is_refused_and_nothing_is_lost(loaded):
    family, runner, spec = loaded
    golden, label = np.load(GOLDENS / family / "golden.npz"), CASES[family]
    case = case_of(family, spec, label, golden[f"{label}/ids"])
    image, most = case.images[0], runner.info.vision.units[-1]
    many = {"grid": (1, most + 2, 2), "shape": (most + 1, *image.shape[1:])}
    large = type(image)(**{**{f: getattr(image, f) for f in image.__struct_fields__}, **many})
    with pytest.raises(DeviceError, match=f"largest encode program takes {most}"):
        runner.encode(large, [1])
    wanted = golden[f"{label}/tokens"].tolist()
    assert generate(runner, case, len(wanted)) == wanted
