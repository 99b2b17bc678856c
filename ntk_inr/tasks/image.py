"""Images as a task: pixel coordinates, values in [0, 1], PSNR and SSIM."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ntk_inr import _checks
from ntk_inr.training.curves import psnr

BUNDLED = ("camera", "astronaut", "coffee", "chelsea")
"""Images that scikit-image carries."""

_SSIM_WINDOW = 7


@dataclasses.dataclass(frozen=True)
class ImageTask:
    """An image, and which of its pixels are trained on.

    Attributes:
        name: what to call it in a report.
        image: (height, width, c) values in [0, 1], c = 1 (grey) or 3 (colour).
        train: (height * width,) True where a pixel is trained on, in raster order.
    """

    name: str
    image: np.ndarray
    train: np.ndarray

    @functools.cached_property
    def coordinates(self) -> np.ndarray:
        """Pixel centres (n, 2) as (row, column), each axis in (-1, 1), in raster order."""
        axes = [(2 * np.arange(size) + 1) / size - 1 for size in self.image.shape[:2]]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)

    @property
    def values(self) -> np.ndarray:
        """Pixel values (n, c) in [0, 1], in raster order."""
        return self.image.reshape(-1, self.image.shape[2])

    @property
    def x(self) -> np.ndarray:
        """Coordinates that are trained on."""
        return self.coordinates[self.train]

    @property
    def y(self) -> np.ndarray:
        """Values that are trained on."""
        return self.values[self.train]

    @property
    def heldout(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Coordinates and values held out for testing, or None."""
        return None if self.train.all() else (self.coordinates[~self.train], self.values[~self.train])

    @property
    def digest(self) -> str:
        """A fingerprint of the image and of the choice of training pixels."""
        return hashlib.sha256(self.image.tobytes() + self.train.tobytes()).hexdigest()[:16]

    def reconstruct(self, predict: Callable[[Any], Any]) -> np.ndarray:
        """Return ``predict(coordinates)`` as an image (height, width, c), clipped to [0, 1]."""
        return np.clip(np.asarray(predict(self.coordinates), np.float32), 0, 1).reshape(self.image.shape)

    def scores(self, reconstruction: np.ndarray) -> dict[str, float]:
        """Return what a clipped reconstruction scores.

        Args:
            reconstruction: (height, width, c) in [0, 1].

        Returns:
            "psnr" in dB on the training pixels, "heldout_psnr" on the others (if there are any), and
            "ssim" of the whole image (Wang et al. 2004; absent where a side is below 7 pixels).
        """
        error = ((reconstruction - self.image) ** 2).reshape(len(self.train), -1)
        scores = {"psnr": float(psnr(error[self.train].mean()))}
        if not self.train.all():
            scores["heldout_psnr"] = float(psnr(error[~self.train].mean()))
        if min(self.image.shape[:2]) >= _SSIM_WINDOW:
            metrics = _require("skimage.metrics")
            scores["ssim"] = float(
                metrics.structural_similarity(self.image, reconstruction, data_range=1.0, channel_axis=2)
            )
        return scores


def image_task(
    source: str | Path | np.ndarray, *, size: int | None = 64, holdout: float = 0.0, grey: bool = False, seed: int = 0
) -> ImageTask:
    """Load an image and make a task of it.

    Args:
        source: a file in any format that Pillow reads (16-bit, palette, CMYK and EXIF orientation
            included; alpha is laid over white), the name of a bundled image ("camera", "astronaut",
            "coffee", "chelsea"), or an array (h, w), (h, w, 3) or (h, w, 4) of integers or of floats in [0, 1].
        size: the longer side in pixels after anti-aliased reduction; a smaller image, or None, is kept.
        holdout: share of the pixels held out for testing, at random, in [0, 1).
        grey: turn colour into luma (ITU-R 601).
        seed: of the choice of held-out pixels.

    Returns:
        :class:`ImageTask`.

    Raises:
        FileNotFoundError: no such file, and no bundled image of that name.
        ValueError: not an image, empty, a single pixel, NaN or out-of-range values, holdout outside [0, 1).
        ImportError: Pillow or scikit-image missing (``pip install "ntk-inr[report]"``).

    Example:
        >>> import numpy as np
        >>> task = image_task(np.linspace(0, 1, 64).reshape(8, 8), size=None, holdout=0.5)
        >>> task.x.shape, task.y.shape, task.image.shape
        ((32, 2), (32, 1), (8, 8, 1))
    """
    _checks.check_positive(seed, "seed", integer=True, least=0)
    _require("skimage")  # scores need it: better now than after the training
    name, image = _load(source)
    if grey and image.shape[2] == 3:
        image = (image @ np.array([0.299, 0.587, 0.114], np.float32))[:, :, None]
    if size is not None:
        _checks.check_positive(size, "size", integer=True, least=2)
        image = _reduce(image, size)
    pixels = image.shape[0] * image.shape[1]
    if pixels < 2:
        raise ValueError(f"image {name!r} has {pixels} pixel; expected at least 2 to fit anything.")
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout is {holdout}; expected a share in [0, 1), such as 0.5 for half of the pixels.")
    train = np.ones(pixels, bool)
    held = min(round(holdout * pixels), pixels - 1)
    train[np.random.default_rng(seed).permutation(pixels)[:held]] = False
    return ImageTask(name, np.ascontiguousarray(image, np.float32), train)


def _load(source: Any) -> tuple[str, np.ndarray]:
    """Return a name and float32 values (h, w, 1 or 3) in [0, 1]."""
    if isinstance(source, np.ndarray):
        return "array", _to_unit(source, "image")
    if str(source) in BUNDLED and not Path(source).exists():
        data = _require("skimage.data")
        return str(source), _to_unit(getattr(data, str(source))(), str(source))
    path = Path(source)
    if not path.exists():
        bundled = f" and there is no bundled image of that name ({', '.join(BUNDLED)})" if not path.suffix else ""
        raise FileNotFoundError(f"no file {str(path)!r}{bundled}.")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; expected an image file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{str(path)!r} is empty (0 bytes); expected an image file.")
    pil, ops = _require("PIL.Image"), _require("PIL.ImageOps")
    try:
        with pil.open(path) as opened:
            opened.load()
            picture = ops.exif_transpose(opened)
    except (pil.UnidentifiedImageError, pil.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{str(path)!r} can't be read as an image ({error}).") from error
    if picture.mode == "PA" or (picture.mode == "P" and "transparency" in picture.info):
        picture = picture.convert("RGBA")
    elif picture.mode in ("1", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    elif picture.mode in ("La", "RGBa"):
        picture = picture.convert(picture.mode.upper())
    array = np.asarray(picture)
    if picture.mode == "I" and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint16)  # 16-bit files that Pillow opens in 32 bits
    return path.name, _to_unit(array, str(path))


def _to_unit(array: np.ndarray, name: str) -> np.ndarray:
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
    elif array.dtype in (np.int32, np.int64):
        # NumPy's default integers: 8- or 16-bit content in a wider type.
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise ValueError(f"{name} has integers from {low} to {high}; expected 0 to 255 or 0 to 65535.")
        unit = array.astype(np.float32) / (255 if high <= 255 else 65535)
    elif np.issubdtype(array.dtype, np.unsignedinteger):
        unit = array.astype(np.float32) / np.iinfo(array.dtype).max
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


def _reduce(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= size:
        return image
    shape = tuple(max(1, round(side * size / longer)) for side in (height, width))
    return np.clip(_require("skimage.transform").resize(image, shape, anti_aliasing=True), 0, 1)


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} is missing; install it with: pip install "ntk-inr[report]"') from error
