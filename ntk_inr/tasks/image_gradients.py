"""An image learnt from its gradients alone: Poisson's equation of image editing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jax import Array

from ntk_inr.tasks import metrics
from ntk_inr.tasks.derivatives import value_and_gradient
from ntk_inr.tasks.grid import grid_coordinates, in_batches
from ntk_inr.tasks.image import ssim_score
from ntk_inr.tasks.image_file import has_eight_bits, load_prepared
from ntk_inr.tasks.interface import IndirectTask, fingerprint
from ntk_inr.tasks.pictures import Panel, PictureTask, picture_rows


@dataclasses.dataclass(frozen=True)
class ImageGradientTask(PictureTask, IndirectTask):
    """Fit a grey image to its gradients alone; they leave its mean open, which is put right afterwards.

    Attributes:
        name: what to call it in a report.
        image: (h, w, 1) in [0, 1].
        eight_bit: whether its values came as integers of 8 bits.
    """

    kind: ClassVar[str] = "pde"

    name: str
    image: np.ndarray
    eight_bit: bool = False

    @property
    def differentiates(self) -> bool:
        """Whether derivatives of the network by x are a part of it."""
        return True

    @property
    def x(self) -> np.ndarray:
        """Pixel centres (n, 2) as (row, column)."""
        return grid_coordinates(self.image.shape[:2])

    @property
    def y(self) -> np.ndarray:
        """The image's changes from pixel to pixel, downwards and to the right, (n, 2), by central differences."""
        return np.stack(np.gradient(self.image[:, :, 0]), axis=-1).reshape(-1, 2)

    @property
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

    def reconstruct(self, predict: Callable[[Any], Any]) -> np.ndarray:
        """Return the image (h, w, 1) with its mean put right, clipped to [0, 1]."""
        image = in_batches(predict, self.x, 1).reshape(self.image.shape)
        return np.clip(image - image.mean() + self.image.mean(), 0, 1)

    def scores(self, reconstruction: np.ndarray) -> dict[str, float]:
        """Return "psnr" in dB and "ssim" of the image, and "relative_l2" (smaller is better)."""
        scores = {"psnr": metrics.psnr(reconstruction, self.image), **ssim_score(reconstruction, self.image)}
        return scores | {"relative_l2": metrics.relative_l2(reconstruction, self.image)}

    def figure(self, reconstruction: np.ndarray | None = None) -> Any:
        """Return the image, its two gradients, and a reconstruction with its error."""
        reach = float(np.quantile(np.abs(self.y), 0.99))
        slopes = self.y.reshape(*self.image.shape[:2], 2)
        panels = [
            Panel(self.name, self.image),
            Panel("change downwards", slopes[:, :, 0], "field", (-reach, reach)),
            Panel("change to the right", slopes[:, :, 1], "field", (-reach, reach)),
        ]
        return picture_rows([panels + self.comparison(reconstruction)])


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
    name, image = load_prepared(source, size=size, grey=True)
    if min(image.shape[:2]) < 2 or image.min() == image.max():
        raise ValueError(
            f"{name} has {image.shape[:2]} pixels and one colour or one row: it has no gradients to learn."
        )
    return ImageGradientTask(f"{name}, from its gradients", image, has_eight_bits(source))
