"""LLM by vLLM's names: forms of prompts, signatures, outputs, and refusals by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import pytest

import ranvier
from ranvier import LLM, EngineArgs, SamplingParams
from ranvier.core.errors import ConfigError, RequestError
from ranvier.core.sampling import UNSUPPORTED
from ranvier.offline import llm as module
from ranvier.offline.metrics import Counter, Gauge

PARAMS = SamplingParams(temperature=0, max_tokens=3)


def ids(outputs):
    return [out.outputs[0].token_ids for out in outputs]


@pytest.mark.parametrize(
    "prompts",
    [
        "ab",
        ["ab"],
        {"prompt": "ab"},
        [{"prompt": "ab"}],
        ("ab",),
        {"prompt": "ab", "cache_salt": "s"},
    ],
)
def test_every_form_of_text_gives_the_same(llm, prompts):
    expected = llm.generate("ab", PARAMS, use_tqdm=False)
    outputs = llm.generate(prompts, PARAMS, use_tqdm=False)
    assert ids(outputs) == ids(expected)
    assert outputs[0].prompt == "ab"


@pytest.mark.parametrize(
    "prompts",
    [[5, 6], [[5, 6]], {"prompt_token_ids": [5, 6]}, [{"prompt_token_ids": (5, 6)}], (5, 6)],
)
def test_every_form_of_ids_gives_the_same(llm, prompts):
    (output,) = llm.generate(prompts=prompts, sampling_params=PARAMS, use_tqdm=False)
    assert output.prompt is None
    assert output.prompt_token_ids == [5, 6]
    assert [output.outputs[0].token_ids] == ids(llm.generate([5, 6], PARAMS, use_tqdm=False))


def test_prompts_of_all_forms_at_once_keep_their_order(llm):
    outputs = llm.generate(["ab", [5], {"prompt": "c"}], [PARAMS] * 3, use_tqdm=False)
    assert [out.prompt for out in outputs] == ["ab", None, "c"]


@pytest.mark.parametrize(
    ("prompts", "param"),
    [
        (5, "prompt"), ([None], "prompt"), ([b"ab"], "prompt"), ({}, "prompt"),
        ({"prompt": 5}, "prompt"), ({"prompt_token_ids": "ab"}, "prompt_token_ids"),
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, "multi_modal_data"),
        ({"prompt": "a", "promt": 1}, "promt"), ({"prompt": "a", "cache_salt": 5}, "cache_salt"),
        ([[5, "x"]], "prompt"), ([[True]], "prompt"), ([[99999]], "prompt"), ([[-1]], "prompt"),
    ],
)  # fmt: skip
def test_a_wrong_prompt_is_refused_by_name(llm, prompts, param):
    with pytest.raises(RequestError) as caught:
        llm.generate(prompts, PARAMS, use_tqdm=False)
    assert caught.value.param == param


def test_no_prompts_give_no_outputs(llm):
    assert llm.generate([], PARAMS, use_tqdm=False) == []


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"lora_request": object()}, "lora_request"),
        ({"priority": [1]}, "priority"),
        ({"tokenization_kwargs": {"x": 1}}, "tokenization_kwargs"),
    ],
)
def test_arguments_that_are_not_supported_are_refused(llm, given, param):
    with pytest.raises(RequestError) as caught:
        llm.generate("ab", PARAMS, use_tqdm=False, **given)
    assert caught.value.param == param


def test_arguments_at_their_defaults_are_accepted(llm):
    llm.generate("ab", PARAMS, use_tqdm=False, lora_request=None, priority=[0])
    messages = [{"role": "user", "content": "a"}]
    llm.chat(
        messages, PARAMS, False, lora_request=None, chat_template=None, tools=None,
        chat_template_content_format="auto", add_generation_prompt=True,
        continue_final_message=False, chat_template_kwargs=None, mm_processor_kwargs=None,
    )  # fmt: skip


def test_chat_renders_and_refuses_by_name(llm):
    messages = [{"role": "user", "content": "a"}]
    (output,) = llm.chat(messages, sampling_params=PARAMS, use_tqdm=False)
    assert output.prompt == "[user]a[assistant]"
    two = llm.chat([messages, messages], PARAMS, use_tqdm=False)
    assert len(two) == 2
    for name in ("lora_request", "mm_processor_kwargs", "ad_generation_prompt"):
        with pytest.raises(RequestError, match=name):
            llm.chat(messages, PARAMS, use_tqdm=False, **{name: {"a": 1}})
    with pytest.raises(RequestError, match="chat_template_content_format"):
        llm.chat(messages, PARAMS, use_tqdm=False, chat_template_content_format="openai")


def test_outputs_have_vllms_attributes(llm):
    (output,) = llm.generate("ab", SamplingParams(max_tokens=2, logprobs=1), use_tqdm=False)
    for name in (
        "request_id", "prompt", "prompt_token_ids", "prompt_logprobs", "outputs", "finished",
        "metrics", "lora_request", "num_cached_tokens",
    ):  # fmt: skip
        assert hasattr(output, name)
    (part,) = output.outputs
    for name in (
        "index", "text", "token_ids", "cumulative_logprob", "logprobs", "finish_reason",
        "stop_reason", "lora_request",
    ):  # fmt: skip
        assert hasattr(part, name)
    assert part.finished()
    assert repr(output).startswith("RequestOutput(request_id='")
    assert repr(part).startswith("CompletionOutput(index=0, text=")
    entry = next(iter(part.logprobs[0].values()))
    assert (type(entry.logprob), type(entry.rank), type(entry.decoded_token)) == (float, int, str)


def test_metrics_have_vllms_names(llm):
    before = {metric.name: metric for metric in llm.get_metrics()}
    llm.generate("ab", PARAMS, use_tqdm=False)
    after = {metric.name: metric for metric in llm.get_metrics()}
    grown = after["vllm:generation_tokens"].value - before["vllm:generation_tokens"].value
    assert grown == 3
    assert isinstance(after["vllm:generation_tokens"], Counter)
    assert isinstance(after["vllm:kv_cache_usage_perc"], Gauge)


def test_methods_that_are_missing_say_why(llm):
    for name in module.UNSUPPORTED:
        assert not hasattr(llm, name)
    with pytest.raises(AttributeError, match="LLM.beam_search is not supported: there is no"):
        llm.beam_search([], None)
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        llm.generat("ab")


def test_signatures_are_vllms():
    generate = list(inspect.signature(LLM.generate).parameters)
    assert generate[1:4] == ["prompts", "sampling_params", "use_tqdm"]
    chat = list(inspect.signature(LLM.chat).parameters)
    assert chat[1:4] == ["messages", "sampling_params", "use_tqdm"]


def test_a_progress_bar_of_ones_own(llm):
    made = []

    def bar(**settings):
        from tqdm import tqdm

        made.append(settings)
        return tqdm(**{**settings, "disable": True})

    llm.generate("ab", PARAMS, use_tqdm=bar)
    assert made[0]["total"] == 1


def test_a_closed_llm_is_closed_for_good(tiny_options):
    with LLM(**tiny_options) as other:
        assert other.generate("ab", PARAMS, use_tqdm=False)
    other.close()
    with pytest.raises(ConfigError, match="closed"):
        other.generate("ab", PARAMS, use_tqdm=False)


@dataclass
class ForeignArgs:
    """As vLLM's EngineArgs: hundreds of fields at their defaults."""

    model: str = "some/model"
    max_num_seqs: int = 128
    dtype: str = "auto"
    quantization: str | None = None
    max_loras: int = 1
    artifacts: str | None = None
    lists: list[int] = field(default_factory=list)


