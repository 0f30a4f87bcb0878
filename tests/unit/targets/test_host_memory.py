"""Host memory: groups bound it, a model that fits is let through, advice names what does fit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.core.errors import TargetError
from ranvier.targets.host_memory import (
    MemoryNeed,
    check_fit,
    default_blocks,
    host_memory,
    largest_len,
    largest_seqs,
    share_blocks,
)

GB = 10**9


def need(max_model_len=4096, max_num_seqs=32, block_tokens=32):
    return MemoryNeed(
        weights_bytes=GB, block_bytes=10**6, block_tokens=block_tokens,
        block_count=default_blocks(max_model_len, max_num_seqs, block_tokens),
        max_model_len=max_model_len, max_num_seqs=max_num_seqs, program_bytes=10**8,
        reserve_bytes=10**8,
    )  # fmt: skip


def machine(root, total_kb=16_000_000, free_kb=12_000_000):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: {total_kb} kB\nMemFree: 1 kB\nMemAvailable: {free_kb} kB\n"
    )
    return root


def test_a_machine_without_groups(tmp_path):
    found = host_memory(machine(tmp_path))
    assert (found.total_bytes, found.available_bytes) == (16_000_000 * 1024, 12_000_000 * 1024)


@pytest.mark.parametrize("place", ["sys/fs/cgroup/a/b", "sys/fs/cgroup/a", "sys/fs/cgroup"])
def test_every_group_above_the_process_bounds_it(tmp_path, place):
    root = machine(tmp_path)
    (root / "proc/self/cgroup").write_text("0::/a/b\n")
    folder = root / place
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{4 * GB}\n")
    (folder / "memory.current").write_text(f"{3 * GB}\n")
    (folder / "memory.stat").write_text(f"anon {GB}\nactive_file {GB}\ninactive_file {GB}\n")
    found = host_memory(root)
    assert (found.total_bytes, found.available_bytes) == (4 * GB, 3 * GB)


def test_the_older_groups_and_no_limit(tmp_path):
    root = machine(tmp_path)
    (root / "proc/self/cgroup").write_text("3:cpu:/x\n2:memory:/y\n")
    folder = root / "sys/fs/cgroup/memory/y"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert host_memory(root).total_bytes == 16_000_000 * 1024
    (folder / "memory.limit_in_bytes").write_text(str(2 * GB))
    assert host_memory(root).total_bytes == 2 * GB


def test_this_machine_has_memory():
    found = host_memory()
    assert 0 < found.available_bytes <= found.total_bytes


def test_the_default_cache_holds_half_of_every_sequence_and_one_whole():
    assert default_blocks(4096, 32, 32) == 128 * 16 + 1
    assert default_blocks(4096, 1, 32) == 128 + 1
    assert default_blocks(33, 1, 32) == 2 + 1


def test_what_fits_is_let_through():
    check_fit(need(), need().total_bytes, "memory")
    with pytest.raises(TargetError):
        check_fit(need(), need().total_bytes - 1, "memory")


@given(st.integers(1, 8192), st.integers(1, 64), st.integers(1_300_000_000, 10 * GB))
def test_the_advice_fits_and_nothing_larger_does(length, seqs, limit):
    wanted = need(length, seqs)
    found_len, found_seqs = largest_len(wanted, limit), largest_seqs(wanted, limit)

    def fits(length, seqs):
        return need(length, seqs).total_bytes <= limit

    assert found_len == 0 or fits(found_len, seqs)
    assert found_len == length or not fits(found_len + 1, seqs)
    assert found_seqs == 0 or fits(length, found_seqs)
    assert found_seqs == seqs or not fits(length, found_seqs + 1)


def test_the_error_names_the_flags_and_sizes_that_fit():
    with pytest.raises(TargetError) as caught:
        check_fit(need(), 2 * GB, "memory")
    text = str(caught.value)
    (length,) = re.findall(r"--max-model-len (\d+)", text)
    (seqs,) = re.findall(r"--max-num-seqs (\d+)", text)
    (room,) = re.findall(r"--kv-cache-memory-bytes (\d+)", text)
    check_fit(need(int(length)), 2 * GB, "memory")
    check_fit(need(max_num_seqs=int(seqs)), 2 * GB, "memory")
    check_fit(replace(need(), block_count=int(room) // 10**6), 2 * GB, "memory")


def test_weights_alone_that_do_not_fit_are_told_so():
    with pytest.raises(TargetError, match="smaller model"):
        check_fit(need(), GB, "memory")


def test_a_share_of_memory_gives_blocks_up_to_every_full_sequence():
    assert share_blocks(need(), 100 * GB) == 128 * 32 + 1
    assert share_blocks(need(), need().fixed_bytes + 5 * 10**6) == 5
    assert share_blocks(need(), 1) == 0


def test_slots_of_adapters_are_counted_and_named():
    bare = need()
    slots = replace(bare, adapter_bytes=2 * GB)
    assert slots.total_bytes == bare.total_bytes + 2 * GB
    assert ("adapter slots", 2 * GB) in slots.rows()
    with pytest.raises(TargetError, match=r"adapter slots 2\.\d+ GB"):
        check_fit(slots, GB, "the limit")
