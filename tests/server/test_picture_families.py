"""Families of other kinds than Llava over HTTP: Qwen2-VL (three rope axes), Llama 3.2 Vision."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from ranvier import LLM
from ranvier.cli.media import open_desk
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact, load_engine, open_codec
from ranvier.server.app import make_app
from ranvier.server.options import ServerOptions
from tests.conftest import eventually
from tests.engine.test_pictures_llm import GREEDY, picture, tokenizer
from tests.parity.vision_cases import GOLDENS
from tests.server.running import Server
from tests.server.test_pictures import part, png, url_of

MARKS = {"qwen2_vl": "<|image_pad|>", "mllama": "<|image|>"}
PROCESSORS = {
    "qwen2_vl": {"patch_size": 4, "min_pixels": 64, "max_pixels": 1024},
    "mllama": {"size": {"height": 16, "width": 16}, "max_image_tiles": 4},
}


def template(mark):
    return (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }} {% else %}"
        "{% for p in m.content %}"
        f"{{% if p.type == 'image' %}}{mark} {{% else %}}{{{{ p.text }}}} {{% endif %}}"
        "{% endfor %}{% endif %}{% endfor %}"
    )


@pytest.fixture(scope="module", params=MARKS)
def server(request, tmp_path_factory):
    family = request.param
    folder = tmp_path_factory.mktemp("families") / family
    shutil.copytree(GOLDENS / family, folder)
    mark = MARKS[family]
    (folder / "tokenizer.json").write_text(tokenizer(mark))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template(mark)}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family]))
    given = {
        "model": str(folder), "dtype": "float32", "max_model_len": 256, "max_num_seqs": 4,
        "artifacts": str(folder.parent / "artifacts"), "limit_mm_per_prompt": {"image": 4},
    }  # fmt: skip
    options = parse_options(given)
    artifact = ensure_artifact(options)
    engine = load_engine(artifact, options, [])
    info = engine.runner.info
    codec = open_codec(artifact, info.vocab_size, info.model_len_max, options)
    desk = open_desk(artifact, codec, info.vision, options)
    own = ServerOptions(model_names=("sees",), trust_request_mm_kwargs=True)
    running = Server(engine, lambda client: make_app(own, codec, client, info, pictures=desk))
    running.family, running.given, running.mark = family, given, mark
    yield running
    running.stop()
    desk.close()


@pytest.fixture
def ai(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


PICTURES = [picture(1, 32, 16), picture(2, 16, 16), picture(3, 17, 40)]


def shown(index):
    return part(url_of(png(PICTURES[index])))


def user(*parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"role": "user", "content": content}


SAID = {"role": "assistant", "content": "w30 w31"}
CONVERSATIONS = [
    ([{"role": "user", "content": "w10 w11 w12"}], "w10 w11 w12", []),
    ([user("w10", shown(0), "w11")], "w10 M w11", [0]),
    ([user(shown(1), "w20"), SAID, user("w21", shown(0), shown(2), "w22"), SAID, user("w23")],
     "M w20 w30 w31 w21 M M w22 w30 w31 w23", [1, 0, 2]),
    ([user(shown(2)), SAID, user(shown(2))], "M w30 w31 M", [2, 2]),
]  # fmt: skip


def ask(ai, messages, *, stream=False, **extra):
    out = ai.chat.completions.create(
        model="sees", messages=messages, temperature=0, max_tokens=6, stream=stream,
        extra_body={"ignore_eos": True, **extra},
    )  # fmt: skip
    if not stream:
        return out.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in out if chunk.choices)


def test_conversations_with_pictures_anywhere_streamed_or_not_are_as_offline(server, ai):
    alone = [ask(ai, messages) for messages, _, _ in CONVERSATIONS]
    assert len(set(alone)) >= 3
    jobs = [(messages, stream) for messages, _, _ in CONVERSATIONS for stream in (True, False)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(lambda job: ask(ai, job[0], stream=job[1]), jobs))
    assert found == [text for text in alone for _ in range(2)]
    prompts = [
        {
            "prompt": text.replace("M", server.mark),
            "multi_modal_data": {"image": [PICTURES[i] for i in own]},
        }
        for _, text, own in CONVERSATIONS
    ]
    with LLM(**server.given) as llm:
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in outputs] == alone
    assert server.is_idle()


def test_pictures_count_in_usage_and_in_the_metrics(server, ai):
    def counters():
        lines = httpx.get(server.url + "/metrics").text.splitlines()
        names = ("vllm:mm_cache_queries_total", "vllm:mm_cache_hits_total")
        return [float(s.split()[-1]) for name in names for s in lines if s.startswith(name)]

    messages = [user("w40", part(url_of(png(picture(77)))), "w41")]
    features = server.engine.scheduler.features
    before = features.queries, features.hits
    out = ai.chat.completions.create(model="sees", messages=messages, max_tokens=1)
    # Two by two merged patches of 4 pixels; or one token that attends to tiles.
    assert out.usage.prompt_tokens == 2 + {"qwen2_vl": 4, "mllama": 1}[server.family]
    ask(ai, messages)
    assert (features.queries, features.hits) == (before[0] + 2, before[1] + 1)
    eventually(lambda: counters() == [features.queries, features.hits], 5)


def scored(ai, messages, **extra):
    """The log-probability of the first token."""
    out = ai.chat.completions.create(
        model="sees", messages=messages, temperature=0, max_tokens=1, logprobs=True,
        extra_body=extra,
    )  # fmt: skip
    return out.choices[0].logprobs.content[0].logprob


KWARGS = {"qwen2_vl": {"max_pixels": 256}, "mllama": {"max_image_tiles": 1}}
TOO_LARGE = {
    "qwen2_vl": ({"max_pixels": 2**30}, "could become 67108864 patches"),
    "mllama": ({"max_image_tiles": 5}, "max_image_tiles 5 at most 4"),
}


def test_a_request_prepares_its_pictures_as_it_says(server, ai):
    messages, text, own = CONVERSATIONS[1]
    kwargs = KWARGS[server.family]
    changed = ask(ai, messages, mm_processor_kwargs=kwargs)
    assert scored(ai, messages, mm_processor_kwargs=kwargs) != scored(ai, messages)
    given = {
        "prompt": text.replace("M", server.mark),
        "multi_modal_data": {"image": [PICTURES[i] for i in own]},
    }
    with LLM(**server.given) as llm:
        (asked,) = llm.generate({**given, "mm_processor_kwargs": kwargs}, GREEDY, use_tqdm=False)
        (chatted,) = llm.chat(messages, GREEDY, use_tqdm=False, mm_processor_kwargs=kwargs)
    with LLM(**server.given, mm_processor_kwargs=kwargs) as llm:
        (started,) = llm.generate(given, GREEDY, use_tqdm=False)
    assert {out.outputs[0].text for out in (asked, chatted, started)} == {changed}


def test_kwargs_of_a_request_that_cannot_be_are_named(server, ai):
    large, told = TOO_LARGE[server.family]
    text = CONVERSATIONS[0][0]
    for messages in (CONVERSATIONS[1][0], text):
        with pytest.raises(openai.BadRequestError, match=told):
            ask(ai, messages, mm_processor_kwargs=large)
        with pytest.raises(openai.BadRequestError, match="Did you mean max_") as error:
            ask(ai, messages, mm_processor_kwargs={next(iter(large))[:-1]: 1})
        assert error.value.param == "mm_processor_kwargs"
    assert ask(ai, text, mm_processor_kwargs={}) == ask(ai, text)
