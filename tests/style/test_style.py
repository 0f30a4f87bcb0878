"""The tree keeps its limits, its direction of imports and its bans."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/ranvier"
LIMITS = tomllib.loads((Path(__file__).parent / "limits.toml").read_text())
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

MAY_IMPORT = {
    "core": set(),
    "speculate": {"core"},
    "schedule": {"core", "media", "speculate"},
    "worker": set(),
    "text": {"core", "worker"},
    "media": {"core", "worker"},
    "adapters": {"core"},
    "engine": {"core", "schedule", "adapters"},
    "offline": {"core", "adapters", "engine", "media", "speculate", "text"},
    "link": {"core", "engine", "adapters"},
    "server": {"core", "engine", "link", "media", "speculate", "text"},
    "sim": {"core", "schedule", "engine", "media", "adapters"},
    "client": {"core"},
    "bench": {"core", "engine", "offline", "text", "client"},
    "cluster": {"core", "engine", "link"},
    "native": {"core"},
    "artifact": {"core"},
    "runtime": {"core", "artifact", "native", "targets"},
    "targets": {"core"},
    "nn": {"core", "native"},
    "models": {"core", "nn"},
    "weights": {"core"},
    "quantize": {"core", "models", "weights"},
    "train": {"core", "models", "nn", "weights"},
    "build": {"core", "nn", "models", "artifact", "weights", "targets", "runtime", "native"},
}
NO_JAX = (
    "core", "speculate", "adapters", "schedule", "engine", "offline", "link", "text", "media",
    "server", "sim", "weights", "artifact", "targets", "client", "bench", "quantize", "worker",
)  # fmt: skip
BANNED_MODULES = {"pickle", "marshal", "shelve", "torch", "transformers"}
BANNED_CALLS = {"eval", "exec"}
BANNED_NAMES = {"utils", "common", "helpers", "manager", "handler", "base", "misc"}
COMPILING = {"jit", "lower", "compile"}
MAY_COMPILE = {
    "build",
    "train",  # an offline tool: no artifact holds its programs, no server imports it
}


def part(path):
    inner = path.relative_to(SOURCE).parts
    return inner[0] if len(inner) > 1 else ""


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def functions(tree):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def depth(node, level=0):
    blocks = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith)
    deepest = level
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and child in node.orelse and isinstance(child, ast.If)
        deeper = isinstance(child, blocks) and not is_elif
        deepest = max(deepest, depth(child, level + deeper))
    return deepest


@pytest.mark.parametrize("path", FILES, ids=str)
def test_sizes(path):
    text, tree = path.read_text(), TREES[path]
    assert len(text.splitlines()) <= LIMITS["file_lines"]
    assert max(map(len, text.splitlines()), default=0) <= LIMITS["columns"]
    for node in functions(tree):
        assert node.end_lineno - node.lineno < LIMITS["function_lines"], node.name
        arguments = node.args.args + node.args.kwonlyargs + node.args.posonlyargs
        own = [a for a in arguments if a.arg not in ("self", "cls")]
        is_op = part(path) == "nn" and "kernels" in path.parts
        assert len(own) <= LIMITS["operator_parameters" if is_op else "parameters"], node.name
        assert depth(node) <= LIMITS["nesting"], node.name
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < LIMITS["class_lines"], node.name


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_module_says_its_job_and_exports_sorted(path):
    tree = TREES[path]
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = ast.literal_eval(node.value)
            order = sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
            assert names == order
    assert path.stem not in BANNED_NAMES


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path):
    own = part(path)
    for name in imports(TREES[path]):
        top = name.split(".")[0]
        assert top not in BANNED_MODULES, name
        if own in NO_JAX:
            assert top not in ("jax", "jaxlib"), name
        if name.startswith("jax._src"):
            assert path == SOURCE / "runtime/compat.py"
        inner = name.split(".")[1] if name.startswith("ranvier.") else None
        if inner and own in MAY_IMPORT:
            assert inner in {own, "version"} | MAY_IMPORT[own], name


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_banned_is_called(path):
    for node in ast.walk(TREES[path]):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", "")
        assert name not in BANNED_CALLS
        is_jax = getattr(getattr(node.func, "value", None), "id", "") == "jax"
        if is_jax and getattr(node.func, "attr", "") in COMPILING:
            assert part(path) in MAY_COMPILE
        for keyword in node.keywords:
            is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            assert not (keyword.arg == "shell" and is_true)


def test_folders_stay_small():
    for folder in {path.parent for path in FILES}:
        count = sum(1 for p in FILES if p.parent == folder and p.name != "__init__.py")
        assert count <= LIMITS["files_per_folder"], folder
    parts = ("core", "schedule", "engine")
    lines = sum(len(p.read_text().splitlines()) for p in FILES if part(p) in parts)
    assert lines <= LIMITS["core_lines"]


def test_test_files_stay_small():
    for path in (ROOT / "tests").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= LIMITS["test_file_lines"], path
