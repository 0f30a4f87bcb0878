"""Loading over ranks takes the model once: what a mid-size model adds to a tiny one's processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.memory import Watch
from tests.cluster.serving import Ranks
from tests.numerics.test_tensor_parallel import LLAMA, make_model

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
BOUND = 1.2
LARGE = {
    **LLAMA, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
SIZES = {"dtype": "bfloat16", "max_model_len": 64, "max_num_seqs": 2, "max_num_batched_tokens": 16}
CHILD = """
import json, sys
from ranvier import LLM, SamplingParams
llm = LLM(**json.loads(sys.argv[1]))
params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
llm.generate([{"prompt_token_ids": [3, 4, 5]}], params, use_tqdm=False)
llm.close()
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: make_model(root / name, config)
            for name, config in (("tiny", LLAMA), ("large", LARGE))}  # fmt: skip


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


def offline(options):
    """The peak of a process that loads the artifact and generates."""
    words = [sys.executable, "-c", CHILD, json.dumps(options)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    with Watch(process.pid) as watch:
        assert process.wait(200) == 0
    return watch.peak_bytes


def served(options, count):
    """The peak of `count` ranks that load the artifact and answer."""
    ranks = Ranks(count, options)
    try:
        with Watch(*(process.pid for process in ranks.processes)) as watch:
            ranks.ready().complete(tokens=4)
        return watch.peak_bytes
    finally:
        ranks.end()


def weights_bytes(artifacts, tensor):
    """Of all ranks' files together, of the larger model."""
    sizes = []
    for manifest in artifacts.glob("*/manifest.json"):
        if json.loads(manifest.read_text())["key"]["tensor_parallel"] == tensor:
            files = Path(manifest).parent.glob("weights*")
            sizes.append(sum(path.stat().st_size for path in files))
    return max(sizes)


@pytest.mark.parametrize(("tensor", "processes"), [(1, 1), (4, 1), (2, 2), (4, 2)])
def test_loading_takes_the_model_once_and_little_more(models, artifacts, tensor, processes):
    peaks = {}
    for name, folder in models.items():
        options = {"model": str(folder), "tensor_parallel_size": tensor,
                   "artifacts": str(artifacts), **SIZES}  # fmt: skip
        offline(options)  # builds the artifact where it is not there
        peaks[name] = offline(options) if processes == 1 else served(options, processes)
    size = weights_bytes(artifacts, tensor)
    assert size > 180e6
    added = peaks["large"] - peaks["tiny"]
    # Every weight was read: less than nearly all of it would mean that the watch saw nothing.
    assert 0.9 * size <= added <= BOUND * size, f"{added / size:.2f} times {size}"
