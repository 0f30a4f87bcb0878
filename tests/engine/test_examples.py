"""The examples run as they stand; without a C++ compiler everything still works."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_example(tiny_options):
    """Run an example on the tiny model, its limits set by the environment."""

    def run(name, *arguments, text=""):
        limits = {f"RANVIER_{k.upper()}": str(v) for k, v in tiny_options.items() if k != "model"}
        command = [sys.executable, str(ROOT / f"examples/{name}.py"), *map(str, arguments)]
        done = subprocess.run(
            [*command, tiny_options["model"]], input=text, capture_output=True, text=True,
            env={**os.environ, **limits}, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_example_generate(run_example):
    out = run_example("generate")
    assert out.count(" -> ") == 2
    assert "'The capital of France is' -> " in out


def test_the_example_chat(run_example):
    assert run_example("chat", text="ab\ncd\n\n").count("> ") >= 3


def test_the_example_batch(run_example, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "ab", "max_tokens": 2}\n\n{"prompt": "c", "max_tokens": 3}\n')
    run_example("batch", source, target)
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["ab", "c"]
    assert all(row["finish_reason"] in ("length", "stop") for row in rows)


def test_without_a_compiler_the_build_says_so_and_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    kernels = script("build_kernels")
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "lib.so")
    hook, data = object.__new__(kernels.CustomBuildHook), {"artifacts": []}
    hook.initialize("standard", data)
    assert data == {"artifacts": []}
    assert "no C++ compiler: the reference kernels will be used" in capsys.readouterr().err


def test_without_kernels_a_model_still_runs(tiny_options, tmp_path, monkeypatch, capsys):
    from ranvier import LLM, SamplingParams
    from ranvier.native import library

    monkeypatch.setattr(library, "register", lambda: False)
    with LLM(**{**tiny_options, "dtype": "auto", "artifacts": str(tmp_path)}) as llm:
        (out,) = llm.generate("ab", SamplingParams(temperature=0, max_tokens=3), use_tqdm=False)
    assert len(out.outputs[0].token_ids) == 3
    assert "the CPU kernels are not built" in capsys.readouterr().err
