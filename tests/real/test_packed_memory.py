"""Packed weights take bits x parameters + scales, in the artifact and in the memory of an engine.

The model's own sizes give the bytes: linears of the layers in the scheme, the tied embedding in
int8 with a scale a row (GGUF: as the file has it), norms in f32. Memory is what of weights.bin is
mapped, and what the process takes beside it beyond one with dense weights.
"""

from __future__ import annotations

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest

from ranvier.cli.wire import locate
from tests.numerics.isa import NEEDS_KERNELS

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(600), NEEDS_KERNELS]
MODEL = "smollm2-135m"
LAYERS, HIDDEN, INNER, KV, WORDS = 30, 576, 1536, 192, 49152
LINEARS = [(HIDDEN, HIDDEN), (KV, HIDDEN), (KV, HIDDEN), (HIDDEN, HIDDEN),
           (INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]  # fmt: skip
NORMS = 4 * (2 * LAYERS + 1) * HIDDEN
MORE = 1.03
LOADS = 2
SIZES = {"dtype": "bfloat16", "max_model_len": 64, "max_num_seqs": 1, "max_num_batched_tokens": 8}
CHILD = """
import gc, json, sys
from pathlib import Path
from ranvier import LLM, SamplingParams
llm = LLM(**json.loads(sys.argv[1]))
params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
llm.generate([{"prompt_token_ids": list(range(3, 20))}], params, use_tqdm=False)
gc.collect()
mapped = own = 0
is_weights = False
for line in Path("/proc/self/smaps").read_text().splitlines():
    words = line.split()
    if not words[0].endswith(":"):
        is_weights = line.endswith("/weights.bin")
    elif words[0] == "Rss:" and is_weights:
        mapped += 1024 * int(words[1])
    elif words[0] == "Anonymous:" and not is_weights:
        own += 1024 * int(words[1])
print(json.dumps([mapped, own]))
llm.close()
"""


def group_of(wanted, inputs):
    """576 inputs have no groups of 128."""
    return next(group for group in (128, 64, 32) if group <= wanted and inputs % group == 0)


def scheme_bytes(bits, group=0):
    """Integers in groups have 16-bit scales; one scale an output has 32 bits."""
    size = WORDS * HIDDEN + 4 * WORDS + NORMS
    for outputs, inputs in LINEARS:
        scales = 2 * outputs * inputs // group_of(group, inputs) if group else 4 * outputs
        size += LAYERS * (outputs * inputs * bits // 8 + scales)
    return size


def dense_bytes():
    linears = LAYERS * sum(outputs * inputs for outputs, inputs in LINEARS)
    return 2 * (WORDS * HIDDEN + linears) + NORMS


def requantised(target, form):
    """The model's file with every matrix in one format, by the gguf package."""
    reader, kind = gguf.GGUFReader(locate(MODEL)), gguf.GGMLQuantizationType[form]
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        wide = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if wide.ndim == 1:
            writer.add_tensor(tensor.name, wide)
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(wide, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def file_bytes(path):
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)


def measure(root, **options):
    """(bytes of weights.bin, of it in memory, of the process's other memory: the least of some)."""
    words = [sys.executable, "-c", CHILD]
    given = json.dumps({"model": MODEL, "artifacts": str(root), **SIZES, **options})
    runs = []
    for _ in range(1 + LOADS):  # the first builds, the others only load
        done = subprocess.run([*words, given], stdout=subprocess.PIPE, check=True, timeout=300)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    mapped, own = map(min, zip(*runs[1:], strict=True))
    [weights] = root.glob("*/weights.bin")
    return weights.stat().st_size, mapped, own


@pytest.fixture(scope="module")
def own_of_dense(tmp_path_factory):
    """What the engine takes beside its weights."""
    size, mapped, own = measure(tmp_path_factory.mktemp("dense"), quantization="none")
    assert dense_bytes() <= size <= 1.01 * dense_bytes() and mapped >= 0.99 * size
    return own


CASES = {
    "int8": lambda folder: (scheme_bytes(8), {"quantization": "int8"}),
    "int8-dynamic": lambda folder: (scheme_bytes(8), {"quantization": "int8-dynamic"}),
    "int4": lambda folder: (scheme_bytes(4, 32), {"quantization": "int4"}),
    "int4-g128": lambda folder: (scheme_bytes(4, 128), {"quantization": "int4-g128"}),
    "fp8": lambda folder: (scheme_bytes(8), {"quantization": "fp8"}),
    "gguf q4_0": lambda folder: gguf_case(folder, "Q4_0"),
    "gguf q8_0": lambda folder: gguf_case(folder, "Q8_0"),
}


def gguf_case(folder, form):
    path = requantised(folder / "m.gguf", form)
    return file_bytes(path), {"model": str(path)}


@pytest.mark.parametrize("name", CASES)
def test_packed_weights_are_the_bits_and_the_scales(own_of_dense, tmp_path, name):
    wanted, options = CASES[name](tmp_path)
    size, mapped, own = measure(tmp_path / "artifacts", **options)
    taken = mapped + own - own_of_dense
    figures = f"{wanted / 1e6:.1f} MB; file {size / wanted:.4f}, memory {taken / wanted:.4f}"
    print(f"{name}: {figures}")
    # Less than all of it would mean that something was not counted.
    assert wanted <= size <= MORE * wanted, figures
    assert mapped >= 0.99 * size and taken <= MORE * wanted, figures
