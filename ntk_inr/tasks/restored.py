"""Images restored from less: super-resolution, denoising, inpainting."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import numpy as np

from ntk_inr import _checks
from ntk_inr._optional import require
from ntk_inr.tasks import metrics
from ntk_inr.tasks.grid import GridPoints
from ntk_inr.tasks.image import ssim_score, training_rows
from ntk_inr.tasks.image_file import BUNDLED, has_eight_bits, load_prepared
from ntk_inr.tasks.interface import OnDemandTask, fingerprint
from ntk_inr.tasks.origin import with_origin
from ntk_inr.tasks.pictures import Panel, PictureTask, picture_rows, strips

_BASELINES = {
    "super-resolution": "cubic interpolation",
    "denoising": "the noisy image itself",
    "inpainting": "the nearest pixel",
}


@dataclasses.dataclass(frozen=True)
class RestorationTask(PictureTask, OnDemandTask):
    """Restore an image from a smaller, noisy or incomplete one; scores are against the clean image.

    Attributes:
        name: what to call it in a report.
        kind: "super-resolution", "denoising" or "inpainting".
        image: the clean image (h, w, c) in [0, 1].
        seen: what is seen, as a picture (h', w', c); noise may leave [0, 1].
        missing: (h, w) True where a pixel is not seen; None where that has no meaning.
        eight_bit: whether the clean image's values came as integers of 8 bits.
        source_size: (height, width) in pixels before reduction; None where that is not known.
        origin: how :func:`ntk_inr.load_task` builds it again; None for arrays.
    """

    noun: ClassVar[str] = "pixels"

    name: str
    kind: Literal["super-resolution", "denoising", "inpainting"]
    image: np.ndarray
    seen: np.ndarray
    missing: np.ndarray | None = None
    eight_bit: bool = False
    source_size: tuple[int, int] | None = None
    origin: Any = None

    @functools.cached_property
    def _places(self) -> np.ndarray | None:
        """The places of the pixels that are seen; None where all of ``seen`` are."""
        return None if self.missing is None else np.flatnonzero(~self.missing.ravel()).astype(np.int32)

    @functools.cached_property
    def n(self) -> int:
        """How many pixels are seen."""
        return self.seen.shape[0] * self.seen.shape[1] if self._places is None else len(self._places)

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return pixel centres (k, 2) as (row, column) in (-1, 1), and what is seen there (k, c)."""
        places = np.asarray(indices) if self._places is None else self._places[indices]
        return GridPoints(self.seen.shape[:2])[places], self.seen.reshape(-1, self.seen.shape[2])[places]

    @functools.cached_property
    def baseline(self) -> np.ndarray:
        """A simple restoration (h, w, c) to beat: cubic interpolation, the noisy image itself, the nearest pixel."""
        if self.missing is not None:
            import scipy.ndimage

            near = scipy.ndimage.distance_transform_edt(self.missing, return_distances=False, return_indices=True)
            return self.image[tuple(near)]
        if self.kind == "denoising":
            return np.clip(self.seen, 0, 1)
        larger = require("skimage.transform").resize(self.seen, self.image.shape, order=3, anti_aliasing=False)
        return np.clip(larger, 0, 1)

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of the clean image and of what is seen of it."""
        return fingerprint(self.kind, self.image, self.seen, self.missing)

    @property
    def baselines(self) -> dict[str, Any]:
        """The simple restoration, under the name of its method."""
        return {_BASELINES[self.kind]: self.baseline}

    def scores(self, reconstruction: np.ndarray) -> dict[str, float]:
        """Return how close a restored image is to the clean one.

        Args:
            reconstruction: (h, w, c) in [0, 1].

        Returns:
            "psnr" in dB and "ssim" of the whole image, "baseline_psnr" of the simple restoration, and for
            inpainting "missing_psnr" of the pixels that were not seen.
        """
        scores = {"psnr": self.psnr(reconstruction), **ssim_score(reconstruction, self.image)}
        scores["baseline_psnr"] = metrics.psnr(self.baseline, self.image)
        if self.missing is not None:
            scores["missing_psnr"] = metrics.psnr(reconstruction[self.missing], self.image[self.missing])
        return scores

    def figure(self, reconstruction: np.ndarray | None = None) -> Any:
        """Return the clean image, what is seen, the baseline, and the restored image with its error."""
        panels = [Panel(self.name, self.image), Panel("seen", self.seen)]
        if self.kind != "denoising":
            psnr = metrics.decibels(metrics.psnr(self.baseline, self.image), eight_bit=self.eight_bit)
            panels.append(Panel(f"baseline, {psnr}", self.baseline))
        return picture_rows([panels + self.comparison(reconstruction, "restored")])


@with_origin("super-resolution", BUNDLED)
def super_resolution_task(
    source: Any, *, factor: int = 4, size: int | None = 128, grey: bool = False
) -> RestorationTask:
    """Make a task of enlarging an image: train on it reduced by ``factor``, and judge at full resolution.

    A pixel of the small image is the mean of a block of ``factor`` by ``factor`` pixels and lies at its
    centre. Rows and columns that fill no block are cut off at the bottom and on the right.

    Args:
        source: as for :func:`image_task`.
        factor: how many times smaller, at least 2.
        size: the longer side of the clean image in pixels; None keeps it.
        grey: turn colour into luma.

    Returns:
        :class:`RestorationTask` of kind "super-resolution".

    Raises:
        FileNotFoundError, ValueError, ImportError: as :func:`image_task`; an image smaller than two blocks.

    Example:
        >>> import numpy as np
        >>> task = super_resolution_task(np.eye(16), factor=4, size=None)
        >>> task.x.shape, task.seen.shape, task.image.shape
        ((16, 2), (4, 4, 1), (16, 16, 1))
    """
    _checks.check_positive(factor, "factor", integer=True, least=2)
    name, image, whole = load_prepared(source, size=size, grey=grey)
    height, width = (side // factor for side in image.shape[:2])
    if height * width < 2:
        raise ValueError(
            f"image {name!r} has {image.shape[:2]} pixels, too few for factor={factor}; take a smaller one."
        )
    image = np.ascontiguousarray(image[: height * factor, : width * factor])
    seen = image.reshape(height, factor, width, factor, -1).mean(axis=(1, 3))
    return RestorationTask(
        f"{name}, {factor} times smaller", "super-resolution", image, seen, None, has_eight_bits(source), whole
    )


@with_origin("denoising", BUNDLED)
def denoising_task(
    source: Any, *, noise: Literal["gaussian", "poisson"] = "gaussian", sigma: float = 0.1,
    photons: float = 30.0, size: int | None = 128, grey: bool = False, seed: int = 0,
) -> RestorationTask:  # fmt: skip
    r"""Make a task of denoising an image: train on it with noise added, and judge against the clean one.

    "gaussian" adds :math:`\sigma` times a standard normal number to each value; "poisson" counts photons:
    :math:`y\sim\mathrm{Poisson}(P v)/P`. Neither is clipped, so that both are right on average.

    Args:
        source: as for :func:`image_task`.
        noise: "gaussian" or "poisson".
        sigma: standard deviation of Gaussian noise, where white is 1.
        photons: P, the mean count at white.
        size: the longer side in pixels; None keeps it.
        grey: turn colour into luma.
        seed: of the noise.

    Returns:
        :class:`RestorationTask` of kind "denoising".

    Raises:
        FileNotFoundError, ValueError, ImportError: as :func:`image_task`; unknown noise, sigma or photons not above 0.

    Example:
        >>> import numpy as np
        >>> task = denoising_task(np.full((16, 16), 0.5), sigma=0.1, size=None)
        >>> round(task.scores(task.baseline)["psnr"])
        20
    """
    _checks.check_choice(noise, ("gaussian", "poisson"), "noise")
    _checks.check_positive(sigma, "sigma")
    _checks.check_positive(photons, "photons")
    _checks.check_positive(seed, "seed", integer=True, least=0)
    name, image, whole = load_prepared(source, size=size, grey=grey)
    rng = np.random.default_rng(seed)
    noisy = np.empty_like(image)
    for place in strips(image.shape):
        clean = image[place]
        if noise == "gaussian":
            noisy[place] = clean + sigma * rng.standard_normal(clean.shape)
        else:
            noisy[place] = rng.poisson(photons * clean) / photons
    label = f"sigma {sigma:g}" if noise == "gaussian" else f"{photons:g} photons"
    return RestorationTask(f"{name}, {label}", "denoising", image, noisy, None, has_eight_bits(source), whole)


@with_origin("inpainting", BUNDLED)
def inpainting_task(
    source: Any, *, missing: Any = 0.8, size: int | None = 128, grey: bool = False,
    seed: int = 0,
) -> RestorationTask:  # fmt: skip
    """Make a task of filling in an image: train on the pixels that are seen, and judge on all of them.

    Args:
        source: as for :func:`image_task`.
        missing: share of the pixels that are missing, at random, in (0, 1); or (h, w) booleans, True where
            a pixel is missing, of the image's size after reduction.
        size: the longer side in pixels; None keeps it.
        grey: turn colour into luma.
        seed: of the choice of missing pixels.

    Returns:
        :class:`RestorationTask` of kind "inpainting".

    Raises:
        FileNotFoundError, ValueError, ImportError: as :func:`image_task`; a mask of another shape, nothing or
            everything missing.
        TypeError: a mask that is not of booleans.

    Example:
        >>> import numpy as np
        >>> task = inpainting_task(np.eye(10), missing=0.7, size=None)
        >>> task.x.shape, int(task.missing.sum())
        ((30, 2), 70)
    """
    _checks.check_positive(seed, "seed", integer=True, least=0)
    name, image, whole = load_prepared(source, size=size, grey=grey)
    if np.ndim(missing):
        mask, label = _checks.as_numpy(missing, "missing"), "masked"
        assert mask is not None
        if mask.dtype != bool:
            raise TypeError(f"missing has dtype {mask.dtype}; expected booleans, such as mask > 0.")
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"missing has shape {mask.shape} but the image has {image.shape[:2]} after reduction; pass size=None "
                "and a mask of the image's own size."
            )
    else:
        mask = ~training_rows(image.shape[0] * image.shape[1], float(missing), seed, "missing").reshape(image.shape[:2])
        label = f"{100 * missing:g} % missing"
    if mask.all() or not mask.any():
        raise ValueError(f"{'all' if mask.all() else 'none'} of the pixels are missing; expected some of them.")
    seen = np.where(mask[:, :, None], np.float32(1), image)
    return RestorationTask(f"{name}, {label}", "inpainting", image, seen, mask, has_eight_bits(source), whole)
