"""Time to first token of one picture by its tiles, on Llama 3.2 11B Vision's shape, much narrower.

    python benchmarks/picture_tiles.py

Tiles are as long as the real ones (1601 patches), layers fewer and an eighth as wide; weights are
random. Every picture is a new one, so that each is encoded. JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from ranvier import LLM, SamplingParams
from ranvier.models.table import resolve
from ranvier.weights.safetensors_write import save_safetensors

SIDE, MARK, IMAGE = 560, "<|image|>", 512
SIZES = {1: (1, 1), 2: (1, 2), 3: (3, 1), 4: (2, 2)}
CONFIG = {
    "architectures": ["MllamaForConditionalGeneration"], "model_type": "mllama",
    "image_token_index": IMAGE,
    "text_config": {
        "vocab_size": IMAGE, "hidden_size": 512, "intermediate_size": 1792,
        "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 2,
        "cross_attention_layers": [3, 8], "max_position_embeddings": 4096,
    },
    "vision_config": {
        "hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 8,
        "num_global_layers": 2, "attention_heads": 2, "image_size": SIDE, "patch_size": 14,
        "intermediate_layers_indices": [1, 3, 5], "vision_output_dim": 640,
    },
}  # fmt: skip
PROCESSOR = {"size": {"height": SIDE, "width": SIDE}, "max_image_tiles": 4}


def write_model(folder: Path) -> None:
    """A folder of random weights; zeros where published checkpoints hold zeros."""
    random, tensors = np.random.default_rng(0), {}
    for array in resolve(CONFIG).arrays:
        for names in array.sources:
            rows, *rest = array.shape[1:] if len(array.shape) > 1 else (1,)
            for name in names:
                shape = (rows // len(names), *rest)
                is_norm = "norm" in name and name.endswith("weight")
                values = 0.02 * random.standard_normal(shape, np.float32) + is_norm
                tensors[name] = 0 * values if "tile" in name else values
    folder.mkdir()
    save_safetensors(folder / "model.safetensors", tensors)
    vocabulary = {MARK if i == IMAGE else f"w{i}": i for i in range(IMAGE + 1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(MARK, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, fields in (("config", CONFIG), ("preprocessor_config", PROCESSOR),
                         ("tokenizer_config", {})):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(fields))


def first_token_s(llm: LLM, tiles: int, seed: int) -> float:
    """Seconds to the first token of a prompt with a new picture of so many tiles."""
    rows, columns = SIZES[tiles]
    shape = (rows * SIDE, columns * SIDE, 3)
    picture = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    prompt = {"prompt": f"{MARK} w1 w2 w3", "multi_modal_data": {"image": picture}}
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    start = time.perf_counter()
    llm.generate(prompt, params, use_tqdm=False)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        write_model(Path(root) / "model")
        llm = LLM(f"{root}/model", max_model_len=256, max_num_seqs=2, artifacts=f"{root}/artifacts")
        found: dict[int, list[float]] = {tiles: [] for tiles in SIZES}
        for repeat in range(given.repeats + 1):
            for tiles in SIZES:
                second = first_token_s(llm, tiles, 10 * repeat + tiles)
                if repeat:
                    found[tiles].append(second)
        llm.close()
    medians = {tiles: statistics.median(seconds) for tiles, seconds in found.items()}
    for tiles, seconds in medians.items():
        print(f"{tiles} tiles: {seconds:6.3f} s, {seconds / medians[4]:.2f} of 4 tiles")
    print(json.dumps({"repeats": given.repeats, "first_token_s": medians}))


if __name__ == "__main__":
    main()
