"""Whatever a configuration holds, the answer is a translation or one ConfigError."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ranvier.core.errors import ConfigError
from ranvier.targets.neuron.config.read import merge
from ranvier.targets.neuron.config.table import SECTIONS
from ranvier.targets.neuron.config.translate import translate

NAMES = sorted({name for fields in SECTIONS.values() for name in fields})
SECTION_NAMES = ["override_neuron_config", "neuron_config", "vision-neuron-config"]
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 5000), st.floats(allow_nan=False),
    st.text(max_size=4),
    st.lists(st.integers(-1, 5000), max_size=4), st.just("torch.bfloat16"),
)  # fmt: skip
keys = st.one_of(
    st.sampled_from(NAMES), st.sampled_from(NAMES).map(lambda name: name.replace("_", "-")),
    st.text(max_size=5),
)  # fmt: skip
values = st.recursive(leaves, lambda inner: st.dictionaries(keys, inner, max_size=5), max_leaves=9)
sections = st.dictionaries(keys, values, max_size=9)
plain = st.fixed_dictionaries(
    {},
    optional={
        "max_model_len": st.integers(1, 5000), "max_num_seqs": st.integers(1, 64),
        "max_num_batched_tokens": st.integers(1, 5000), "dtype": st.sampled_from(["auto", "bf16"]),
    },
)  # fmt: skip


@given(
    st.dictionaries(st.one_of(st.sampled_from(SECTION_NAMES), keys), st.one_of(sections, leaves)),
    st.one_of(sections, st.none(), leaves),
    plain,
)
@settings(max_examples=150, deadline=None)
def test_a_configuration_is_translated_or_refused(additional, override, own):
    try:
        found = translate(additional, override, own, {})
    except ConfigError as error:
        assert error.message
        return
    for listed in (found.buckets.prefill_tokens, found.buckets.contexts):
        assert listed is None or list(listed.sizes) == sorted(set(listed.sizes))
    for name, value in found.options.items():
        if name in own and name != "dtype":
            assert own[name] == value


@given(sections, sections)
@settings(max_examples=100, deadline=None)
def test_merging_keeps_what_is_laid_on_top(base, over):
    merged = merge(base, over)
    assert merge(merged, over) == merged
    assert merge({}, merged).keys() == merged.keys()
