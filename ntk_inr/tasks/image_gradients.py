"""An image learnt from its gradients alone: Poisson's equation of image editing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from jax import Array

from ntk_inr.tasks import metrics
from ntk_inr.tasks.derivatives import value_and_gradient
from ntk_inr.tasks.grid import GridPoints, Progress
from ntk_inr.tasks.image import ssim_score
from ntk_inr.tasks.image_file import has_eight_bits, load_prepared
from ntk_inr.tasks.interface import IndirectTask, OnDemandTask, fingerprint
from ntk_inr.tasks.pictures import Panel, PictureTask, picture_of, picture_rows


@dataclasses.dataclass(frozen=True)
class ImageGradientTask(PictureTask, IndirectTask, OnDemandTask):
    """Fit a grey image to its gradients alone; they leave its mean open, which is put right afterwards.

    Attributes:
        name: what to call it in a report.
        image: (h, w, 1) in [0, 1].
        eight_bit: whether its values came as integers of 8 bits.
        source_size: (height, width) in pixels before reduction; None where that is not known.
        origin: how :func:`ntk_inr.load_task` builds it again; None for arrays.
    """

    kind: ClassVar[str] = "pde"
    noun: ClassVar[str] = "pixels"
    smaller: ClassVar[str] = "a smaller resolution="

    name: str
    image: np.ndarray
    eight_bit: bool = False
    source_size: tuple[int, int] | None = None
    origin: Any = None

    @property
    def differentiates(self) -> bool:
        """Whether derivatives of the network by x are a part of it."""
        return True

    @property
    def n(self) -> int:
        """How many pixels the image has."""
        return self.image.shape[0] * self.image.shape[1]

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return pixel centres (k, 2) as (row, column), and the image's changes to the next, downwards and right."""
        return GridPoints(self.image.shape[:2])[indices], self._slopes[indices]

    @functools.cached_property
    def _slopes(self) -> np.ndarray:
        """The image's changes from pixel to pixel, downwards and to the right, (n, 2), by central differences."""
        return np.stack(np.gradient(self.image[:, :, 0]), axis=-1).reshape(-1, 2)

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of the image."""
        return fingerprint("gradients", self.image)

    def measure(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Return ``(params, x) -> (n, 2)``: the network's derivatives by row and column, in change a pixel."""
        both = value_and_gradient(apply)
        pixel = 2 / np.array([self.image.shape[:2]], np.float32)

        def observed(params: Any, x: Any) -> Array:
            return both(params, x)[:, 1:] * pixel

        return observed

    def describe(self) -> dict[str, Any]:
        """Return, for JSON, what is fitted: kind, name, rows and values trained on, and what rendering needs."""
        return super().describe() | {"mean": float(self.image.mean())}

    def signal_of(self, predict: Callable[[Any], Any], progress: Progress | None = None) -> np.ndarray:
        """Return the image (h, w, 1) with its mean put right, clipped to [0, 1]."""
        return shifted_picture(predict, self.image.shape, float(self.image.mean()), progress)

    def scores(self, reconstruction: np.ndarray) -> dict[str, float]:
        """Return "psnr" in dB and "ssim" of the image, and "relative_l2" (smaller is better)."""
        scores = {"psnr": self.psnr(reconstruction), **ssim_score(reconstruction, self.image)}
        return scores | {"relative_l2": metrics.relative_l2(reconstruction, self.image)}

    def figure(self, reconstruction: np.ndarray | None = None) -> Any:
        """Return the image, its two gradients, and a reconstruction with its error."""
        reach = float(np.quantile(np.abs(self._slopes), 0.99))
        slopes = self._slopes.reshape(*self.image.shape[:2], 2)
        panels = [
            Panel(self.name, self.image),
            Panel("change downwards", slopes[:, :, 0], "field", (-reach, reach)),
            Panel("change to the right", slopes[:, :, 1], "field", (-reach, reach)),
        ]
        return picture_rows([panels + self.comparison(reconstruction)])


def shifted_picture(
    predict: Callable[[Any], Any], shape: Sequence[int], mean: float, progress: Progress | None = None
) -> np.ndarray:
    """Return an image of a network that is right but for a constant, with this mean, clipped to [0, 1]."""
    picture = picture_of(predict, shape, progress, clipped=False)
    picture += np.float32(mean) - picture.mean()
    return np.clip(picture, 0, 1, out=picture)


def image_gradient_task(source: Any = "camera", *, size: int | None = 64) -> ImageGradientTask:
    """Learn an image from its gradients.

    Args:
        source: as for :func:`image_task`; turned grey.
        size: the longer side in pixels; None keeps it.

    Returns:
        :class:`ImageGradientTask`.

    Raises:
        FileNotFoundError, ValueError, ImportError: as :func:`image_task`; an image one pixel wide or high, or of one
            colour.

    Example:
        >>> import numpy as np
        >>> task = image_gradient_task(np.tile(np.linspace(0, 1, 11), (11, 1)), size=None)
        >>> [round(float(slope), 3) for slope in task.y[60]]
        [0.0, 0.1]

    Source: Sitzmann et al., "Implicit Neural Representations with Periodic Activation Functions" (NeurIPS 2020),
    arXiv 2006.09661.
    """
    name, image, whole = load_prepared(source, size=size, grey=True)
    if min(image.shape[:2]) < 2 or image.min() == image.max():
        raise ValueError(
            f"{name} has {image.shape[:2]} pixels and one colour or one row: it has no gradients to learn."
        )
    return ImageGradientTask(f"{name}, from its gradients", image, has_eight_bits(source), whole)
