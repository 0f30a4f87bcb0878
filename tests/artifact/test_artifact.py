"""Artifacts: built once, reused, every corruption found, misses explained, no late compile."""

from __future__ import annotations

import shutil

import jax
import pytest

from ranvier import LLM, SamplingParams
from ranvier.artifact.read import read_manifest, verify
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact
from ranvier.core.errors import ArtifactError

PARAMS = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture(scope="module")
def artifact(tiny_options):
    return ensure_artifact(parse_options(tiny_options))


def test_a_matching_artifact_is_reused_untouched(tiny_options, artifact):
    before = {p: p.stat().st_mtime_ns for p in artifact.rglob("*")}
    assert ensure_artifact(parse_options(tiny_options)) == artifact
    assert {p: p.stat().st_mtime_ns for p in artifact.rglob("*")} == before


def test_an_artifact_is_whole(artifact):
    assert verify(artifact) == []


def test_every_flipped_byte_truncation_and_loss_is_found(artifact, tmp_path):
    for name in read_manifest(artifact).files:
        for harm in ("flip", "truncate", "remove"):
            copy = tmp_path / artifact.name
            shutil.copytree(artifact, copy)
            path = copy / name
            data = bytearray(path.read_bytes())
            if harm == "flip":
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
            elif harm == "truncate":
                path.write_bytes(data[:-1])
            else:
                path.unlink()
            (fault,) = verify(copy)
            assert name in fault
            shutil.rmtree(copy)


def test_a_damaged_manifest_is_refused(artifact, tmp_path):
    copy = tmp_path / artifact.name
    shutil.copytree(artifact, copy)
    text = (copy / "manifest.json").read_text()
    for damaged in (text[:-5], text.replace('"block_tokens":32', '"block_tokens":64', 1), "[]"):
        (copy / "manifest.json").write_text(damaged)
        assert verify(copy)


def test_a_required_artifact_that_is_missing_names_what_differs(tiny_options, artifact):
    changed = {**tiny_options, "max_num_seqs": 2, "require_artifacts": True}
    with pytest.raises(ArtifactError, match="max_num_seqs: 2, there 4"):
        ensure_artifact(parse_options(changed))


def test_nothing_is_traced_or_compiled_after_ready(tiny_options):
    llm = LLM(**tiny_options)
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, _, **__: events.append(name))
    prompts = [list(range(3, 3 + n)) for n in (1, 2, 15, 16, 17, 31, 33, 60, 100)]
    params = SamplingParams(max_tokens=5, presence_penalty=0.5, logprobs=3, seed=1)
    llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    assert [e for e in events if "compile" in e or "trace" in e or "lower" in e] == []
