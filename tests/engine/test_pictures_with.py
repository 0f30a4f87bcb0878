"""Pictures together with adapters of the text side, and with guesses from the prompt."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.adapters import random_tensors, save_adapter
from tests.engine.test_pictures_llm import GREEDY, MARK, picture, prompt, tokenizer, tokens
from tests.parity.vision_cases import GOLDENS

from ranvier import LLM, LoRARequest
from ranvier.build.lora.form import linear_shapes
from ranvier.cli.main import main
from ranvier.core.errors import AdapterError
from ranvier.models.table import resolve

PROCESSORS = {
    "llava": {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
    "mllama_tiles": {"size": {"height": 16, "width": 16}, "max_image_tiles": 4},
}
MARKS = {"llava": MARK, "mllama_tiles": "<|image|>"}


def prompts_of(mark):
    """Of text alone, one picture and three."""
    return (
        "w10 w11 w12",
        prompt(f"w10 {mark} w11", picture(1)),
        prompt(f"{mark} w20 {mark} {mark} w21", picture(1), picture(2), picture(3)),
    )


def make_model(folder, family):
    shutil.copytree(GOLDENS / family, folder)
    (folder / "tokenizer.json").write_text(tokenizer().replace(MARK, MARKS[family]))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family]))
    config = json.loads((folder / "config.json").read_text())
    return linear_shapes(resolve(config))


@pytest.fixture(scope="module", params=PROCESSORS)
def given(request, tmp_path_factory):
    """The options of a family's model, the model merged with an adapter, and the adapter."""
    root = tmp_path_factory.mktemp("with")
    modules = make_model(root / "model", request.param)
    adapter = save_adapter(root / "adapter", random_tensors(modules, scale=2.0))
    words = ["merge-lora", str(root / "model"), str(adapter), "--output", str(root / "merged")]
    assert main(words) == 0
    shutil.copy(root / "model/preprocessor_config.json", root / "merged")
    options = {"dtype": "float32", "max_model_len": 192, "max_num_seqs": 4,
               "artifacts": str(root / "artifacts")}  # fmt: skip
    return root, options, MARKS[request.param]


@pytest.fixture(scope="module")
def wanted(given):
    """Tokens of each prompt alone, of the model and of the merged one."""
    root, options, mark = given
    found = {}
    for name in ("model", "merged"):
        with LLM(str(root / name), **options) as llm:
            found[name] = [tokens(llm, one)[0] for one in prompts_of(mark)]
    assert found["model"] != found["merged"]
    return found


def test_a_batch_of_adapters_and_pictures_gives_each_its_merged_models_tokens(given, wanted):
    root, options, mark = given
    adapter = LoRARequest("adapter", 1, str(root / "adapter"))
    asked = [None, adapter, None, adapter, adapter, None]
    prompts = [one for one in prompts_of(mark) for _ in range(2)]
    with LLM(str(root / "model"), enable_lora=True, max_loras=1, **options) as llm:
        outputs = llm.generate(prompts, GREEDY, lora_request=asked, use_tqdm=False)
    found = [output.outputs[0].token_ids for output in outputs]
    names = ["model" if one is None else "merged" for one in asked]
    assert found == [wanted[name][i // 2] for i, name in enumerate(names)]


def test_guesses_from_the_prompt_change_no_token_behind_pictures(given, wanted):
    root, options, mark = given
    guess = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}
    with LLM(str(root / "model"), speculative_config=guess, **options) as llm:
        assert tokens(llm, *prompts_of(mark)) == wanted["model"]
        repeating = prompt(f"{mark} " + "w20 w21 w22 " * 6, picture(4))
        own = tokens(llm, repeating)
    with LLM(str(root / "model"), **options) as llm:
        assert tokens(llm, repeating) == own


def test_adapters_of_an_encoder_are_refused_by_name(given, tmp_path):
    root, options, _ = given
    module = "vision_model.transformer.layers.0.self_attn.q_proj"
    adapter = save_adapter(tmp_path / "eyes", random_tensors({module: (32, 32)}))
    message = pytest.raises(AdapterError, match=f"{module}: this model has no such linear")
    with LLM(str(root / "model"), enable_lora=True, max_loras=1, **options) as llm, message:
        llm.load_adapter("eyes", str(adapter))
