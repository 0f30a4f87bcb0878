"""Adapters over HTTP: loaded and dropped while the server runs, listed, chosen by `model`."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from ranvier.adapters.registry import Adapters
from ranvier.core.limits import LIMITS
from ranvier.sim.adapters import SimulatedLoader
from tests.server.simulated import simulated

PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture
def folder(tmp_path):
    """The operator's folder: two adapters, and a link that leads out of it."""
    for name in ("alpha", "beta"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "adapter_config.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/adapter_config.json").write_text("{}")
    (tmp_path / "in/leads-out").symlink_to(tmp_path / "out")
    (tmp_path / "in/file-out").mkdir()
    (tmp_path / "in/file-out/adapter_config.json").write_text("{}")
    (tmp_path / "in/file-out/adapter_model.safetensors").symlink_to(tmp_path / "out/x")
    return tmp_path / "in"


@pytest.fixture
def server(folder):
    paths = {str(folder / name): f"digest of {name}" for name in ("alpha", "beta")}
    paths[str(folder.parent / "out")] = "digest of out"
    loader = SimulatedLoader(paths, turns_max=3)
    running = simulated(
        adapters=Adapters(loader, host_max=4, slots=2), adapter_slots=2, lora_folder=str(folder)
    )
    running.loader = loader
    yield running
    running.stop()


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def text(http, model):
    body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def load(http, name, path, **more):
    return http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, **more})


def test_a_loaded_adapter_is_listed_chosen_and_dropped(http, folder):
    answer = load(http, "mine", "alpha")
    assert (answer.status_code, answer.text) == (
        200, "Success: LoRA adapter 'mine' added successfully.",
    )  # fmt: skip
    cards = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
    assert cards["mine"]["parent"] == "sim" and cards["mine"]["root"] == str(folder / "alpha")
    assert cards["sim"]["parent"] is None
    assert http.get("/v1/models/mine").json() == cards["mine"]
    assert text(http, "mine") != text(http, "sim")
    answer = http.post("/v1/unload_lora_adapter", json={"lora_name": "mine"})
    assert answer.text == "Success: LoRA adapter 'mine' removed successfully."
    body = {"model": "mine", "prompt": PROMPT}
    assert http.post("/v1/completions", json=body).status_code == 404
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}).status_code == 404


def test_the_openai_client_names_an_adapter_of_the_folder(server, http):
    ai = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    out = ai.completions.create(model="beta", prompt=PROMPT, max_tokens=4, temperature=0)
    assert out.model == "beta"
    assert [model.id for model in ai.models.list()] == ["sim", "beta"]
    with pytest.raises(openai.NotFoundError, match="served: sim, beta"):
        ai.completions.create(model="gamma", prompt=PROMPT)


def test_many_requests_for_one_new_adapter_load_it_once(server, http):
    with ThreadPoolExecutor(8) as pool:
        texts = set(pool.map(lambda _: text(http, "alpha"), range(8)))
    assert len(texts) == 1
    assert server.loader.reads == 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"lora_name": "x"}, 400, "Both 'lora_name' and 'lora_path' must be provided"),
        ({"lora_name": "x", "lora_path": "../out"}, 400, "not below the folder"),
        ({"lora_name": "x", "lora_path": "leads-out"}, 400, "not below the folder"),
        ({"lora_name": "x", "lora_path": "file-out"}, 400, "not below the folder"),
        ({"lora_name": "x", "lora_path": "/etc"}, 400, "not below the folder"),
        ({"lora_name": "x", "lora_path": "nothing"}, 400, "no such adapter"),
        ({"lora_name": "a/b", "lora_path": "alpha"}, 400, "without separators"),
        ({"lora_name": "..", "lora_path": "alpha"}, 400, "without separators"),
        ({"lora_name": "sim", "lora_path": "alpha"}, 400, "the model's own name"),
        ({"lora_name": "x", "lora_path": "alpha", "is_3d_lora_weight": True}, 400, "no family"),
        ({"lora_name": "x", "lora_pth": "alpha"}, 400, "lora_pth"),
        ({"lora_name": 3, "lora_path": "alpha"}, 400, "lora_name"),
    ],
)
def test_a_load_that_is_wrong_says_why(http, body, status, said):
    answer = http.post("/v1/load_lora_adapter", json=body)
    assert answer.status_code == status
    assert said in json.dumps(answer.json())
    assert len(http.get("/v1/models").json()["data"]) == 1


@pytest.mark.parametrize("name", ["leads-out", "file-out", "..", "alpha/../beta", "alpha\x00"])
def test_a_model_s_name_does_not_lead_out_of_the_folder(http, name):
    body = {"model": name, "prompt": PROMPT}
    assert http.post("/v1/completions", json=body).status_code == 404


