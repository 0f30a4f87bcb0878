"""Adapters beside quantised weights: what the scheme's values plus B A x give, in dense f32.

Merging first would round the adapter with the weights, so the oracle is a folder of the rounded
values into which the adapter is merged afterwards.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from tests.adapters import LLAMA, modules_of, random_tensors, save_adapter
from tests.numerics.isa import NEEDS_KERNELS
from tests.numerics.lora_device import model_of

from ranvier import LLM, LoRARequest, SamplingParams
from ranvier.cli.main import main
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.quantise.loading import QuantisingCheckpoint
from ranvier.weights.quantise.scheme import parse_scheme
from ranvier.weights.safetensors_write import save_safetensors

pytestmark = NEEDS_KERNELS
PROMPT = list(range(3, 70))
SHAPES = {"low": (4, None), "high": (16, ("q_proj", "v_proj"))}
FARTHEST = {"int8": 0.001, "int8-dynamic": 0.15, "int4": 0.15}
"""Of log-probabilities from the oracle's. Found: 0.0003 beside rows of 16 bits, up to 0.08 beside
those of 8, where the random model's values lie between -10 and 0."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return model_of(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    root, found = tmp_path_factory.mktemp("adapters"), {}
    for seed, (name, (rank, modules)) in enumerate(SHAPES.items()):
        tensors = random_tensors(modules_of(LLAMA, names=modules), rank, seed)
        found[name] = save_adapter(root / name, tensors, r=rank, lora_alpha=rank)
    return found


@pytest.fixture(scope="module", params=FARTHEST)
def scheme(request):
    return request.param


@pytest.fixture(scope="module")
def oracle(scheme, base, adapters, tiny_options, tmp_path_factory):
    """Log-probabilities of the prompt's tokens by adapter, from merged dense folders."""
    root = tmp_path_factory.mktemp("oracle")
    rounded = QuantisingCheckpoint(open_checkpoint(base), parse_scheme(scheme))
    dense = shutil.copytree(base, root / "dense")
    tensors = {name: rounded.read(name).astype(np.float32) for name in rounded.tensor_names()}
    save_safetensors(dense / "model.safetensors", tensors)
    models = {"": dense}
    for name, folder in adapters.items():
        models[name] = root / name
        assert main(["merge-lora", str(dense), str(folder), "--output", str(models[name])]) == 0
    found = {}
    for name, model in models.items():
        with LLM(**{**tiny_options, "model": str(model)}) as llm:
            [found[name]] = scores(llm, [None])
    return found


@pytest.fixture(scope="module")
def options(tiny_options, base, scheme):
    lora = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 16}
    return {**tiny_options, "model": str(base), "quantization": scheme, **lora}


def scores(llm, requests):
    """Log-probabilities of the prompt's own tokens, for each request's adapter in one batch."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    outputs = llm.generate(
        [{"prompt_token_ids": PROMPT}] * len(requests), params, lora_request=requests,
        use_tqdm=False,
    )  # fmt: skip
    return [
        np.array([e[t].logprob for t, e in zip(PROMPT[1:], o.prompt_logprobs[1:], strict=True)])
        for o in outputs
    ]


def test_a_mixed_batch_is_each_merged_model_of_the_rounded_values(
    options, oracle, adapters, scheme
):
    with LLM(**options) as llm:
        requests = [None, *(LoRARequest(name, 1, str(path)) for name, path in adapters.items())]
        found = scores(llm, requests)
        assert llm.stats().compiles_after_ready == 0
    for name, own in zip(["", *adapters], found, strict=True):
        far = np.abs(own - oracle[name]).max()
        assert 0 < far < FARTHEST[scheme], name
        others = [oracle[other] for other in oracle if other != name]
        assert min(np.abs(own - other).max() for other in others) > 5 * far


def test_guesses_change_no_token_beside_quantised_weights(options, adapters):
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    requests = [None, *(LoRARequest(name, 1, str(path)) for name, path in adapters.items())]
    prompts = [{"prompt_token_ids": PROMPT[:20] * 3}] * len(requests)

    def run(**more):
        with LLM(**options, **more) as llm:
            if more:
                policy = llm._engine.scheduler.speculation.policy
                policy.choose = lambda rows, rooms: 3 if any(rooms) else 0
            outputs = llm.generate(prompts, params, lora_request=requests, use_tqdm=False)
            return [o.outputs[0].token_ids for o in outputs], llm.stats().drafts

    plain, _ = run()
    guessed, drafts = run(speculative_config={"method": "ngram", "num_speculative_tokens": 3})
    assert guessed == plain and drafts > 0
