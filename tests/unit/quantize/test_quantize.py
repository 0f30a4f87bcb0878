"""`ranvier quantize`: what is written is what was made, and it is read back by its config."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open

from ranvier.cli.main import main
from ranvier.models.table import resolve
from ranvier.quantize.make import Making
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.quantise.compensation import Compensation
from ranvier.weights.quantise.rounding import quantise
from ranvier.weights.quantise.scheme import SCHEMES, parse_scheme
from ranvier.weights.quantise.selection import select

TEXT = "".join(f"{i} apples and {i * i % 7} pears. " for i in range(60))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def quantize(model, output, *more):
    return main(["quantize", str(model), "--output", str(output), *more])


@pytest.mark.parametrize("name", SCHEMES)
def test_a_folder_gives_back_what_was_made(tiny_model, tmp_path, name):
    given = ["--scheme", name, "--evaluation", "none"]
    assert quantize(tiny_model, tmp_path / "out", *given) == 0
    dense, made = open_checkpoint(tiny_model), open_checkpoint(tmp_path / "out")
    scheme = parse_scheme(name)
    scheme = replace(scheme, group=min(scheme.group, 32))  # 96 inputs: all take 32
    schemes = select(dense.tensor_names(), scheme, with_head=False)
    assert made.tensor_names() == dense.tensor_names() and len(schemes) == 21
    for tensor in dense.tensor_names():
        assert made.shape(tensor) == dense.shape(tensor)
        found, wanted = made.read_quantised(tensor), dense.read(tensor)
        if tensor in schemes:
            wanted = quantise(wanted.astype(np.float32), scheme, tensor)
            assert (found.bits, found.group, found.kind) == (
                wanted.bits, wanted.group, wanted.kind,
            )  # fmt: skip
            assert found.activation_bits == wanted.activation_bits
            wanted = wanted.values()
        np.testing.assert_array_equal(made.read(tensor), wanted)
    assert resolve(made.config) == resolve(dense.config)


def test_the_safetensors_package_reads_the_files(tiny_model, tmp_path):
    quantize(tiny_model, tmp_path / "out", "--scheme", "int4-asym", "--evaluation", "none")
    with safe_open(str(tmp_path / "out/model.safetensors"), "np") as file:
        name = "model.layers.0.self_attn.q_proj"
        assert file.get_tensor(f"{name}.weight_packed").shape == (64, 8)
        assert file.get_tensor(f"{name}.weight_zero_point").shape == (8, 2)
        assert file.get_tensor(f"{name}.weight_shape").tolist() == [64, 64]
        assert f"{name}.weight" not in file.keys()  # noqa: SIM118


def test_the_report_counts_and_measures(tiny_model, tmp_path, text, capsys):
    given = ["--scheme", "int8-dynamic", "--evaluation", text, "--report", str(tmp_path / "r.json")]
    assert quantize(tiny_model, tmp_path / "out", *given) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    sizes = [f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors")]
    assert 0 < sum(sizes) - report["bytes_quantised"] < 20_000
    assert len(report["errors"]) == 21 and len(report["layers"]) == 3
    assert min(report["errors"].values()) > 0 and max(report["errors"].values()) < 1e-3
    gone = report["divergence"]
    assert abs(gone["perplexity_increase"]) < 0.02 and 0 < gone["kl_mean"] < 0.01
    assert gone["same_top_share"] > 0.9
    shown = capsys.readouterr().out
    assert "perplexity" in shown and "worst weights" in shown


class Scaled:
    """A checkpoint whose norms blow one channel up, as trained models' do."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def read(self, name):
        found = np.array(self._inner.read(name), np.float32)
        if name.endswith("layernorm.weight"):
            found[5] *= 60
        elif "_proj" in name and not name.endswith(("o_proj.weight", "down_proj.weight")):
            found[:, 5] /= 60
        return found


def test_smoothing_saves_8_bit_activations_from_outliers(tiny_model):
    checkpoint = Scaled(open_checkpoint(tiny_model))
    spec = resolve(checkpoint.config)
    schemes = select(checkpoint.tensor_names(), parse_scheme("int8-dynamic"), with_head=False)
    ids = np.random.default_rng(0).integers(3, 160, (8, 128))
    kl = []
    for calibration in (None, ids[:6]):
        making = Making(checkpoint, spec, schemes, calibration=calibration, evaluation=ids[6:])
        # Two norms a layer change when it is smoothed.
        assert len(dict(making.tensors())) == (21 if calibration is None else 27)
        kl.append(making.divergence.kl_mean)
    assert kl[1] < 0.5 * kl[0]


