"""A model's fingerprint is its files' content; the memo of hashes is right, and bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ranvier.cli.options.settings import cache_folder
from ranvier.weights import revision
from ranvier.weights.revision import content_revision


@pytest.fixture
def memo(tmp_path):
    return tmp_path / "memo"


def files(tmp_path, count):
    paths = [tmp_path / f"{i}.safetensors" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 100)
    return paths


def test_a_changed_file_is_another_revision_though_its_hash_was_kept(tmp_path, memo):
    [path] = files(tmp_path, 1)
    first = content_revision([path], memo)
    assert content_revision([path], memo) == first == content_revision([path])
    path.write_bytes(b"other" * 20)
    assert content_revision([path], memo) == content_revision([path]) != first


def test_a_remembered_file_is_not_read_again(tmp_path, memo, monkeypatch):
    [path] = files(tmp_path, 1)
    first = content_revision([path], memo)
    monkeypatch.setattr(revision, "CHUNK", "read")  # whoever reads the file fails
    assert content_revision([path], memo) == first


def test_the_memo_keeps_what_was_asked_for_last(tmp_path, memo, monkeypatch):
    monkeypatch.setattr(revision, "NOTES_MAX", 3)
    one, two, *others = files(tmp_path, 4)
    for path in (one, two):
        content_revision([path], memo)
    for age, note in enumerate(sorted(memo.iterdir(), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(note, ns=(age, age))  # long ago, the first before the second
    content_revision([one], memo)
    for path in others:
        content_revision([path], memo)
        assert len(list(memo.iterdir())) <= 3
    monkeypatch.setattr(revision, "CHUNK", "read")  # whoever reads a file fails
    for path in (one, *others):
        content_revision([path], memo)
    with pytest.raises(TypeError):
        content_revision([two], memo)


def test_tests_have_a_cache_of_their_own():
    assert cache_folder() != Path.home() / ".cache" / "ranvier"
