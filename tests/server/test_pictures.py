"""Pictures over HTTP: the real openai client, a tiny random Llava, and what must not get in."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import openai
import pytest
from PIL import Image

from ranvier import LLM
from ranvier.cli.media import open_desk
from ranvier.cli.options.settings import parse_options
from ranvier.cli.wire import ensure_artifact, load_engine, open_codec
from ranvier.core.limits import LIMITS
from ranvier.server.app import make_app
from ranvier.server.options import ServerOptions
from tests.engine.test_pictures_llm import GREEDY, MARK, PROCESSOR, SIDE, picture, tokenizer
from tests.parity.vision_cases import GOLDENS
from tests.server.running import Server

LIST = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }} {% else %}"
    "{% for p in m.content %}"
    "{% if p.type == 'image' %}<image> {% else %}{{ p.text }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
TEXT = "{% for m in messages %}{{ m.content }} {% endfor %}"
"""A template that knows nothing of parts: it would print them as Python does."""


def tiny_llava(home, template):
    """Options of a tiny Llava in a folder of `home`."""
    folder = home / "llava"
    shutil.copytree(GOLDENS / "llava", folder)
    (folder / "tokenizer.json").write_text(tokenizer())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return {
        "model": str(folder), "dtype": "float32", "max_model_len": 192, "max_num_seqs": 4,
        "artifacts": str(home / "artifacts"),
    }  # fmt: skip


@pytest.fixture(scope="module", params=[LIST, TEXT], ids=["list", "text"])
def server(request, tmp_path_factory):
    home = tmp_path_factory.mktemp("pictures")
    given = tiny_llava(home, request.param)
    given["allowed_local_media_path"] = str(home / "in")
    folder = home / "llava"
    (folder.parent / "in").mkdir()
    picture(7).save(folder.parent / "in/a.png")
    picture(7).save(folder.parent / "out.png")
    options = parse_options(given)
    artifact = ensure_artifact(options)
    engine = load_engine(artifact, options, [])
    info = engine.runner.info
    codec = open_codec(artifact, info.vocab_size, info.model_len_max, options)
    desk = open_desk(artifact, codec, info.vision, options)
    own = ServerOptions(model_names=("sees",))
    running = Server(engine, lambda client: make_app(own, codec, client, info, pictures=desk))
    running.folder, running.given = folder.parent, given
    yield running
    running.stop()
    desk.close()


@pytest.fixture
def ai(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def url_of(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def part(url, **more):
    return {"type": "image_url", "image_url": {"url": url, **more}}


def ask(ai, *parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    out = ai.chat.completions.create(
        model="sees", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=6,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    return out.choices[0].message.content


def shown(seed):
    return part(url_of(png(picture(seed))))


MIX = (
    ("w10 w11 w12",),
    ("w10", shown(1), "w11"),
    (shown(1), "w20", shown(2), shown(3), "w21"),
)


def test_a_mix_of_requests_is_as_each_alone_and_as_offline(server, ai):
    alone = [ask(ai, *parts) for parts in MIX]
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda parts: ask(ai, *parts), MIX * 2)) == alone * 2
    texts = ("w10 w11 w12 ", f"w10 {MARK} w11 ", f"{MARK} w20 {MARK} {MARK} w21 ")
    pictures = ([], [picture(1)], [picture(1), picture(2), picture(3)])
    prompts = [
        {"prompt": text, **({"multi_modal_data": {"image": found}} if found else {})}
        for text, found in zip(texts, pictures, strict=True)
    ]
    with LLM(**server.given) as llm:
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in outputs] == alone


def test_a_repeated_picture_is_encoded_once(server, ai):
    features = server.engine.scheduler.features
    ask(ai, "w1", shown(31))
    hits = features.hits
    ask(ai, "w2", shown(31))
    assert features.hits == hits + 1
    assert "vllm:mm_cache_hits_total" in httpx.get(server.url + "/metrics").text


def test_pictures_of_open_requests_have_a_limit_and_leave_with_them(server, ai, monkeypatch):
    one = SIDE * SIDE * 3 * 4
    for limit in (one - 1, one):
        bounded = replace(LIMITS, images_bytes_max=limit)
        monkeypatch.setattr("ranvier.server.pictures.LIMITS", bounded)
        with pytest.raises(openai.InternalServerError, match="pictures of open requests") as error:
            ask(ai, "w10", shown(1), shown(2))
        assert error.value.status_code == 503
    with pytest.raises(openai.BadRequestError):
        ask(ai, "w10", shown(1), part(BAD["cut"]))
    stream = ai.chat.completions.create(
        model="sees", messages=[{"role": "user", "content": [shown(1)]}], max_tokens=2, stream=True
    )
    assert list(stream)
    assert ask(ai, "w10", shown(1)) == ask(ai, "w10", shown(1))


def test_a_file_below_the_folder_is_read(server, ai):
    inside = part(f"file://{server.folder}/in/a.png", detail="low")
    assert ask(ai, "w10", inside) == ask(ai, "w10", shown(7))


def huge(width, height):
    """A PNG whose header claims so many pixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def animation():
    file = io.BytesIO()
    frames = [picture(i).convert("P") for i in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


BAD = {
    "bomb": url_of(huge(16000, 16000)),
    "wide": url_of(huge(65535, 4)),
    "dot": url_of(png(Image.new("RGB", (1, 1)))),
    "cut": url_of(png(picture(1))[:-30]),
    "animation": url_of(animation(), "gif"),
    "svg": url_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg+xml"),
    "noise": url_of(bytes(range(256))),
    "base64": "data:image/png;base64,@@@@",
    "host": "http://example.com/a.png",
    "loopback": "http://127.0.0.1:1/a.png",
    "metadata": "http://169.254.169.254/latest",
    "scheme": "ftp://example.com/a.png",
    "empty": "",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_a_400_without_library_text(server, ai, name):
    with pytest.raises(openai.BadRequestError) as error:
        ask(ai, "w10", part(BAD[name]))
    said = error.value.message
    assert not any(word in said for word in ("PIL", "Traceback", "Error:", "libpng", "0x"))
    assert ask(ai, "w10", shown(1)) == ask(ai, "w10", shown(1))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([shown(1)] * 1000, "1000 pictures; at most"),
        ([f"w10 {MARK}", shown(1)], "stands for a picture"),
        ([f"w10 {MARK}"], "stands for a picture"),
        ([part("x", detail="ultra")], "detail is 'ultra'"),
        ([{"type": "input_audio", "input_audio": {}}], "'input_audio' is not supported"),
        ([{"type": "image_url"}], "needs image_url"),
    ],
)
def test_what_a_conversation_may_not_hold_is_named(ai, parts, said):
    with pytest.raises(openai.BadRequestError, match=said):
        ask(ai, *parts)


def test_kwargs_of_a_request_need_the_operators_trust(ai):
    for content in ("w10", [shown(1)]):
        with pytest.raises(openai.BadRequestError, match="Start .* --trust-request-mm-kwargs"):
            ai.chat.completions.create(
                model="sees", messages=[{"role": "user", "content": content}],
                extra_body={"mm_processor_kwargs": {"size": 1}},
            )  # fmt: skip


@pytest.mark.parametrize("path", ["out.png", "in/../out.png", "in/none.png"])
def test_files_beside_the_folder_are_refused_alike(server, ai, path):
    with pytest.raises(openai.BadRequestError, match="not there, or not below"):
        ask(ai, "w10", part(f"file://{server.folder}/{path}"))
