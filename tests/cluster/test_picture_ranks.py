"""Two processes, a rank of a model that sees pictures each, answer as one process does."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.request

from tests.cluster.test_real_ranks import START_S, free_port, is_ready
from tests.conftest import eventually
from tests.engine.test_pictures_llm import GREEDY, MARK, PROCESSOR, picture, prompt, tokenizer
from tests.parity.vision_cases import GOLDENS

TEMPLATE = "{% for m in messages %}{% for p in m.content %}" + (
    f"{{{{ '{MARK} ' if p.type == 'image' else p.text + ' ' }}}}{{% endfor %}}{{% endfor %}}"
)


def make_model(folder):
    shutil.copytree(GOLDENS / "llava", folder)
    (folder / "tokenizer.json").write_text(tokenizer())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def answer(port, model, seed):
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [
        {"type": "text", "text": "w10"}, {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "w11"},
    ]  # fmt: skip
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 6,
            "temperature": 0, "ignore_eos": True, "return_token_ids": True}  # fmt: skip
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
        {"content-type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["choices"][0]["token_ids"]


def expected(model, artifacts):
    from ranvier import LLM

    prompts = [prompt(f"w10 {MARK} w11", picture(seed)) for seed in (1, 2)]
    with LLM(str(model), dtype="float32", max_model_len=192, artifacts=str(artifacts)) as llm:
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_two_processes_answer_about_pictures_as_one(tmp_path):
    model = make_model(tmp_path / "llava")
    wanted = expected(model, tmp_path / "artifacts")
    assert wanted[0] != wanted[1]
    port, master = free_port(), free_port()
    words = [sys.executable, "-m", "ranvier", "serve", str(model), "--dtype", "float32",
             "--max-model-len", "192", "--max-num-seqs", "4", "--max-num-batched-tokens", "32",
             "--artifacts", str(tmp_path / "artifacts"), "--tensor-parallel-size", "2",
             "--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(master),
             "--port", str(port)]  # fmt: skip
    environment = {**os.environ, "RANVIER_CACHE_ROOT": str(tmp_path / "cache")}
    ranks = [
        subprocess.Popen([*words, "--node-rank", str(rank)], env=environment) for rank in (1, 0)
    ]
    try:
        eventually(lambda: is_ready(port, ranks[1]), START_S)
        found = [answer(port, str(model), seed) for seed in (1, 2, 1)]
    finally:
        ranks[1].terminate()
        for process in reversed(ranks):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    assert found == [*wanted, wanted[0]]
