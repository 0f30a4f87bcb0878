"""The servers of the quantisation pages start with the pages' own words, and answer."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import httpx
import pytest

from ranvier.cli.main import main
from tests.server.test_process import Process

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands():
    """(the `ranvier quantize` of a server's folder or None, its `ranvier serve`), as words."""
    found, makers = [], {}
    for page in ("quantisation.md", "neuron/quantisation.md"):
        for block in BLOCK.findall((DOCS / page).read_text()):
            lines = re.split(r"\n(?=ranvier )", block.replace("\\\n", " ").strip())
            for words in map(shlex.split, lines):
                if words[:2] == ["ranvier", "quantize"]:
                    makers[words[words.index("--output") + 1]] = words[1:]
                elif words[:2] == ["ranvier", "serve"]:
                    named = re.search(r"/tmp/[\w-]+", " ".join(words))
                    found.append((named and makers[named[0]], words[2:]))
                else:
                    raise AssertionError(f"{page}: no test runs {words}")
    return found


def test_each_page_has_a_server():
    assert len(commands()) >= 2


@pytest.mark.parametrize(("made", "served"), commands())
def test_a_server_of_the_pages_answers(tiny_options, tmp_path, made, served):
    model = tiny_options["model"]
    place = {"smollm2-135m": model}
    if made is not None:
        output = made[made.index("--output") + 1]
        place[output] = str(tmp_path / "out")
        words = [place.get(word, word) for word in made]
        assert main([*words, "--evaluation-tokens", "64", "--calibration-tokens", "512"]) == 0
    for old, new in place.items():
        served = [word.replace(old, new) for word in served]
    options = {k: v for k, v in tiny_options.items() if k not in ("model", "dtype")}
    (tmp_path / "run").mkdir()
    server = Process({**options, "dtype": "bfloat16"}, tmp_path / "run", *served)
    try:
        [card] = server.get("/v1/models").json()["data"]
        body = {"model": card["id"], "prompt": "Hi", "max_tokens": 3, "ignore_eos": True}
        answer = httpx.post(server.url + "/v1/completions", json=body, timeout=30).json()
        assert answer["usage"]["completion_tokens"] == 3
    finally:
        server.end()
