"""Pages that are made from the code say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts/docs.py"


def load():
    spec = importlib.util.spec_from_file_location("generated_docs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCS = load()


@pytest.mark.parametrize("name", DOCS.PAGES)
def test_a_page_is_not_stale(name):
    path = DOCS.ROOT / name
    assert path.is_file(), f"run scripts/docs.py: {name} is missing"
    assert path.read_text(encoding="utf-8") == DOCS.PAGES[name](), f"{name}: run scripts/docs.py"


def test_a_stale_page_is_found_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(DOCS, "ROOT", tmp_path)
    monkeypatch.setattr(DOCS, "PAGES", {"page.md": lambda: "new\n"})
    (tmp_path / "page.md").write_text("old\n")
    assert DOCS.main(["--check"]) == 1
    assert "page.md is stale" in capsys.readouterr().out
    assert DOCS.main([]) == 0
    assert (tmp_path / "page.md").read_text() == "new\n"
    assert DOCS.main(["--check"]) == 0
