"""Shared fixtures: a tiny model folder with a tokenizer of its own, made of the parity goldens.

Tests write nothing into the user's cache: a run has one of its own, removed at its end, that sees
the user's models and heads.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import pytest

from ranvier.cli.options.settings import cache_folder

GOLDENS = Path(__file__).parent / "parity" / "goldens"
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def pytest_configure(config):
    """Before any test module is imported. Workers of one run inherit its cache."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    own, user = Path(tempfile.mkdtemp(prefix="ranvier-tests-")), cache_folder()
    config.add_cleanup(lambda: shutil.rmtree(own, ignore_errors=True))
    (own / "models").mkdir()
    for path in (*user.glob("models/*.gguf"), user / "heads"):
        if path.exists():
            (own / path.relative_to(user)).symlink_to(path.resolve())
    os.environ["RANVIER_CACHE_ROOT"] = str(own)


def byte_tokenizer(vocab_size):
    """A byte-level tokenizer of the printable range: ids 3.. are bytes, 0..2 special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: vocab_size - 3]
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<pad>", "<s>", "</s>")])
    return tokenizer.to_str()


def eventually(is_true, limit_s):
    """Wait until something holds. Fails after limit_s."""
    deadline_s = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < deadline_s, f"not within {limit_s} s"
        threading.Event().wait(0.01)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A Hugging Face folder: tiny random Llama, 160 ids, length 256."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(GOLDENS / "llama", folder)
    (folder / "tokenizer.json").write_text(byte_tokenizer(160))
    config = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tiny_options(tiny_model, tmp_path_factory):
    """Options under which the tiny model is built once for all tests."""
    return {
        "model": str(tiny_model), "dtype": "float32", "max_model_len": 128, "max_num_seqs": 4,
        "max_num_batched_tokens": 32, "block_size": 32,
        "artifacts": str(tmp_path_factory.mktemp("artifacts")),
    }  # fmt: skip


@pytest.fixture(scope="session")
def llm(tiny_options):
    from ranvier import LLM

    return LLM(**tiny_options)