def test_engine_args_of_either_kind(tiny_options, tmp_path):
    for args in (EngineArgs(**tiny_options), tiny_options):
        with LLM.from_engine_args(args) as other:
            assert other.generate("ab", PARAMS, use_tqdm=False)
    with pytest.raises(ConfigError, match="quantization=awq, but .* is not quantised"):
        LLM.from_engine_args(ForeignArgs(model=tiny_options["model"], quantization="awq"))
    with pytest.raises(ConfigError, match="dataclass or a mapping"):
        LLM.from_engine_args(5)


def test_a_dataclass_gives_what_differs_from_its_defaults():
    from ranvier.cli.options.settings import given_fields

    assert given_fields(ForeignArgs(model="m", lists=[])) == {"model": "m"}


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_sampling_fields_that_are_not_supported_are_refused_by_name(name):
    SamplingParams(**{name: None})
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: "x"})
    assert caught.value.param == name
    assert UNSUPPORTED[name] in caught.value.message


def test_output_kinds_that_mean_whole_outputs_are_accepted():
    from enum import Enum

    class Kind(Enum):
        CUMULATIVE = 0
        DELTA = 1
        FINAL_ONLY = 2

    SamplingParams(output_kind=Kind.FINAL_ONLY, flat_logprobs=False)
    with pytest.raises(RequestError, match="output_kind"):
        SamplingParams(output_kind=Kind.DELTA)


def test_the_package_exports_what_it_says():
    for name in ranvier.__all__:
        assert getattr(ranvier, name) is not None
