"""Draft heads say what plain torch says, in every published layout, whole and token by token.

Goldens: tests/parity/make_eagle_goldens.py; the target is goldens/llama.
"""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.parity.test_parity import GOLDENS

from ranvier.build.drafting import pack_draft
from ranvier.build.eagle.features import FeatureModel
from ranvier.build.eagle.open import open_eagle
from ranvier.build.pack import Form, pack_weights
from ranvier.core.errors import CheckpointError, ConfigError
from ranvier.core.layout import MetaLayout
from ranvier.models.table import resolve
from ranvier.native import library
from ranvier.nn.eagle import EagleDrafter, EagleHead
from ranvier.nn.kernels.attention import AttentionSpec
from ranvier.nn.kernels.table import select
from ranvier.weights.checkpoint import open_checkpoint
from ranvier.weights.safetensors import SafetensorsFile
from ranvier.weights.safetensors_write import save_safetensors

HEADS = GOLDENS.parent / "eagle"
LAYOUTS = ("eagle", "eagle3", "speculators")
BLOCK, BLOCKS = 32, 2
BOUND = 2e-4


def target():
    checkpoint = open_checkpoint(GOLDENS / "llama")
    return checkpoint, resolve(checkpoint.config)


def opened(name, folder=HEADS):
    return open_eagle(folder / name, *target())


class Head:
    """A head's program over up to 64 tokens of one sequence."""

    def __init__(self, name, kernels_name, folder=HEADS):
        if kernels_name == "cpu" and not library.register():
            pytest.skip("the kernels are not built")
        checkpoint, spec = target()
        draft_checkpoint, draft = opened(name, folder)
        kernels, own = select(kernels_name), draft.spec
        weights = dict(pack_weights(checkpoint, spec, "float32", kernels_name))
        form = Form("float32", kernels_name)
        weights |= {n: own for n, (own,) in pack_draft(draft_checkpoint, draft, form)}
        drafter = EagleDrafter(draft.eagle, spec, kernels)
        self.weights = {k: jnp.asarray(w) for k, w in drafter.own(weights).items()}
        self.layout = MetaLayout(tokens=64, rows=1, blocks=BLOCKS)
        heads = AttentionSpec(own.heads, own.kv_heads, own.head_size, 1.0, 1e-6)
        shapes = kernels.cache_shapes(1, heads, BLOCKS + 1, BLOCK, jnp.float32)
        # A poisoned cache: what was never written must never be read.
        self.caches = jnp.full(shapes.k, jnp.nan), jnp.full(shapes.v, jnp.nan)
        self.program = jax.jit(self._run, static_argnames="is_fused")
        self.head = EagleHead(draft.eagle, kernels)
        self.drafter = drafter
        self.features = FeatureModel(
            checkpoint, spec, draft.eagle.taps, dtype="float32", kernels=kernels_name,
            tokens_max=64, top_count=0,
        )  # fmt: skip

    def _run(self, weights, caches, values, next_ids, meta, *, is_fused):
        fused = values if is_fused else self.head.fuse(weights, values, meta[0:1])
        streams = self.drafter.embed(weights, next_ids), fused
        x, caches = self.head.layer(weights, caches, streams, meta, self.layout)
        return self.head.logits(weights, x, meta[0:1]), x, caches

    def run(self, values, next_ids, start, is_fused=False):
        """(logits, streams) of tokens from `start` on; values: features, or streams if fused."""
        count = len(next_ids)
        meta, at = np.zeros(self.layout.size, np.int32), self.layout.slices
        meta[at["positions"]][:count] = np.arange(start, start + count)
        meta[at["query_starts"]][1:] = count
        meta[at["context_lens"]] = start + count
        meta[at["block_tables"]] = [1, 2]
        meta[:3] = (count, 1, 1)
        padding = 64 - count
        values = np.pad(values, ((0, padding), (0, 0)))
        ids = np.pad(np.asarray(next_ids, np.int32), (0, padding))
        logits, x, self.caches = self.program(
            self.weights, self.caches, values, ids, meta, is_fused=is_fused
        )
        return np.asarray(logits)[:count], np.asarray(x)[:count]

    def logits(self, features, next_ids, start):
        return self.run(features, next_ids, start)[0]


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_equal_torch_whole_and_in_parts(name, kernels):
    golden = np.load(HEADS / name / "expected.npz")
    ids, want = golden["ids"], golden["logits"]
    fed = np.append(ids[1:], golden["newest"])
    head = Head(name, kernels)
    features = head.features.run(list(ids)).values
    assert np.abs(head.logits(features, fed, 0) - want).max() < BOUND
    cut = 17
    first = head.logits(features[:cut], fed[:cut], 0)
    rest = [head.logits(features[i : i + 1], fed[i : i + 1], i) for i in range(cut, len(ids))]
    assert np.abs(np.concatenate([first, *rest]) - want).max() < BOUND


