"""Runners with adapter slots for the tests: built as artifacts, driven without an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ranvier.build.build import artifact_key, build_artifact
from ranvier.build.drafting import Source
from ranvier.build.lora.form import adapter_form, linear_modules
from ranvier.build.programs import Sizes
from ranvier.core.buckets import BucketSet
from ranvier.core.step import Chunk, Sample, StepPlan
from ranvier.models.table import resolve
from ranvier.runtime.load import load_runner
from ranvier.targets.table import find_target
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.lora.pack import read_adapter
from ranvier.weights.safetensors import SafetensorsFile
from ranvier.weights.safetensors_write import save_safetensors
from tests.adapters import random_tensors, save_adapter
from tests.conftest import byte_tokenizer

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens"
LENGTH = 64


class Device:
    """A model built with slots, and its runner."""

    def __init__(self, model, root, kernels="cpu", slots=3, rank_max=64, dtype="float32", **more):
        checkpoint = open_checkpoint(model) if isinstance(model, Path) else model
        self.spec = resolve(checkpoint.config)
        self.sizes = Sizes(
            dtype=dtype, kernels=kernels, max_model_len=LENGTH, max_num_seqs=4, block_tokens=32,
            block_count=9, kv_layout="block", buckets=BucketSet(tokens=(48,)), logprobs_max=1,
            edits_max=4, adapter_slots=slots, adapter_rank_max=rank_max if slots else 0, **more,
        )  # fmt: skip
        source = Source(checkpoint, self.spec)
        key = artifact_key(source, self.sizes, find_target("cpu"), "")
        self.folder = build_artifact([root], key, source, self.sizes, lambda _: None)
        self.runner = load_runner(self.folder, [])
        self.form = adapter_form(self.spec, self.sizes)

    def place(self, slot, folder):
        """Read and place a whole adapter; how many pieces it took."""
        adapter = None if folder is None else read_adapter(folder, self.form)
        return len(list(self.runner.place_adapter(slot, adapter)))

    def generate(self, sequences, count=6):
        """Greedy tokens and log-probabilities of (prompt, slot)s, all in one batch."""
        histories = [list(prompt) for prompt, _ in sequences]
        chunks = [(0, list(prompt)) for prompt, _ in sequences]
        logprobs = [[] for _ in sequences]
        for _ in range(count):
            plan = StepPlan(
                self.runner.info.step(sum(len(ids) for _, ids in chunks)),
                [Chunk(start, ids, [1 + 2 * i, 2 + 2 * i], slot=sequences[i][1])
                 for i, (start, ids) in enumerate(chunks)],
                [Sample(i, len(ids) - 1, logprobs=1) for i, (_, ids) in enumerate(chunks)],
            )  # fmt: skip
            result = self.runner.collect(self.runner.dispatch(plan))
            for i, token in enumerate(map(int, result.token_ids)):
                histories[i].append(token)
                logprobs[i].append(float(result.logprobs[i]))
            chunks = [(len(history) - 1, [history[-1]]) for history in histories]
        tokens = [history[-count:] for history in histories]
        return [(t, np.asarray(p)) for t, p in zip(tokens, logprobs, strict=True)]


def model_of(root, family):
    """A golden's model in f32, so that merging rounds nothing, with a tokenizer."""
    model = root / family
    if not model.exists():
        model.mkdir()
        for name in ("config.json", "generation_config.json"):
            (model / name).write_bytes((GOLDENS / family / name).read_bytes())
        file = SafetensorsFile(GOLDENS / family / "model.safetensors")
        tensors = {name: file.read(name).astype(np.float32) for name in file.names()}
        save_safetensors(model / "model.safetensors", tensors)
        (model / "tokenizer.json").write_text(byte_tokenizer(160))
    return model


def adapter_of(spec, folder, names=None, rank=8, seed=0, scale=1.0, **config):
    """A random adapter of a model's linears, strong enough to change its tokens."""
    modules = {
        module.name_at(layer): (module.outputs, module.inputs)
        for module in linear_modules(spec)
        for layer in range(spec.layers)
        if names is None or module.name.rsplit(".", 1)[-1] in names
    }
    tensors = random_tensors(modules, rank, seed, scale=scale)
    return save_adapter(folder, tensors, r=rank, lora_alpha=rank, **config)
