"""Structured outputs on a tiny model whose text is noise: every text is what its grammar allows."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from tests.adapters import LLAMA, modules_of, random_tensors, save_adapter

from ranvier import LLM, LoRARequest, SamplingParams, StructuredOutputsParams
from ranvier.core.errors import RequestError

K = 3
SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 99},
        "on": {"type": "boolean"},
        "kind": {"enum": ["a", "bb"]},
    },
    "required": ["id", "on", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["ngram", "draft_model"])
def guessing(request, tiny_options):
    options = {**tiny_options, "max_model_len": 128}
    config = {"method": request.param, "num_speculative_tokens": K}
    if request.param == "ngram":
        config["prompt_lookup_min"] = 1
    else:
        config["model"] = options["model"]
    with LLM(**options, speculative_config=config) as model:
        model._engine.scheduler.speculation.policy.choose = lambda rows, rooms: K * any(rooms)
        yield model


def outputs(model, structured, **more):
    options = {"temperature": 1.0, "seed": 3, "max_tokens": 100, **more}
    params = SamplingParams(structured_outputs=structured, **options)
    (found,) = model.generate("id", params, use_tqdm=False)
    return found.outputs


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_sequence_is_valid_json(llm, temperature):
    structured = StructuredOutputsParams(json=SCHEMA)
    for part in outputs(llm, structured, temperature=temperature, n=4):
        assert part.finish_reason == "stop"
        jsonschema.validate(json.loads(part.text), SCHEMA)


def test_regex_choice_and_lark(llm):
    pattern = r"[0-9]{3}-(x|yy)"
    assert re.fullmatch(pattern, outputs(llm, StructuredOutputsParams(regex=pattern))[0].text)
    texts = ["yes", 'no"x"', "maybe"]
    drawn = {part.text for part in outputs(llm, StructuredOutputsParams(choice=texts), n=8, seed=1)}
    assert drawn <= set(texts)
    lark = 'start: "(" start ")" | "x"'
    (part,) = outputs(llm, StructuredOutputsParams(grammar=lark), max_tokens=40)
    assert re.fullmatch(r"\(*x\)*", part.text) or part.finish_reason == "length"


def test_guessing_changes_no_token(llm, guessing):
    for structured in (
        StructuredOutputsParams(json=SCHEMA),
        StructuredOutputsParams(regex="(ab){9}c{5,12}"),
    ):
        for temperature in (0.0, 1.0):
            options = {"temperature": temperature, "n": 2, "max_tokens": 50}
            plain = outputs(llm, structured, **options)
            guessed = outputs(guessing, structured, **options)
            assert [p.token_ids for p in plain] == [p.token_ids for p in guessed]
    assert guessing.stats().accepted_tokens > 0


def test_a_mask_and_another_that_leave_nothing_end_that_sequence_alone(llm):
    structured = StructuredOutputsParams(choice=["yes"])
    (odd,) = llm.get_tokenizer().encode("z").ids[-1:]
    bad = SamplingParams(structured_outputs=structured, allowed_token_ids=[odd], max_tokens=9)
    good = SamplingParams(structured_outputs=structured, max_tokens=9)
    with pytest.raises(RequestError, match="structured_outputs"):
        llm.generate(["a", "b"], [bad, good], use_tqdm=False)
    assert outputs(llm, structured)[0].text == "yes"


def test_an_adapter_s_text_keeps_to_its_grammar(tiny_options, tmp_path):
    folder = save_adapter(tmp_path / "a", random_tensors(modules_of(LLAMA), 4), r=4)
    structured = StructuredOutputsParams(json=SCHEMA)
    params = SamplingParams(structured_outputs=structured, temperature=1, seed=3, max_tokens=100)
    with LLM(**tiny_options, enable_lora=True, max_lora_rank=8) as model:
        asked = [LoRARequest("a", 1, str(folder)), None]
        found = model.generate(["id"] * 2, params, lora_request=asked, use_tqdm=False)
    texts = [output.outputs[0].text for output in found]
    assert texts[0] != texts[1]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_a_sequence_that_gave_up_its_blocks_goes_on_in_its_grammar(tiny_options, llm):
    structured = StructuredOutputsParams(regex="(ab|cd){20,29}")
    params = [
        SamplingParams(structured_outputs=structured, temperature=1, seed=i, max_tokens=60)
        for i in range(4)
    ]
    wanted = llm.generate(["id"] * 4, params, use_tqdm=False)
    with LLM(**tiny_options, num_gpu_blocks_override=5, enable_prefix_caching=False) as scarce:
        found = scarce.generate(["id"] * 4, params, use_tqdm=False)
        assert scarce._engine.scheduler.preemptions > 0
    assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in wanted]


@pytest.mark.parametrize(
    "structured",
    [{"regex": "(a"}, {"grammar": "start: b"}, {"json": "{"}, {"json": {"type": "odd"}}],
)
def test_a_wrong_grammar_is_refused_before_anything_runs(llm, structured):
    with pytest.raises(RequestError, match="structured_outputs") as caught:
        outputs(llm, StructuredOutputsParams(**structured))
    assert caught.value.param == "structured_outputs"
    assert outputs(llm, StructuredOutputsParams(choice=["yes"]))[0].text == "yes"


@pytest.mark.parametrize(
    "given",
    [
        {}, {"json": {}, "regex": "a"}, {"choice": []}, {"choice": ["a", ""]}, {"regex": 3},
        {"regex": "a", "disable_any_whitespace": True}, {"structural_tag": "{}"},
        {"json": {}, "disable_additional_properties": True},
    ],
)  # fmt: skip
def test_wrong_params_are_refused(given):
    with pytest.raises(RequestError, match="structured_outputs"):
        StructuredOutputsParams(**given)


@pytest.mark.parametrize("more", [{"ignore_eos": True}, {"min_tokens": 2}])
def test_what_says_where_a_text_ends_is_refused_beside_a_grammar(more):
    structured = StructuredOutputsParams(choice=["yes"])
    with pytest.raises(RequestError, match=next(iter(more))):
        SamplingParams(structured_outputs=structured, **more)
    with pytest.raises(RequestError, match="StructuredOutputsParams"):
        SamplingParams(structured_outputs={"json": {}})
