"""decode: the bytes of a picture file as an upright RGB picture.

The kind is told by the first bytes and must be one of KINDS; sizes are checked in the header,
before anything is decoded. Whatever the codec says stays here: messages are this module's own.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ranvier.core.errors import RequestError
from ranvier.core.limits import LIMITS

__all__ = ["KINDS", "as_rgb", "check_sides", "decode", "read_picture"]

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MARKS = {
    b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF87a": "GIF", b"GIF89a": "GIF",
    b"BM": "BMP",
}  # fmt: skip
MOVING = ("PNG", "WEBP", "GIF")
"""Kinds that may hold several frames; a JPEG's further pictures are its thumbnails."""
ORIENTATION = 0x0112
STRIP_ROWS = 512
WHITE = (255, 255, 255, 255)


def decode(data: bytes) -> Image.Image:
    """An RGB picture, turned as its EXIF data says, on white where it is transparent.

    Raises RequestError for other kinds, animations, sizes out of bounds and damaged files.
    """
    if len(data) > LIMITS.image_bytes_max:
        raise _refused(f"The picture is larger than {LIMITS.image_bytes_max} bytes.")
    kind = _kind(data)
    try:
        picture = Image.open(io.BytesIO(data), formats=[kind])
    except Image.DecompressionBombError:
        raise _too_many_pixels() from None
    except MemoryError:
        raise
    except Exception:  # codecs raise what they like
        raise _damaged(kind) from None
    check_sides(*picture.size)
    try:
        if kind in MOVING and getattr(picture, "is_animated", False):
            raise _refused(f"The {kind} picture is animated; send one frame of it.")
        picture.load()
        return as_rgb(picture)
    except (RequestError, MemoryError):
        raise
    except Exception:  # the same
        raise _damaged(kind) from None


def read_picture(given: object) -> Image.Image:
    """A caller's own picture as RGB: Pillow's, uint8 [height, width(, channels)] of numpy, a path.

    Raises RequestError.
    """
    if isinstance(given, (str, Path)):
        try:
            with open(given, "rb") as file:
                return decode(file.read(LIMITS.image_bytes_max + 1))
        except (OSError, ValueError):
            raise _refused(f"No picture can be read at {str(given)[:256]!r}.") from None
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim not in (2, 3) or 0 in given.shape:
            raise _refused(
                f"An array of {given.dtype} {list(given.shape)} is no picture: give uint8 of "
                "[height, width, 3]."
            )
        shape = list(given.shape)
        try:
            given = Image.fromarray(given)
        except (TypeError, ValueError):
            raise _refused(f"An array of {shape} is no picture.") from None
    if not isinstance(given, Image.Image):
        raise _refused(
            f"A picture is one of Pillow, an array of numpy or a path, not {type(given).__name__}."
        )
    check_sides(*given.size)
    return as_rgb(given)


def as_rgb(picture: Image.Image) -> Image.Image:
    """Any Pillow picture as an upright RGB one. 16-bit grey keeps its high byte, as colour does."""
    if picture.mode.startswith("I;16"):
        high = np.asarray(picture, np.uint16) >> 8
        picture = Image.fromarray(high.astype(np.uint8))
    if picture.getexif().get(ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        return _on_white(picture)
    return picture.convert("RGB")


def check_sides(width: int, height: int) -> None:
    """Raise RequestError for sizes out of bounds."""
    low, high = LIMITS.image_sides
    if not (low <= width <= high and low <= height <= high):
        raise _refused(
            f"The picture is {width}x{height} pixels; each side must be in [{low}, {high}]."
        )
    if width * height > LIMITS.image_pixels_max:
        raise _too_many_pixels()


def _on_white(picture: Image.Image) -> Image.Image:
    """Blended in strips, so that no third copy of a large picture is made."""
    blended = Image.new("RGB", picture.size)
    for top in range(0, picture.height, STRIP_ROWS):
        strip = picture.crop((0, top, picture.width, min(top + STRIP_ROWS, picture.height)))
        strip = strip.convert("RGBA")
        white = Image.new("RGBA", strip.size, WHITE)
        blended.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return blended


def _kind(data: bytes) -> str:
    """Raises RequestError for what is none of KINDS."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for mark, kind in MARKS.items():
        if data.startswith(mark):
            return kind
    head = data[:512].lstrip().lower()
    found = "an SVG drawing" if b"<svg" in head or head.startswith(b"<?xml") else "of another kind"
    raise _refused(f"The picture is {found}; supported are {', '.join(KINDS)}.")


def _damaged(kind: str) -> RequestError:
    return _refused(f"The {kind} picture is damaged or cut short.")


def _too_many_pixels() -> RequestError:
    return _refused(f"The picture has more than {LIMITS.image_pixels_max} pixels.")


def _refused(message: str) -> RequestError:
    return RequestError(message, param="messages")
