"""Zipf traffic over many registered LoRA adapters and few slots, against as many adapters as slots.

    python benchmarks/adapter_traffic.py --adapters 1000 --slots 8

Random adapters of q and v, all requests there at the start, one engine in this process. Both kinds
take turns; output tokens a second. JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from ranvier import LLM, LoRARequest, SamplingParams
from ranvier.build.lora.form import linear_modules
from ranvier.cli.wire import locate
from ranvier.models.spec import DecoderSpec
from ranvier.models.table import resolve
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.safetensors_write import save_safetensors

MODULES = {
    "qv": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


def write_adapter(
    folder: Path, spec: DecoderSpec, rank: int, seed: int, modules: str = "qv"
) -> None:
    """A PEFT folder of random small matrices."""
    random, tensors = np.random.default_rng(seed), {}
    for module in linear_modules(spec):
        if module.name.rsplit(".", 1)[-1] not in MODULES[modules]:
            continue
        for layer in range(spec.layers):
            key = f"base_model.model.{module.name_at(layer)}.lora_"
            for side, shape in (("A", (rank, module.inputs)), ("B", (module.outputs, rank))):
                values = 0.02 * random.standard_normal(shape, np.float32)
                tensors[f"{key}{side}.weight"] = values
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "target_modules": list(MODULES[modules])}
    text = json.dumps({**config, "r": rank, "lora_alpha": rank})
    (folder / "adapter_config.json").write_text(text)
    save_safetensors(folder / "adapter_model.safetensors", tensors)


def zipf(count: int, requests: int, exponent: float, seed: int) -> list[int]:
    """Which adapter each request names: the k-th most wanted in proportion to k^-exponent."""
    weights = np.arange(1, count + 1) ** -exponent
    chosen = np.random.default_rng(seed).choice(count, requests, p=weights / weights.sum())
    return [int(index) for index in chosen]


def run(llm: LLM, folders: list[Path], given: argparse.Namespace, count: int, seed: int) -> float:
    """Output tokens a second."""
    named = zipf(count, given.requests, given.exponent, seed)
    asked = [LoRARequest(f"a{i}", 1, str(folders[i])) for i in named]
    random = np.random.default_rng(seed)
    prompts = [
        {"prompt_token_ids": random.integers(10, 40000, given.input).tolist()} for _ in asked
    ]
    params = SamplingParams(temperature=0, max_tokens=given.output, ignore_eos=True)
    start = time.perf_counter()
    llm.generate(prompts, params, lora_request=asked, use_tqdm=False)
    return given.requests * given.output / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    for name, value in (("adapters", 1000), ("slots", 8), ("rank", 16), ("requests", 512),
                        ("input", 64), ("output", 64), ("pairs", 3)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law")
    given = parser.parse_args()
    spec = resolve(open_checkpoint(locate(given.model)).config)
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / f"a{i}" for i in range(given.adapters)]
        for seed, folder in enumerate(folders):
            write_adapter(folder, spec, given.rank, seed)
        llm = LLM(
            given.model, quantization="none", enable_lora=True, max_loras=given.slots,
            max_lora_rank=given.rank, max_model_len=512, max_num_seqs=32,
            lora_target_modules=MODULES["qv"], artifacts=f"{root}/artifacts",
        )  # fmt: skip
        for index, folder in enumerate(folders):
            llm.load_adapter(f"a{index}", str(folder))
        pairs = []
        for seed in range(given.pairs):
            many = run(llm, folders, given, given.adapters, seed)
            few = run(llm, folders, given, given.slots, seed)
            pairs.append((many, few))
            print(f"{given.adapters} adapters {many:8.1f}, {given.slots} {few:8.1f} tokens/s")
        ratio = statistics.median(many / few for many, few in pairs)
        print(f"median ratio {ratio:.2f}")
        print(json.dumps({**vars(given), "pairs": pairs, "ratio_median": ratio}))
        llm.close()


if __name__ == "__main__":
    main()
