"""The bounds of an encoder from options."""

from __future__ import annotations

import json

import pytest

from ranvier.build.vision.encoders import without_pictures
from ranvier.cli.options.media import picture_limit
from ranvier.cli.options.settings import parse_options
from ranvier.cli.pictures import of_pictures, vision_of
from ranvier.core.errors import ConfigError
from ranvier.models.table import resolve
from ranvier.weights.checkpoint import open_checkpoint
from tests.parity.vision_cases import GOLDENS


def spec_of(family):
    return resolve(json.loads((GOLDENS / family / "config.json").read_text()))


def test_a_limit_counts_pictures():
    assert picture_limit(None) == 8
    assert picture_limit({"image": 3, "video": 0}) == 3
    told = []
    assert picture_limit({"image": {"count": 2, "width": 512}}, told.append) == 2
    assert told == ["limit_mm_per_prompt: width changes nothing: pictures of any size are compiled"]
    assert picture_limit({"image": {}}) == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": -1}, r"integer in \[0, 64\], is -1"),
        ({"image": 65}, "is 65"),
        ({"image": "2"}, "is '2'"),
        ({"image": True}, "is True"),
        ({"video": 1}, "video is 1; only pictures"),
        ({"imag": 1}, "imag is 1; only pictures"),
        ({"image": {"count": 65}}, "is 65"),
        ({"image": {"cuont": 1}}, "image has no field 'cuont'; known: count"),
    ],
)
def test_a_wrong_limit_is_named(given, message):
    with pytest.raises(ConfigError, match=message):
        picture_limit(given)


@pytest.mark.parametrize("family", ["llava", "mllama", "qwen3_vl"])
def test_no_pictures_leave_the_encoder_out(family):
    options = parse_options({"model": "x", "limit_mm_per_prompt": {"image": 0}})
    whole = spec_of(family)
    spec = of_pictures(options, whole, open_checkpoint(GOLDENS / family))
    assert vision_of(options, spec, 256) is None
    assert not any(a.name.startswith(("vision.", "cross_")) for a in spec.arrays)
    assert spec.layers == whole.layers


def test_listed_buckets_hold_whole_features_and_tiles():
    listed = {"num_vision_tokens_buckets": [30, 101]}
    options = parse_options({"model": "x", "additional_config": {"vision_neuron_config": listed}})
    assert vision_of(options, spec_of("qwen2_vl"), 256).units == (32, 104)
    assert vision_of(options, spec_of("idefics3"), 256).units == (2, 7)
    listed["num_vision_tokens_buckets"] = [1024, 1031]
    assert vision_of(options, spec_of("pixtral"), 2048).units == (1024, 1280)
    listed["num_vision_tokens_buckets"] = [17, 25, 900]
    assert vision_of(options, spec_of("mllama"), 256).units == (1, 2, 4)


def test_a_checkpoint_says_whether_tiles_of_padding_are_computed(capsys):
    options = parse_options({"model": "x"})
    for family, units in (("mllama", (4,)), ("mllama_tiles", (1, 2, 4))):
        spec = of_pictures(options, spec_of(family), open_checkpoint(GOLDENS / family))
        assert vision_of(options, spec, 256).units == units
        told = "every picture is encoded as 4 tiles" in capsys.readouterr().err
        assert told == (units == (4,)), family


@pytest.mark.parametrize(
    ("family", "kwargs", "message"),
    [
        ("qwen2_vl", {"max_pixel": 1}, "'max_pixel' is not supported.*\n.*mean max_pixels"),
        ("qwen2_vl", {"size": {"longest_edg": 1}}, "'longest_edg' of size.*mean longest_edge"),
        ("qwen2_vl", {"size": 5}, "size must be an object of shortest_edge, longest_edge"),
        ("llava", {"size": 5}, "known: none"),
        ("gemma3", {"do_pan_and_scan": 1}, "do_pan_and_scan is 1: not true or false"),
        (
            "gemma3",
            {"do_pan_and_scan": True, "pan_and_scan_max_num_crops": 0},
            "mm_processor_kwargs: .*pan_and_scan_max_num_crops is 0",
        ),
    ],
)
def test_processor_kwargs_are_checked_before_the_build(family, kwargs, message):
    options = parse_options({"model": "x", "mm_processor_kwargs": kwargs})
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        vision_of(options, spec_of(family), 256)


def test_pan_and_scan_has_a_bucket_for_its_crops():
    kwargs = {"do_pan_and_scan": True, "pan_and_scan_max_num_crops": 3}
    options = parse_options({"model": "x", "mm_processor_kwargs": kwargs})
    assert vision_of(options, spec_of("gemma3"), 256).units == (1, 4)
    without = without_pictures(spec_of("gemma3"))
    with pytest.raises(ConfigError, match="takes no pictures"):
        vision_of(options, without, 256)


def test_a_folder_of_pictures_must_be_there():
    with pytest.raises(ConfigError, match="allowed_local_media_path: no/where: no such folder"):
        parse_options({"model": "x", "allowed_local_media_path": "no/where"})


def test_a_length_that_holds_no_picture_is_refused():
    options = parse_options({"model": "x"})
    with pytest.raises(ConfigError, match="holds no picture: the smallest takes 16 tokens"):
        vision_of(options, spec_of("llava"), 15)
