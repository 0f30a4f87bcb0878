"""NxDI's `quantized` fields put a folder of quantised weights in the model's place."""

from __future__ import annotations

import json
import shutil

import pytest

from ranvier import LLM, SamplingParams
from ranvier.cli.main import main
from ranvier.core.errors import ConfigError

PROMPTS = [{"prompt_token_ids": list(range(3, 3 + n))} for n in (1, 7, 40)]
PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("quantised") / "int8"
    words = ["quantize", str(tiny_model), "--scheme", "int8", "--ignore", "o_proj"]
    assert main([*words, "--evaluation", "none", "--output", str(path)]) == 0
    return path


def wish(folder, **fields):
    own = {"quantized": True, "quantized_checkpoints_path": str(folder), **fields}
    return {"override_neuron_config": own}


def tokens(**options):
    with LLM(**options) as llm:
        outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]


def test_the_folder_by_either_name_is_one_model(tiny_options, folder):
    options = {**tiny_options, "dtype": "bfloat16"}
    by_fields = tokens(**options, **wish(folder, modules_to_not_convert=["o_proj"]))
    assert by_fields == tokens(**{**options, "model": str(folder)})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quantization_dtype": "f8e4m3"}, "int8 W8A16; quantization_dtype and"),
        ({"modules_to_not_convert": ["q_proj"]}, "'q_proj' is quantised in"),
        ({"modules_to_not_convert": ["z_proj"]}, "'z_proj' matches no module"),
        ({"quantization_type": "per_key_symmetric"}, "'per_key_symmetric' is not supported"),
        ({"activation_quantization_type": "dynamic"}, "activations keep 16 bits"),
    ],
)
def test_a_folder_of_another_kind_is_refused(tiny_options, folder, fields, said):
    with pytest.raises(ConfigError, match=said):
        LLM(**tiny_options, **wish(folder, **fields))


def test_a_folder_that_is_not_there_is_told_how_to_make(tiny_options, tmp_path):
    with pytest.raises(ConfigError, match="holds no quantised model") as error:
        LLM(**tiny_options, **wish(tmp_path / "none", modules_to_not_convert=["o_proj"]))
    assert f"ranvier quantize {tiny_options['model']} --scheme int8 --ignore o_proj" in str(
        error.value.hint
    )


def test_another_model_and_another_scheme_are_refused(tiny_options, folder, tmp_path):
    with pytest.raises(ConfigError, match="quantization=int4 contradicts"):
        LLM(**tiny_options, quantization="int4", **wish(folder))
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    with pytest.raises(ConfigError, match="has vocab_size 7, the model"):
        LLM(**tiny_options, **wish(other))
