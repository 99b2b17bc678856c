"""Tomography as a task: an image learnt from its integrals along parallel rays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ntk_inr import _checks
from ntk_inr._optional import require
from ntk_inr.tasks import metrics
from ntk_inr.tasks.files import bundled_name
from ntk_inr.tasks.grid import Progress, axis_centres, grid_coordinates
from ntk_inr.tasks.image import ssim_score
from ntk_inr.tasks.image_file import BUNDLED as IMAGES
from ntk_inr.tasks.image_file import has_eight_bits, load_prepared, reduce_image, to_unit
from ntk_inr.tasks.interface import IndirectTask, OnDemandTask, fingerprint
from ntk_inr.tasks.origin import with_origin
from ntk_inr.tasks.pictures import Panel, PictureTask, picture_of, picture_rows
from ntk_inr.tasks.radon import filtered_back_projection, line_integrals, radon

BUNDLED = ("shepp-logan",)
# The measured integrals are finer than those of the network, lest its own error be fitted.
_FINER = 4


@dataclasses.dataclass(frozen=True)
class TomographyTask(PictureTask, IndirectTask, OnDemandTask):
    """An image in the unit disc, of which integrals along rays are known.

    Attributes:
        name: what to call it in a report.
        image: (size, size, 1) in [0, 1], 0 outside the unit disc.
        angles: (a,) of the projections, in radians in [0, pi).
        samples: points along a ray at which the network is evaluated.
        sinogram: integrals (a, size), a row an angle; the disc's diameter has length 2.
        eight_bit: whether the image's values came as integers of 8 bits.
        origin: how :func:`ntk_inr.load_task` builds it again; None for arrays.
    """

    kind: ClassVar[str] = "tomography"
    large: ClassVar[int] = 2**11
    noun: ClassVar[str] = "rays"

    name: str
    image: np.ndarray
    angles: np.ndarray
    samples: int
    sinogram: np.ndarray
    eight_bit: bool = False
    origin: Any = None

    @property
    def n(self) -> int:
        """How many rays there are: angles times offsets."""
        return self.sinogram.size

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return rays (k, 2), angles over pi/2 less 1 and offsets in (-1, 1), and their integrals (k, 1)."""
        return _rays(self.angles, len(self.image), np.asarray(indices)), self.sinogram.reshape(-1, 1)[indices]

    def describe(self) -> dict[str, Any]:
        """Return, for JSON, what is fitted: kind, name, rows and values trained on, and what rendering needs."""
        return super().describe() | {"disc": True}

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of the image and of the rays."""
        return fingerprint(self.image, self.angles, self.samples)

    def measure(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Return the integrals of the network along rays, ``(params, rays (n, 2)) -> (n, 1)``."""
        return line_integrals(apply, self.samples)

    def signal_of(self, predict: Callable[[Any], Any], progress: Progress | None = None) -> np.ndarray:
        """Return the image (size, size, 1), clipped to [0, 1] and 0 outside the disc, where nothing is measured."""
        return disc_picture(predict, len(self.image), progress)

    @functools.cached_property
    def back_projection(self) -> np.ndarray:
        """The image (size, size, 1) by filtered back projection, treated alike."""
        points = grid_coordinates(self.image.shape[:2]).astype(np.float64)
        image = filtered_back_projection(self.sinogram, self.angles, points).reshape(self.image.shape)
        return (np.clip(image, 0, 1) * _disc(len(image))).astype(np.float32)

    @property
    def baselines(self) -> dict[str, Any]:
        """Filtered back projection."""
        return {metrics.BASELINES["fbp_psnr"]: self.back_projection}

    def scores(self, reconstruction: np.ndarray) -> dict[str, float]:
        """Return "psnr" in dB and "ssim" of the image, and "fbp_psnr" of filtered back projection."""
        scores = {"psnr": self.psnr(reconstruction), **ssim_score(reconstruction, self.image)}
        return scores | {"fbp_psnr": metrics.psnr(self.back_projection, self.image)}

    def figure(self, reconstruction: np.ndarray | None = None) -> Any:
        """Return image, sinogram, filtered back projection, and a reconstruction with its error."""
        psnr = metrics.psnr(self.back_projection, self.image)
        title = f"back projection, {metrics.decibels(psnr, eight_bit=self.eight_bit)}"
        panels = [
            Panel(self.name, self.image),
            Panel("sinogram (offset, angle)", _square(self.sinogram.T), "field"),
            Panel(title, self.back_projection),
        ]
        return picture_rows([panels + self.comparison(reconstruction)])