def test_two_loads_of_one_name_at_once_are_not_taken_for_one(http):
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda path: load(http, "mine", path), ("alpha", "beta")))
    assert sorted(answer.status_code for answer in answers) == [200, 400]


def test_what_was_unloaded_comes_back_only_when_it_is_loaded(http):
    text(http, "alpha")
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "alpha"}).status_code == 200
    body = {"model": "alpha", "prompt": PROMPT}
    assert http.post("/v1/completions", json=body).status_code == 404
    assert load(http, "alpha", "alpha").status_code == 200
    assert text(http, "alpha")


def test_a_name_stands_for_one_content_unless_replaced(http):
    assert load(http, "mine", "alpha").status_code == 200
    assert load(http, "mine", "alpha").status_code == 200
    answer = load(http, "mine", "beta")
    assert answer.status_code == 400 and "already been loaded" in answer.text
    before = text(http, "mine")
    assert load(http, "mine", "beta", load_inplace=True).status_code == 200
    assert text(http, "mine") != before
    assert text(http, "mine") == text(http, "beta")


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("becomes", ["other content", None])
def test_an_adapter_whose_folder_has_changed_is_a_conflict_until_it_is_loaded_again(
    server, http, folder, becomes, is_streamed
):
    before = text(http, "alpha")
    names = [f"n{i}" for i in range(4)]
    server.loader.digests.update({str(folder / name): name for name in names})
    for name in names:  # four are kept on the host, and two in slots: alpha is in none of them
        assert load(http, name, name).status_code == 200
        text(http, name)
    path = str(folder / "alpha")
    was, server.loader.digests[path] = server.loader.digests[path], becomes
    body = {"model": "alpha", "prompt": PROMPT, "stream": is_streamed}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == (200 if is_streamed else 409)
    assert '"code":409' in answer.text and '"type":"ConflictError"' in answer.text
    assert ("has changed" if becomes else "read again, which fails") in answer.text
    assert text(http, "n3") and text(http, "sim")
    server.loader.digests[path] = was
    assert text(http, "alpha") == before
    server.loader.digests[path] = "other content"
    assert load(http, "alpha", "alpha").status_code == 400
    assert load(http, "alpha", "alpha", load_inplace=True).status_code == 200
    assert text(http, "alpha") != before


def test_more_loads_than_wait_are_told_to_come_again(server, http):
    release = server.hold()
    http_body = {"model": "sim", "prompt": PROMPT, "max_tokens": 2}
    with ThreadPoolExecutor(LIMITS.adapter_loads_max + 9) as pool:
        busy = pool.submit(http.post, "/v1/completions", json=http_body)
        names = [f"n{i}" for i in range(LIMITS.adapter_loads_max + 8)]
        found = list(pool.map(lambda name: pool.submit(load, http, name, "alpha"), names))
        while sum(future.done() for future in found) < 8:
            pass
        release.set()
        codes = [future.result().status_code for future in found]
        assert busy.result().status_code == 200
    assert codes.count(429) >= 1 and set(codes) <= {200, 429}
    assert text(http, "sim")


def test_a_hub_id_is_loaded_where_clients_may_load_anything(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    loader = SimulatedLoader({"org/name": "of the hub", str(folder / "alpha"): "of the folder"})
    for given, status in (({}, 400), ({"allow_runtime_lora_updating": True}, 200)):
        running = simulated(
            adapters=Adapters(loader, host_max=4), adapter_slots=2, lora_folder=str(folder), **given
        )
        try:
            with httpx.Client(base_url=running.url, timeout=30) as client:
                assert load(client, "mine", "org/name").status_code == status
                assert load(client, "other", "alpha").status_code == 200
        finally:
            running.stop()


def test_pinned_adapters_keep_their_slots_and_others_are_told(server, http, folder):
    server.loader.digests[str(folder / "third")] = "third"
    assert load(http, "third", "third").status_code == 200
    for name in ("alpha", "beta"):
        assert load(http, name, name, pinned=True).status_code == 200
    answer = load(http, "third", "third", pinned=True)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "pinned"
    answer = http.post("/v1/completions", json={"model": "third", "prompt": PROMPT})
    assert answer.status_code == 409 and "Unpin one" in answer.text
    assert text(http, "alpha") and text(http, "beta") and text(http, "sim")
    assert load(http, "beta", "beta", pinned=False).status_code == 200
    assert text(http, "third")


def test_metrics_name_the_adapters(http):
    text(http, "alpha")
    shown = http.get("/metrics").text
    assert 'vllm:lora_requests_info{max_lora="2"' in shown
    assert "ranvier:adapter_slot_misses_total" in shown
    assert "ranvier:adapters{" in shown and "ranvier:adapter_host_bytes{" in shown


def test_without_slots_there_are_no_routes():
    running = simulated()
    try:
        with httpx.Client(base_url=running.url, timeout=30) as client:
            assert load(client, "x", "alpha").status_code == 404
    finally:
        running.stop()
