"""docs/server.md and docs/metrics.md say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.server.simulated import simulated

DOCS = Path(__file__).parents[2] / "docs"
FLAGS = {
    "enable_tokenizer_info_endpoint": True, "enable_server_load_tracking": True,
    "server_dev_mode": True, "metrics_compat": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    running = simulated(**FLAGS, cache_labels={"block_size": "4"})
    yield running
    running.stop()


def test_every_route_is_in_the_page_of_the_server(server):
    text = (DOCS / "server.md").read_text()
    for route in server.app.routes:
        path = route.path.replace("{name:path}", "{id}").removeprefix("/v1/models")
        assert path in text, path


def test_every_flag_that_the_page_names_is_one(server):
    import dataclasses

    from ranvier.cli.options.front import FrontOptions

    flags = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(FrontOptions)}
    named = set(re.findall(r"--[a-z][a-z-]+", (DOCS / "server.md").read_text()))
    assert named - flags == {"--help", "--config"}


def test_the_table_of_metrics_is_what_the_server_shows(server):
    httpx.post(server.url + "/v1/completions", json={"prompt": "a", "max_tokens": 3})
    shown = {}
    for line in httpx.get(server.url + "/metrics").text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            shown[name] = kind
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \|", (DOCS / "metrics.md").read_text(), re.M)
    assert dict(rows) == shown