def disc_picture(predict: Callable[[Any], Any], size: int, progress: Progress | None = None) -> np.ndarray:
    """Return an image (size, size, 1), clipped to [0, 1] and 0 outside the disc."""
    picture = picture_of(predict, (size, size, 1), progress)
    picture *= _disc(size)
    return picture


@with_origin("tomography", (*BUNDLED, *IMAGES))
def tomography_task(
    source: Any = "shepp-logan",
    *,
    angles: Any = 60,
    size: int = 64,
    samples: int | None = None,
) -> TomographyTask:
    """Make a task of the integrals of an image along parallel rays.

    The image is cut to its middle square, and to the disc in it. A projection has one ray for each row of
    pixels. The integrals are of the bilinear image, four times as finely as the network's own.

    Args:
        source: "shepp-logan", the phantom; or an image as :func:`image_task` takes it, turned grey.
        angles: how many, equally spaced from 0 degrees to below 180; or the angles themselves, in degrees.
        size: side of the image in pixels, and rays a projection.
        samples: points along each ray at which the network is evaluated; None is ``size``.

    Returns:
        :class:`TomographyTask`. Training on k rays costs as much as on k * samples points.

    Raises:
        FileNotFoundError, ValueError, ImportError: as :func:`image_task`; an image smaller than ``size``, no
            angles, an image that is black in its disc.

    Example:
        >>> task = tomography_task("shepp-logan", angles=12, size=32)
        >>> task.x.shape, task.y.shape, task.channels
        ((384, 2), (384, 1), 1)

    Source: L. A. Shepp & B. F. Logan, "The Fourier Reconstruction of a Head Section", IEEE Transactions on
    Nuclear Science 21 (1974), doi 10.1109/TNS.1974.6499235.
    """
    _checks.check_positive(size, "size", integer=True, least=8)
    samples = size if samples is None else samples
    _checks.check_positive(samples, "samples", integer=True, least=2)
    radians = _radians(angles)
    name, image = _load(source, size)
    image = image * _disc(size)
    if not image.any():
        raise ValueError(f"{name} is black inside the disc: there is nothing to measure.")
    sinogram = np.stack(
        [radon(image[:, :, 0], _rays(radians, size, row), _FINER * samples) for row in _angle_by_angle(radians, size)]
    )
    return TomographyTask(f"{name}, {len(radians)} angles", image, radians, samples, sinogram, has_eight_bits(source))


def _load(source: Any, size: int) -> tuple[str, np.ndarray]:
    if name := bundled_name(source, BUNDLED):
        image = to_unit(require("skimage.data").shepp_logan_phantom(), name)
    else:
        name, image, _ = load_prepared(source, size=None, grey=True)
    side = min(image.shape[:2])
    if side < size:
        raise ValueError(f"{name} has {image.shape[:2]} pixels; pass size={side} or less, or a larger image.")
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return name, reduce_image(image[top : top + side, left : left + side], size).astype(np.float32)


def _radians(angles: Any) -> np.ndarray:
    if isinstance(angles, int | np.integer):
        _checks.check_positive(angles, "angles", integer=True)
        return np.arange(angles) * np.pi / angles
    degrees = _checks.as_numpy(angles, "angles")
    if degrees is None or degrees.ndim != 1 or not degrees.size or not ((degrees > -1e-9) & (degrees < 180)).all():
        raise ValueError(f"angles is {angles!r}; expected how many, or degrees from 0 to below 180.")
    return np.deg2rad(np.maximum(degrees.astype(np.float64), 0))  # degrees made of radians may be less by rounding


def _rays(angles: np.ndarray, size: int, places: np.ndarray) -> np.ndarray:
    """Return rays (k, 2) by their places (k,), angle by angle."""
    angle, offset = np.divmod(places, size)
    return np.stack([angles[angle] * (2 / np.pi) - 1, axis_centres(size)[offset]], axis=-1).astype(np.float32)


def _angle_by_angle(angles: np.ndarray, size: int) -> np.ndarray:
    """Return the places (a, size) of rays, of which each has thousands of points, one projection at a time."""
    return np.arange(len(angles) * size).reshape(len(angles), size)


def _disc(size: int) -> np.ndarray:
    """Return (size, size, 1) True where a pixel's centre lies in the unit disc."""
    along = axis_centres(size)
    return (along[:, None] ** 2 + along**2 <= 1)[:, :, None]


def _square(sinogram: np.ndarray) -> np.ndarray:
    """Return a sinogram with its angles repeated, so that few of them fill a square picture."""
    return np.repeat(sinogram, max(1, round(sinogram.shape[0] / sinogram.shape[1])), axis=1)
