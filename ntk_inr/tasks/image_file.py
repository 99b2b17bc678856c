"""Image files and arrays turned into values in [0, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ntk_inr import _checks
from ntk_inr._optional import require
from ntk_inr.tasks.files import existing_file

BUNDLED = ("camera", "astronaut", "coffee", "chelsea")
"""Images that scikit-image carries."""
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""Suffixes of the images of a folder."""


def load_prepared(source: Any, *, size: int | None, grey: bool) -> tuple[str, np.ndarray]:
    """Return a name and the image, grey if asked for, with its longer side at most ``size`` pixels."""
    name, image = load_image(source)
    if grey and image.shape[2] == 3:
        image = (image @ np.array([0.299, 0.587, 0.114], np.float32))[:, :, None]
    if size is not None:
        _checks.check_positive(size, "size", integer=True, least=2)
        image = reduce_image(image, size)
    pixels = image.shape[0] * image.shape[1]
    if pixels < 2:
        raise ValueError(f"image {name!r} has {pixels} pixel; expected at least 2 to fit anything.")
    return name, np.ascontiguousarray(image, np.float32)


def load_image(source: Any) -> tuple[str, np.ndarray]:
    """Return a name and float32 values (h, w, 1 or 3) in [0, 1] of a file, a bundled image or an array."""
    if isinstance(source, np.ndarray):
        return "array", to_unit(source, "image")
    if str(source) in BUNDLED and not Path(source).exists():
        data = require("skimage.data")
        return str(source), to_unit(getattr(data, str(source))(), str(source))
    path = existing_file(source, "image", BUNDLED)
    return path.name, load_frame(path, 0)


def has_eight_bits(source: Any) -> bool:
    """Return whether an image or a stack of them, a source that can be loaded, holds integers of at most 8 bits."""
    if not isinstance(source, str | Path):
        array = np.asarray(source)
        wide = array.dtype.itemsize > 2 and array.dtype.kind in "iu" and array.size
        return array.dtype.kind in "biu" and (array.dtype.itemsize == 1 or bool(wide and array.max() <= 255))
    path = Path(source)
    if str(source) in BUNDLED or not path.exists():
        return str(source) in BUNDLED
    if path.is_dir():
        return all(has_eight_bits(file) for file in path.iterdir() if file.suffix.lower() in PICTURES)
    if path.suffix.lower() == ".npy":
        return has_eight_bits(np.load(path, mmap_mode="r"))
    with require("PIL.Image").open(path) as opened:
        return not opened.mode.startswith(("I", "F"))


def load_frame(path: Path, frame: int, *, scale: bool = True) -> np.ndarray:
    """Return one frame of an image file that may have several, (h, w, 1 or 3) in [0, 1].

    Without ``scale`` frames of floats and of 32-bit integers come as they are, in float64: what their range is can be
    told from all frames only.
    """
    pil, ops = require("PIL.Image"), require("PIL.ImageOps")
    try:
        with pil.open(path) as opened:
            opened.seek(frame)
            opened.load()
            wide = opened.mode == "F" or (opened.mode == "I" and opened.format == "TIFF")
            picture = ops.exif_transpose(opened)
    except (pil.UnidentifiedImageError, pil.DecompressionBombError, EOFError, OSError, SyntaxError) as error:
        raise ValueError(f"{str(path)!r} can't be read as an image ({error}).") from error
    if wide and not scale:
        return np.asarray(picture, np.float64)[:, :, None]
    transparent = "transparency" in picture.info
    if picture.mode == "PA" or (picture.mode in ("P", "RGB") and transparent):
        picture = picture.convert("RGBA")
    elif picture.mode in ("1", "L") and transparent:
        picture = picture.convert("LA")
    elif picture.mode in ("1", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    elif picture.mode in ("La", "RGBa"):
        picture = picture.convert(picture.mode.upper())
    array = np.asarray(picture)
    if picture.mode == "I" and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint16)  # 16-bit files that Pillow opens in 32 bits
    return to_unit(array, str(path))


def count_frames(path: Path) -> int:
    """Return how many frames an image file has."""
    pil = require("PIL.Image")
    try:
        with pil.open(path) as opened:
            return int(getattr(opened, "n_frames", 1))
    except (pil.UnidentifiedImageError, pil.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{str(path)!r} can't be read as an image ({error}).") from error


def to_unit(array: np.ndarray, name: str) -> np.ndarray:
    """Scale integers by their type's range, check floats, lay alpha over white."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise ValueError(f"{name} has shape {array.shape}; expected (h, w), (h, w, 3) or (h, w, 4).")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, so it is empty.")
    unit: np.ndarray
    if array.dtype == bool:
        unit = array.astype(np.float32)
    elif np.issubdtype(array.dtype, np.unsignedinteger) and array.dtype.itemsize <= 2:
        unit = array.astype(np.float32) / np.iinfo(array.dtype).max
    elif np.issubdtype(array.dtype, np.integer):
        # 8- or 16-bit content in a wider type, such as NumPy's default integers.
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise ValueError(f"{name} has integers from {low} to {high}; expected 0 to 255 or 0 to 65535.")
        unit = array.astype(np.float32) / (255 if high <= 255 else 65535)
    elif np.issubdtype(array.dtype, np.floating):
        bad = int((~np.isfinite(array)).sum())
        if bad:
            raise ValueError(f"{name} holds {bad} NaN or infinite values of {array.size}; remove or replace them.")
        if array.min() < 0 or array.max() > 1:
            raise ValueError(
                f"{name} has values from {array.min():.4g} to {array.max():.4g}; floating point images are "
                "expected in [0, 1]: scale them first."
            )
        unit = array.astype(np.float32)
    else:
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers or floating point values.")
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
    return np.clip(require("skimage.transform").resize(image, shape, anti_aliasing=True), 0, 1)
