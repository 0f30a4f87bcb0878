"""decode: what it takes, what it refuses, and that its words are its own."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS
from ranvier.media.decode import KINDS, decode

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 14, 3)).astype(np.uint8)
FORBIDDEN_WORDS = ("PIL", "object", "0x", "cannot", "Errno", "zlib", "<", "BytesIO", "broken")


def saved(picture, kind="PNG", **options):
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def png(width, height, *, depth=8, colour=2, body=b""):
    """A PNG whose header says what it likes."""

    def chunk(name, data):
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", body), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def refusal(data):
    with pytest.raises(RequestError) as caught:
        decode(data)
    message = caught.value.message
    assert not any(word in message for word in FORBIDDEN_WORDS), message
    return message


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "JPEG"])
def test_each_kind_is_read(kind):
    picture = Image.fromarray(PIXELS)
    data = saved(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))
    found = decode(data)
    assert (found.mode, found.size) == ("RGB", (14, 9))
    if kind in ("PNG", "WEBP", "BMP"):
        np.testing.assert_array_equal(np.asarray(found), PIXELS)
    assert kind in KINDS


def test_transparency_is_blended_on_white():
    pixels = np.dstack([PIXELS, np.full((9, 14), 128, np.uint8)])
    found = np.asarray(decode(saved(Image.fromarray(pixels)))).astype(int)
    alpha = 128 / 255
    assert np.abs(found - (PIXELS * alpha + 255 * (1 - alpha))).max() <= 1
    grey = Image.fromarray(np.dstack([PIXELS[..., 0], np.zeros((9, 14), np.uint8)]))
    assert np.asarray(decode(saved(grey))).min() == 255
    palette = Image.fromarray(PIXELS).quantize(8)
    gone = int(np.asarray(palette)[0, 0])
    assert np.asarray(decode(saved(palette, transparency=gone)))[0, 0].tolist() == [255] * 3


def test_a_tall_transparent_picture_is_blended_throughout():
    pixels = np.zeros((1300, 4, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 255
    found = np.asarray(decode(saved(Image.fromarray(pixels))))
    assert (found == (200, 0, 0)).all()


def test_grey_cmyk_and_16_bits_become_rgb():
    grey = decode(saved(Image.fromarray(PIXELS[..., 0])))
    np.testing.assert_array_equal(np.asarray(grey), np.repeat(PIXELS[..., :1], 3, axis=2))
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    found = decode(saved(cmyk, "JPEG", quality=100))
    assert found.mode == "RGB"
    wide = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 256 + 17)
    assert wide.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(decode(saved(wide)))[..., 0], PIXELS[..., 0])
    one_bit = Image.fromarray(PIXELS[..., 0]).convert("1")
    assert set(np.unique(np.asarray(decode(saved(one_bit))))) == {0, 255}


def test_exif_turns_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.asarray(decode(saved(Image.fromarray(PIXELS), exif=exif.tobytes())))
    np.testing.assert_array_equal(turned, np.rot90(PIXELS, -1))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused(kind):
    frames = [Image.fromarray(np.full((9, 14, 3), n * 60, np.uint8)) for n in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "animated" in refusal(data)


def test_sizes_are_checked_before_anything_is_decoded():
    low, high = LIMITS.image_sides
    assert f"65535x2 pixels; each side must be in [{low}, {high}]" in refusal(png(65535, 2))
    assert "1x1" in refusal(saved(Image.fromarray(PIXELS[:1, :1])))
    assert str(LIMITS.image_pixels_max) in refusal(png(16000, 16000))
    assert str(LIMITS.image_pixels_max) in refusal(png(2**31 - 1, 2**31 - 1))
    assert "larger than" in refusal(b"\xff\xd8\xff" + bytes(LIMITS.image_bytes_max))


def test_a_bomb_is_not_blown_up():
    """A header within the limits and data that would not end."""
    body = zlib.compress(bytes(50_000_000), 9)
    found = decode(png(64, 64, body=body))
    assert found.size == (64, 64)


def test_other_kinds_are_named():
    assert "SVG" in refusal(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    assert "SVG" in refusal(b'<?xml version="1.0"?><!DOCTYPE svg>')
    assert "PNG, JPEG, WEBP, GIF, BMP" in refusal(b"II*\0 a tiff")
    assert "of another kind" in refusal(b"")
    assert "of another kind" in refusal(b"%!PS-Adobe")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_file_cut_short_is_damaged(kind):
    data = saved(Image.fromarray(np.tile(PIXELS, (6, 6, 1))), kind)
    assert f"The {kind} picture is damaged" in refusal(data[: len(data) // 2])


SEEDS = [saved(Image.fromarray(PIXELS), kind) for kind in KINDS]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_mutations_give_a_picture_or_a_refusal(data, draw):
    cut = draw.draw(st.integers(8, len(data)))
    changed = bytearray(data[:cut])
    for _ in range(draw.draw(st.integers(0, 6))):
        changed[draw.draw(st.integers(0, cut - 1))] = draw.draw(st.integers(0, 255))
    _picture_or_refusal(bytes(changed))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF"]),
       st.binary(max_size=200))  # fmt: skip
def test_random_bytes_give_a_picture_or_a_refusal(mark, data):
    _picture_or_refusal(mark + data)


def _picture_or_refusal(data):
    try:
        assert decode(data).mode == "RGB"
    except RequestError as error:
        assert not any(word in error.message for word in FORBIDDEN_WORDS), error.message
