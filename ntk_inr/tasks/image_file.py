"""Image files and arrays turned into values in [0, 1]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from ntk_inr import _checks
from ntk_inr._optional import require
from ntk_inr.tasks.files import bundled_name, existing_file, reading

BUNDLED = ("camera", "astronaut", "coffee", "chelsea")
"""Images that scikit-image carries."""
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""Suffixes of the images of a folder."""


def load_prepared(source: Any, *, size: int | None, grey: bool) -> tuple[str, np.ndarray, tuple[int, int]]:
    """Return a name, the image, grey if asked for, with its longer side at most ``size`` pixels, and (h, w) before."""
    name, image = load_image(source)
    whole = image.shape[0], image.shape[1]
    if grey and image.shape[2] == 3:
        image = (image @ np.array([0.299, 0.587, 0.114], np.float32))[:, :, None]
    if size is not None:
        _checks.check_positive(size, "size", integer=True, least=2)
        image = reduce_image(image, size)
    pixels = image.shape[0] * image.shape[1]
    if pixels < 2:
        raise ValueError(f"image {name!r} has {pixels} pixel; expected at least 2 to fit anything.")
    return name, np.ascontiguousarray(image, np.float32), whole


def load_image(source: Any) -> tuple[str, np.ndarray]:
    """Return a name and float32 values (h, w, 1 or 3) in [0, 1] of a file, a bundled image, a picture or an array."""
    if is_picture(source):
        with reading("image", "an image"):
            stored = stored_values(source)
        return "array", to_unit(stored, "image")
    array = _checks.as_numpy(source, "image")
    if array is not None:
        return "array", to_unit(array, "image")
    if name := bundled_name(source, BUNDLED):
        return name, to_unit(getattr(require("skimage.data"), name)(), name)
    path = existing_file(source, "image", BUNDLED)
    return path.name, to_unit(load_frame(path, 0), str(path))


def is_picture(source: Any) -> bool:
    """Return whether a source is an image of Pillow; Pillow itself is not imported for that."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(source, pil.Image)


def has_eight_bits(source: Any) -> bool:
    """Return whether an image or a stack of them, a source that can be loaded, holds integers of at most 8 bits."""
    if isinstance(source, list | tuple) and source and all(map(is_picture, source)):
        return all(map(has_eight_bits, source))
    array = stored_values(source) if is_picture(source) else _checks.as_numpy(source, "image")
    if array is not None:
        kind, size = array.dtype.kind, array.dtype.itemsize
        if kind == "b" or (kind == "u" and size <= 2):
            return size == 1
        return kind in "iu" and array.size > 0 and white_level(array.dtype, array.min(), array.max()) is not None
    path = Path(source)
    if bundled_name(source, BUNDLED) or not path.exists():
        return bool(bundled_name(source, BUNDLED))
    if path.is_dir():
        return all(has_eight_bits(file) for file in path.iterdir() if file.suffix.lower() in PICTURES)
    if path.suffix.lower() == ".npy":
        return has_eight_bits(np.load(path, mmap_mode="r"))
    with require("PIL.Image").open(path) as opened:
        return not opened.mode.startswith(("I", "F"))


def load_frame(path: Path, frame: int) -> np.ndarray:
    """Return the stored values of one frame of an image file that may have several; see :func:`stored_values`."""
    with reading(path, "an image"), require("PIL.Image").open(path) as opened:
        opened.seek(frame)
        return stored_values(opened)


def count_frames(path: Path) -> int:
    """Return how many frames an image file has."""
    with reading(path, "an image"), require("PIL.Image").open(path) as opened:
        return int(getattr(opened, "n_frames", 1))


def stored_values(picture: Any) -> np.ndarray:
    """Return the numbers of an image of Pillow upright, (h, w) or (h, w, 2 to 4), its colours turned to RGB."""
    # Pillow opens files of 16 bits in 32 where it has no mode for them; what else is in 32 bits holds its own numbers.
    widened = picture.mode == "I" and picture.format in ("PNG", "PPM", "JPEG2000")
    picture = require("PIL.ImageOps").exif_transpose(picture)
    transparent = "transparency" in picture.info
    if picture.mode == "PA" or (picture.mode in ("P", "RGB") and transparent):
        picture = picture.convert("RGBA")
    elif picture.mode in ("1", "L") and transparent:
        picture = picture.convert("LA")
    elif picture.mode in ("1", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    elif picture.mode in ("La", "RGBa"):
        picture = picture.convert(picture.mode.upper())
    return np.asarray(picture, np.uint16 if widened else None)


def white_level(dtype: np.dtype, low: Any, high: Any) -> float | None:
    """Return the number that stands for 1 among those from ``low`` to ``high``; None where only they tell a range.

    It depends on the kind of numbers and on their values, not on what they came in: bytes and unsigned 16-bit
    integers have their type's range, other integers that of marks (0 and 1) or of bytes, floats [0, 1] with room for
    rounding.
    """
    if dtype.kind == "b":
        return 1.0
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return float(np.iinfo(dtype).max)
    if dtype.kind in "iu":
        return next((level for level in (1.0, 255.0) if low >= 0 and high <= level), None)
    rounding = max(1e-5, 8 * float(np.finfo(dtype).eps))
    return 1.0 if low >= -rounding and high <= 1 + rounding else None


def to_unit(array: np.ndarray, name: str) -> np.ndarray:
    """Return numbers of an image as float32 (h, w, 1 or 3) over their :func:`white_level`, alpha laid over white."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise ValueError(f"{name} has shape {array.shape}; expected (h, w), (h, w, 3) or (h, w, 4).")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, so it is empty.")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers or floating point values.")
    _checks.check_finite(array, name)
    low, high = array.min(), array.max()
    white = white_level(array.dtype, low, high)
    if white is None and array.dtype.kind == "f":
        raise ValueError(
            f"{name} has values from {low:.9g} to {high:.9g}; floating point images are expected in [0, 1]: scale "
            "them first."
        )
    if white is None and not 0 <= low <= high <= 65535:
        raise ValueError(f"{name} has integers from {low} to {high}; expected 0 to 255 or 0 to 65535.")
    unit = array.astype(np.float32)
    unit /= np.float32(white or 65535)
    np.clip(unit, 0, 1, out=unit)
    if unit.shape[2] in (2, 4):
        alpha = unit[:, :, -1:]
        unit = unit[:, :, :-1] * alpha + (1 - alpha)
    return unit


def reduce_image(image: np.ndarray, size: int) -> np.ndarray:
    """Return the image with its longer side reduced to ``size`` pixels, anti-aliased."""
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= size:
        return image
    shape = tuple(max(1, round(side * size / longer)) for side in (height, width))
    resize = require("skimage.transform").resize
    # One channel at a time, so that what is filtered is a third of a colour image.
    channels = [resize(image[:, :, channel], shape, anti_aliasing=True) for channel in range(image.shape[2])]
    return np.clip(np.stack(channels, axis=2), 0, 1)
