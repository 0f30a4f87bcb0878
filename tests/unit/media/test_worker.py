"""Pictures are prepared in a process that the system ends: slow ones, and those too large."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from PIL import Image
from tests.unit.media.test_decode import png, saved
from tests.unit.media.test_vision import CLIP, MODEL, QWEN, picture

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS
from ranvier.media.decode import decode
from ranvier.media.process.prepared import Configs
from ranvier.media.process.table import find_family
from ranvier.media.worker import PictureProcess

LLAVA = Configs({"model_type": "llava", **MODEL}, CLIP, {})
QWEN_VL = Configs({"model_type": "qwen2_vl"}, QWEN, {})
LARGE = {"min_pixels": 3136, "max_pixels": 25_000_000}


@pytest.fixture(scope="module")
def process():
    process = PictureProcess(limit_s=60)
    yield process
    process.close()


@pytest.mark.parametrize("configs", [LLAVA, QWEN_VL], ids=["llava", "qwen2_vl"])
def test_a_picture_is_what_it_is_in_this_process(process, configs):
    data = saved(picture(200, 300))
    here = find_family(configs.model).processor.read(configs).prepare(decode(data))
    there = process.prepare(configs, data)
    np.testing.assert_array_equal(there.values, here.values)
    assert (there.grid, there.size, there.text, there.runs) == (
        here.grid, here.size, here.text, here.runs,
    )  # fmt: skip


def test_refusals_cross_whole(process):
    with pytest.raises(RequestError, match="SVG") as error:
        process.prepare(LLAVA, b"<svg/>")
    assert error.value.param == "messages"
    with pytest.raises(RequestError, match="at most 200 times"):
        process.prepare(QWEN_VL, saved(Image.new("RGB", (1000, 2))))


def many_scans(scans):
    """A progressive JPEG whose last scan comes again and again: small, and slow by construction."""
    data = saved(Image.new("RGB", (4000, 4000), (1, 2, 3)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def test_a_picture_that_takes_too_long_is_ended_and_the_next_one_is_prepared():
    data = many_scans(5000)
    assert len(data) < 2**23
    process = PictureProcess(limit_s=3)
    try:
        small = saved(picture())
        process.prepare(LLAVA, small)
        start_s = time.monotonic()
        with pytest.raises(RequestError, match=r"took longer than 3 s and was ended"):
            process.prepare(LLAVA, data)
        assert time.monotonic() - start_s < 20
        assert process.prepare(LLAVA, small).values.shape == (1, 3, 28, 28)
    finally:
        process.close()


def test_memory_is_bounded_and_the_next_picture_is_prepared(process):
    """25 million pixels become 600 MB of two frames in f32."""
    with pytest.raises(RequestError, match=f"takes more than {LIMITS.image_memory_bytes} bytes"):
        process.prepare(
            Configs(QWEN_VL.model, LARGE, {}), saved(Image.new("RGB", (5000, 5000)), "JPEG")
        )
    assert process.prepare(LLAVA, saved(picture())).values.shape == (1, 3, 28, 28)


def test_the_largest_picture_that_is_taken_fits_the_memory(process):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.new("RGB", (6000, 5000)), "JPEG", exif=exif.tobytes())
    assert process.prepare(QWEN_VL, data).size == (6000, 5000)
    data = saved(Image.new("RGBA", (6000, 5000), (1, 2, 3, 4)), compress_level=1)
    assert process.prepare(QWEN_VL, data).size == (5000, 6000)


def test_an_ended_process_is_a_refusal_not_a_hang(process):
    process.start()
    os.kill(process._process._process.pid, 9)
    with pytest.raises(RequestError, match="bytes of memory"):
        process.prepare(LLAVA, saved(picture()))
    assert process.prepare(LLAVA, saved(picture())).grid == (1, 1, 1)


def test_a_header_that_lies_is_refused_in_the_process_too(process):
    with pytest.raises(RequestError, match="each side must be in"):
        process.prepare(LLAVA, png(65535, 2))