def test_what_is_shared_comes_from_the_target():
    checkpoint, spec = target()
    for name, has_embed, has_head in (("eagle", False, False), ("speculators", True, False)):
        _, draft = opened(name)
        assert (draft.eagle.has_embed, draft.eagle.has_head) == (has_embed, has_head)
        names = {array.name for array in draft.spec.arrays}
        assert ("embed" in names, "head" in names) == (has_embed, has_head)
    draft_checkpoint, draft = opened("eagle3")
    assert draft.eagle.draft_vocab == 100 and not draft.eagle.has_embed
    ids = draft_checkpoint.ids()
    t2d = draft_checkpoint.read("t2d")
    assert np.array_equal(np.flatnonzero(t2d), ids)


def changed(tmp_path, name, edit):
    """A copy of a head whose tensors and config an edit has changed."""
    shutil.copytree(HEADS / name, tmp_path / name)
    file = SafetensorsFile(HEADS / name / "model.safetensors")
    tensors = {key: np.array(file.read(key)) for key in file.names()}
    config = json.loads((HEADS / name / "config.json").read_text())
    edit(tensors, config)
    save_safetensors(tmp_path / name / "model.safetensors", tensors)
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_reduced_head_without_a_matrix_takes_its_rows_of_the_target(tmp_path):
    folder = changed(tmp_path, "eagle3", lambda tensors, config: tensors.pop("lm_head.weight"))
    draft_checkpoint, draft = opened("eagle3", folder)
    checkpoint, spec = target()
    assert not draft.eagle.has_head
    rows = draft_checkpoint.read("lm_head.weight")
    whole = checkpoint.read(spec.array("head").sources[0][0])
    assert np.array_equal(rows, whole[draft_checkpoint.ids()])


def _wide(tensors, config):
    tensors["fc.weight"] = np.zeros((64, 3 * 80), np.float32)


def _other_vocabulary(tensors, config):
    tensors["embed_tokens.weight"] = np.zeros((96, 64), np.float32)


def _no_map(tensors, config):
    del tensors["d2t"], tensors["t2d"]


def _map_past_the_end(tensors, config):
    tensors["d2t"] = tensors["d2t"] + 60


def _missing(tensors, config):
    del tensors["midlayer.mlp.up_proj.weight"]


def _foreign(tensors, config):
    tensors["medusa.0.weight"] = np.zeros((4, 4), np.float32)


def _deep(tensors, config):
    config["num_hidden_layers"] = 2


def _parallel(tensors, config):
    tensors["mask_hidden"] = np.zeros((1, 192), np.float32)


def _far_layer(tensors, config):
    config["eagle_aux_hidden_state_layer_ids"] = [1, 2, 9]


def _last_only(tensors, config):
    config["eagle_config"] = {"use_aux_hidden_state": False}


def _normed_output(tensors, config):
    config["norm_output"] = True


WRONG = {
    _last_only: "use_aux_hidden_state=false",
    _normed_output: "norm_output=true is not supported",
    _wide: "fc.weight is (64, 240), must be (64, 192)",
    _other_vocabulary: "embed_tokens.weight is (96, 64), must be (160, 64)",
    _no_map: "d2t is missing, must be (100,)",
    _map_past_the_end: "the target",
    _missing: "up_proj.weight is missing",
    _foreign: "medusa.0.weight is no part of an eagle3 head",
    _deep: "heads of one layer are supported",
    _parallel: "parallel drafting",
    _far_layer: "looks at layer 9",
}


@pytest.mark.parametrize("edit", WRONG, ids=lambda edit: edit.__name__)
def test_what_does_not_fit_is_an_error_that_names_both_sides(edit, tmp_path):
    folder = changed(tmp_path, "eagle3", edit)
    with pytest.raises(CheckpointError) as raised:
        opened("eagle3", folder)
    assert WRONG[edit] in raised.value.message
    assert "eagle3" in raised.value.message
    if edit not in (_deep, _parallel, _last_only, _normed_output):
        assert "llama" in raised.value.message


def test_a_head_of_the_other_kind_is_an_error():
    with pytest.raises(ConfigError, match="is an eagle3 head, but the method is eagle"):
        open_eagle(HEADS / "eagle3", *target(), method="eagle")
    with pytest.raises(CheckpointError, match="a draft head is a folder"):
        open_eagle(HEADS / "eagle3" / "config.json", *target())
