"""LLM.generate with multi_modal_data: pictures woven into prompts, wrong ones named."""

from __future__ import annotations

import base64
import io
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.parity.vision_cases import GOLDENS

from ranvier import LLM, SamplingParams
from ranvier.core.errors import RequestError
from ranvier.media.fetch import Fetcher

SIDE, MARK = 16, "<image>"
PROCESSOR = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def tokenizer(mark=MARK):
    """Words w0 ... w127, the picture's mark in the place of w5."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    vocab = {mark if i == 5 else f"w{i}": i for i in range(128)}
    made = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken(mark, special=True)])
    return made.to_str()


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm") / "llava"
    shutil.copytree(GOLDENS / "llava", folder)
    (folder / "tokenizer.json").write_text(tokenizer())
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    options = {
        "model": str(folder), "dtype": "float32", "max_model_len": 192, "max_num_seqs": 4,
        "artifacts": str(folder.parent / "artifacts"),
    }  # fmt: skip
    with LLM(**options) as llm:
        llm.options = options
        yield llm


def picture(seed, height=SIDE, width=SIDE):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


EXAMPLES = Path(__file__).parents[2] / "examples"
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def tokens(llm, *prompts):
    outputs = llm.generate(list(prompts), GREEDY, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def prompt(text, *pictures):
    return {"prompt": text, "multi_modal_data": {"image": list(pictures)}}


def test_a_mix_of_prompts_is_as_each_alone_and_pictures_count(seeing):
    mixed = (
        "w10 w11 w12",
        prompt(f"w10 {MARK} w11", picture(1)),
        prompt(f"{MARK} w20 {MARK} {MARK} w21", picture(1), picture(2), picture(3)),
    )
    together = tokens(seeing, *mixed)
    assert together == [tokens(seeing, one)[0] for one in mixed]
    assert tokens(seeing, prompt(f"w10 {MARK} w11", picture(4)))[0] != together[1]
    assert tokens(seeing, prompt(f"w10 {MARK} w11", np.asarray(picture(1))))[0] == together[1]


def test_the_example_asks_about_what_it_draws(seeing):
    example = runpy.run_path(str(EXAMPLES / "pictures.py"))
    first, second, third, all_three = example["ask"](seeing, MARK)
    assert len({first, second, third, all_three}) > 1


def test_a_picture_may_be_a_path(seeing, tmp_path):
    path = tmp_path / "picture.png"
    picture(1).save(path)
    (wanted,) = tokens(seeing, prompt(f"w10 {MARK} w11", picture(1)))
    assert tokens(seeing, prompt(f"w10 {MARK} w11", path)) == [wanted]
    assert tokens(seeing, prompt(f"w10 {MARK} w11", str(path))) == [wanted]


def test_placeholders_are_repeated_once_a_feature(seeing):
    (output,) = seeing.generate(prompt(f"w10 {MARK} w11", picture(1)), GREEDY, use_tqdm=False)
    assert output.prompt_token_ids == [10, *[5] * 16, 11]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (prompt("w10 w11", picture(1)), "0 image placeholders; its pictures need 1"),
        (prompt(f"{MARK} {MARK}", picture(1)), "2 image placeholders; its pictures need 1"),
        (prompt(MARK, "no/cat.png"), "No picture can be read at 'no/cat.png'"),
        (prompt(MARK, "a\0b"), "No picture can be read"),
        (prompt(MARK, 7), "not int"),
        (prompt(MARK, np.zeros((4, 4), np.float32)), "array of float32"),
        (f"w10 {MARK} w11", "'<image>' .token 5., which stands for a picture"),
        ({"prompt_token_ids": [10, 5]}, "stands for a picture"),
        ({"prompt": MARK, "multi_modal_data": {"video": []}}, "multi_modal_data must be"),
        (prompt(f"{MARK} " * 9, *map(picture, range(9))), "9 pictures; at most 8 fit"),
    ],
)
def test_wrong_pictures_are_named(seeing, given, message):
    with pytest.raises(RequestError, match=message):
        seeing.generate(given, GREEDY, use_tqdm=False)


def test_a_text_model_takes_no_pictures(llm):
    with pytest.raises(RequestError, match="takes no pictures"):
        llm.generate(prompt("a", picture(1)), GREEDY, use_tqdm=False)


TEMPLATE = "{% for m in messages %}{% for p in m.content %}" + (
    f"{{{{ '{MARK} ' if p.type == 'image' else p.text + ' ' }}}}{{% endfor %}}{{% endfor %}}"
)


def chatted(llm, url):
    content = [
        {"type": "text", "text": "w10"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "w11"},
    ]
    messages = [{"role": "user", "content": content}]
    (out,) = llm.chat(messages, GREEDY, use_tqdm=False, chat_template=TEMPLATE)
    return out.outputs[0].token_ids


def test_chat_takes_image_parts(seeing):
    file = io.BytesIO()
    picture(1).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    assert [chatted(seeing, url)] == tokens(seeing, prompt(f"w10 {MARK} w11", picture(1)))
    for other, told in (
        ("http://127.0.0.1/a.png", "not fetched from this host"),
        ("file:///etc/passwd", "file: URLs are not allowed"),
    ):
        with pytest.raises(RequestError, match=told):
            chatted(seeing, other)


def test_chat_fetches_from_hosts_that_are_listed(seeing, monkeypatch):
    from tests.server.picture_host import Host, plain

    file = io.BytesIO()
    picture(1).save(file, "PNG")
    host = Host({"/a.png": (plain(file.getvalue()), True)})
    domains = (f"127.0.0.1:{host.port}",)
    try:
        fetcher = Fetcher(domains, accepts=lambda address: address == "127.0.0.1")
        monkeypatch.setattr(seeing._pictures, "_fetcher", fetcher)
        found = chatted(seeing, host.url("/a.png", "127.0.0.1"))
        assert [found] == tokens(seeing, prompt(f"w10 {MARK} w11", picture(1)))
        monkeypatch.setattr(seeing._pictures, "_fetcher", Fetcher(domains))
        with pytest.raises(RequestError, match="not public"):
            chatted(seeing, host.url("/a.png", "127.0.0.1"))
        assert len(host.heads) == 1
    finally:
        host.close()


def test_files_are_read_below_the_allowed_folder_alone(seeing, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for path in (folder / "a.png", tmp_path / "out.png"):
        picture(1).save(path)
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    monkeypatch.chdir(folder)
    with LLM(**seeing.options, allowed_local_media_path=str(folder)) as llm:
        (wanted,) = tokens(llm, prompt(f"w10 {MARK} w11", picture(1)))
        assert chatted(llm, f"file://{folder}/a.png") == wanted
        for path in ("a.png", folder / "a.png", "../in/a.png"):
            assert tokens(llm, prompt(f"w10 {MARK} w11", path)) == [wanted]
        for name in ("link.png", "../out.png", "none.png"):
            for refused in (f"file://{folder}/{name}", name, str(folder / name)):
                with pytest.raises(RequestError, match="not there, or not below the allowed"):
                    if str(refused).startswith("file:"):
                        chatted(llm, refused)
                    else:
                        tokens(llm, prompt(f"w10 {MARK} w11", refused))