def test_a_smoothed_folder_is_the_same_model(tiny_model, tmp_path, text):
    given = ["--scheme", "int8-dynamic", "--calibration", text, "--evaluation", "none"]
    assert quantize(tiny_model, tmp_path / "out", *given) == 0
    made, dense = open_checkpoint(tmp_path / "out"), open_checkpoint(tiny_model)
    norm = "model.layers.1.post_attention_layernorm.weight"
    by = dense.read(norm).astype(np.float32) / made.read(norm).astype(np.float32)
    assert by.max() > 1.2 * by.min()
    gate = "model.layers.1.mlp.gate_proj.weight"
    np.testing.assert_allclose(made.read(gate) / by, dense.read(gate), atol=0.02, rtol=0.02)
    assert made.tensor_names() == dense.tensor_names()


def test_compensation_loses_less_on_what_the_activations_weigh():
    rng = np.random.default_rng(0)
    mixing = rng.normal(0, 1, (96, 96)) * np.geomspace(0.05, 3, 96)
    x = (rng.normal(0, 1, (2000, 96)) @ mixing).astype(np.float32)
    matrix = rng.normal(0, 1, (40, 96)).astype(np.float32)
    hessian = x.T @ x / np.float32(len(x))
    for name in ("int4-g32", "int4-g32-asym", "int8"):
        scheme = parse_scheme(name)
        plain = quantise(matrix, scheme, "m").values()
        aware = Compensation("m", hessian).quantise(matrix, scheme, "m")
        aware.check("m")
        lost = [np.square(x @ (m - matrix).T).mean() for m in (plain, aware.values())]
        assert lost[1] < 0.6 * lost[0], name


def test_calibration_lowers_the_divergence_of_int4(tiny_model):
    checkpoint = open_checkpoint(tiny_model)
    spec = resolve(checkpoint.config)
    schemes = select(checkpoint.tensor_names(), parse_scheme("int4"), with_head=False)
    ids = np.random.default_rng(0).integers(3, 160, (8, 128))
    kl = []
    for calibration in (None, ids[:6]):
        making = Making(checkpoint, spec, schemes, calibration=calibration, evaluation=ids[6:])
        assert len(dict(making.tensors())) == 21
        kl.append(making.divergence.kl_mean)
    assert kl[1] < kl[0]


BAD = {
    "a scheme": (["--scheme", "int3"], "Unknown quantisation scheme 'int3'. Did you mean"),
    "a pattern": (["--scheme", "int8", "--ignore", "gate_project"], "'gate_project' matches no"),
    "everything left out": (["--scheme", "int8", "--ignore", "layers"], "leaves no module"),
    "a text": (["--scheme", "int8", "--evaluation", "missing.txt"], "missing.txt: no such text"),
    "fp8 calibrated": (["--scheme", "fp8", "--calibration", "shipped"], "rounded to nearest"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_and_nothing_is_written(tiny_model, tmp_path, capsys, case):
    given, message = BAD[case]
    assert quantize(tiny_model, tmp_path / "out", *given) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_not_written_over(tiny_model, tmp_path, capsys):
    (tmp_path / "mine").write_text("precious")
    assert quantize(tiny_model, tmp_path, "--scheme", "int8") == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "precious"


def test_modules_left_out_stay_dense(tiny_model, tmp_path):
    given = ["--scheme", "int8", "--evaluation", "none", "--ignore", "down_proj"]
    given += ["--ignore", "layers.0"]  # as `--ignore down_proj layers.0`
    assert quantize(tiny_model, tmp_path / "out", *given) == 0
    made, dense = open_checkpoint(tmp_path / "out"), open_checkpoint(tiny_model)
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        assert made.read_quantised(name) is None
        np.testing.assert_array_equal(made.read(name), dense.read(name))
    assert made.read_quantised("model.layers.1.mlp.up_proj.weight").bits == 8
