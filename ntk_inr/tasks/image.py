"""Images as a task: pixel coordinates, values in [0, 1], PSNR and SSIM."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from ntk_inr import _checks
from ntk_inr.tasks import metrics
from ntk_inr.tasks.grid import GridPoints, grid_coordinates
from ntk_inr.tasks.image_file import BUNDLED, has_eight_bits, load_prepared
from ntk_inr.tasks.interface import SampledTask, fingerprint
from ntk_inr.tasks.origin import with_origin
from ntk_inr.tasks.pictures import Panel, PictureTask, picture_rows

_CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class ImageTask(PictureTask, SampledTask):
    """Fit an image as a function of pixel coordinates, on all of its pixels or on a share of them.

    Attributes:
        name: what to call it in a report.
        image: (height, width, c) values in [0, 1], c = 1 (grey) or 3 (colour).
        train: (height * width,) True where a pixel is trained on, in raster order.
        eight_bit: whether the values came as integers of 8 bits.
        source_size: (height, width) in pixels before reduction; None where that is not known.
        origin: how :func:`ntk_inr.load_task` builds it again; None for arrays.
    """

    kind: ClassVar[str] = "image"
    noun: ClassVar[str] = "pixels"

    name: str
    image: np.ndarray
    train: np.ndarray
    eight_bit: bool = False
    source_size: tuple[int, int] | None = None
    origin: Any = None

    @property
    def coordinates(self) -> np.ndarray:
        """Pixel centres (n, 2) as (row, column), each axis in (-1, 1), in raster order."""
        return grid_coordinates(self.image.shape[:2])

    @property
    def values(self) -> np.ndarray:
        """Pixel values (n, c) in [0, 1], in raster order."""
        return self.image.reshape(-1, self.image.shape[2])

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of the image and of the choice of training pixels."""
        return fingerprint(self.image, self.train)

    def at(self, places: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return centres (k, 2) and values (k, c) of pixels by their places (k,) in raster order."""
        return GridPoints(self.image.shape[:2])[places], self.values[places]

    def scores(self, reconstruction: np.ndarray) -> dict[str, float]:
        """Return the scores of a reconstruction in [0, 1].

        Args:
            reconstruction: (height, width, c) in [0, 1].

        Returns:
            "psnr" in dB on the training pixels, "heldout_psnr" on the others (if there are any), and
            "ssim" of the whole image (Wang et al. 2004; absent where a side is below 7 pixels).
        """
        scores = {"psnr": self.psnr(reconstruction)}
        if self.n < len(self.train):
            values = reconstruction.reshape(self.values.shape)
            scores["heldout_psnr"] = metrics.psnr(values, self.values, where=~self.train)
        return scores | ssim_score(reconstruction, self.image)

    def psnr(self, reconstruction: np.ndarray) -> float:
        """Return the PSNR of a reconstruction in dB, on the training pixels."""
        where = None if self.n == len(self.train) else self.train
        return metrics.psnr(reconstruction.reshape(self.values.shape), self.values, where=where)

    def figure(self, reconstruction: np.ndarray | None = None) -> Any:
        """Return the image, the pixels trained on where some are held out, the reconstruction and its error."""
        panels = [Panel(self.name, self.image)]
        if self.n < len(self.train):
            seen = np.where(self.train.reshape(*self.image.shape[:2], 1), self.image, np.float32(1))
            panels.append(Panel("trained on", seen))
        return picture_rows([panels + self.comparison(reconstruction)])


def ssim_score(reconstruction: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """Return "ssim" where the image is large enough for it."""
    if min(image.shape[:2]) < metrics.SSIM_WINDOW:
        return {}
    return {"ssim": metrics.ssim(reconstruction, image)}


@with_origin("image", BUNDLED)
def image_task(
    source: Any, *, size: int | None = 512, holdout: float = 0.0, grey: bool = False, seed: int = 0
) -> ImageTask:
    """Load an image and make a task of it.

    Args:
        source: a file in any format that Pillow reads (16-bit, palette, CMYK and EXIF orientation
            included; alpha is laid over white), the name of a bundled image ("camera", "astronaut",
            "coffee", "chelsea"), an image of Pillow, or an array (h, w), (h, w, 3) or (h, w, 4), of NumPy, JAX
            or lists. Unsigned integers of 8 and 16 bits are divided by their type's range, other integers by 1, 255
            or 65535, the smallest that none exceeds, floats are in [0, 1]. What an array masks is refused.
        size: the longer side in pixels after anti-aliased reduction; a smaller image, or None, is kept. What was
            reduced says so in the task's ``summary``.
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
    name, image, whole = load_prepared(source, size=size, grey=grey)
    train = training_rows(image.shape[0] * image.shape[1], holdout, seed)
    return ImageTask(name, image, train, has_eight_bits(source), whole)


def training_rows(n: int, holdout: float, seed: int, name: str = "holdout") -> np.ndarray:
    """Return a mask (n,) that is True for the rows to train on; a random share ``holdout`` of them is False."""
    if not 0 <= holdout < 1:
        raise ValueError(f"{name} is {holdout}; expected a share in [0, 1), such as 0.5 for half of the rows.")
    train, rng = np.ones(n, bool), np.random.default_rng(seed)
    left = min(round(holdout * n), n - 1)
    # Chunk by chunk, each with its random share of what is left, so that no permutation of all rows is made.
    for start in range(0, n if left else 0, _CHUNK):
        rows = min(_CHUNK, n - start)
        drawn = left if start + rows == n else int(rng.hypergeometric(left, n - start - left, rows))
        train[start + rng.permutation(rows)[:drawn]] = False
        left -= drawn
    return train
