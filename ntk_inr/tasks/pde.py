"""Partial differential equations as a task: a field learnt from its derivatives and its boundary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr import _checks
from ntk_inr.tasks import metrics
from ntk_inr.tasks.cost import Cost
from ntk_inr.tasks.derivatives import value_and_laplacian
from ntk_inr.tasks.files import new_file
from ntk_inr.tasks.grid import Progress, grid_coordinates
from ntk_inr.tasks.image_file import BUNDLED as IMAGES
from ntk_inr.tasks.image_gradients import ImageGradientTask, image_gradient_task
from ntk_inr.tasks.interface import IndirectTask, fingerprint
from ntk_inr.tasks.origin import with_origin
from ntk_inr.tasks.pictures import Panel, error_panel, picture_cost, picture_of, picture_rows

Equation = Literal["poisson-gradients", "poisson", "helmholtz"]


@dataclasses.dataclass(frozen=True)
class EquationTask(IndirectTask):
    r"""Solve :math:`\Delta u + k^2 u = q` in the square, where u is known on the sides.

    The solution is :math:`u = \sin(a_1\pi x_1)\sin(a_2\pi x_2)`, so that
    :math:`q = (k^2 - (a_1^2+a_2^2)\pi^2)\,u`. A row of x with a coordinate of exactly -1 or 1 is on the boundary.

    Attributes:
        name: what to call it in a report.
        frequencies: (a1, a2).
        wavenumber: k; 0 for Poisson's equation.
        boundary_weight: what u is multiplied by on the boundary, in prediction and data.
        x: points (n, 2).
        resolution: points a side of the grid that reconstructions are compared on.
        origin: how :func:`ntk_inr.load_task` builds it again.
    """

    kind: ClassVar[str] = "pde"
    noun: ClassVar[str] = "points"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)
    smaller: ClassVar[str] = "a smaller resolution="

    name: str
    frequencies: tuple[float, float]
    wavenumber: float
    boundary_weight: float
    x: np.ndarray
    resolution: int
    origin: Any = None

    @property
    def differentiates(self) -> bool:
        """Whether derivatives of the network by x are a part of it."""
        return True

    @property
    def factor(self) -> float:
        """The ratio of q to u; observations are divided by its size, which makes them about 1."""
        return self.wavenumber**2 - float(np.sum(np.square(self.frequencies))) * np.pi**2

    @property
    def y(self) -> np.ndarray:
        """The observations (n, 1): q over the size of :attr:`factor` inside, the weighted u on the boundary."""
        return self.rows(slice(None))[1]

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return some of the points (k, 2), and the observations there (k, 1)."""
        x = self.x[indices]
        u = self.solution(x.astype(np.float64))
        return x, np.where(_boundary(x), self.boundary_weight * u, np.sign(self.factor) * u).astype(np.float32)

    @property
    def digest(self) -> str:
        """A fingerprint of equation and points."""
        return fingerprint(self.frequencies, self.wavenumber, self.boundary_weight, self.resolution, self.x)

    def solution(self, x: np.ndarray) -> np.ndarray:
        """Return u (n, 1) at points (n, 2)."""
        a, b = self.frequencies
        return np.sin(a * np.pi * x[:, :1]) * np.sin(b * np.pi * x[:, 1:])

    def measure(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        r"""Return ``(params, x) -> (n, 1)``: :math:`\Delta u + k^2u` over the size of factor; on a side weighted u."""
        both = value_and_laplacian(apply)
        size, square, weight = abs(self.factor), self.wavenumber**2, self.boundary_weight

        def observed(params: Any, x: Any) -> Array:
            value, laplacian = both(params, x)
            edge = jnp.abs(jnp.asarray(x)).max(axis=1, keepdims=True) == 1
            return jnp.where(edge, weight * value, (laplacian + square * value) / size)

        return observed

    def describe(self) -> dict[str, Any]:
        """Return, for JSON, what is fitted: kind, name, rows and values trained on, and what rendering needs."""
        return super().describe() | {"shape": [self.resolution, self.resolution, 1], "equation": self.name}

    def cost(self, out: str | Path | None = None) -> Cost:
        """Return what a reconstruction, its scores and its figure take of memory, and its file of disk."""
        return picture_cost((self.resolution, self.resolution, 1), out)

    def signal_of(self, predict: Callable[[Any], Any], progress: Progress | None = None) -> np.ndarray:
        """Return u (r, r, 1) on the grid; ``predict`` is the network itself."""
        return picture_of(predict, (self.resolution, self.resolution, 1), progress, clipped=False)

    def scores(self, reconstruction: np.ndarray) -> dict[str, float]:
        """Return "psnr" in dB against the span of the solution, 2, and "relative_l2" (smaller is better)."""
        return {
            "psnr": metrics.psnr(reconstruction, self._truth, data_range=2.0),
            "relative_l2": metrics.relative_l2(reconstruction, self._truth),
        }

    def figure(self, reconstruction: np.ndarray | None = None) -> Any:
        """Return the right-hand side, the solution, and a reconstruction with its error."""
        truth = self._truth
        panels = [Panel("right-hand side q", self.factor * truth, "field"), Panel("solution u", truth, "field")]
        if reconstruction is not None:
            title = f"reconstruction, relative error {self.scores(reconstruction)['relative_l2']:.2g}"
            panels += [Panel(title, reconstruction, "field", (-1.0, 1.0)), error_panel(reconstruction, truth)]
        return picture_rows([panels])

    def save(self, reconstruction: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a reconstruction as ``.npy``."""
        with new_file(path, (".npy",), overwrite=overwrite) as written:
            np.save(written, reconstruction)
        return Path(path)

    @property
    def _truth(self) -> np.ndarray:
        shape = (self.resolution, self.resolution)
        return self.solution(grid_coordinates(shape).astype(np.float64)).reshape(*shape, 1)


@with_origin("pde", (*get_args(Equation), *IMAGES))
def pde_task(
    equation: Equation = "helmholtz",
    *,
    points: int = 48,
    frequencies: Sequence[float] = (1.0, 4.0),
    wavenumber: float = 1.0,
    boundary_weight: float = 3.0,
    resolution: int = 64,
    image: Any = "camera",
) -> EquationTask | ImageGradientTask:
    r"""Make a task of a partial differential equation whose solution is known.

    Args:
        equation: "poisson" is :math:`\Delta u = q`, "helmholtz" :math:`\Delta u + k^2u = q`, both with u given on
            the sides of the square; "poisson-gradients" learns an image from its gradients alone.
        points: places a side at which the equation holds, and rows on each side of the boundary.
        frequencies: (a1, a2) of the solution :math:`\sin(a_1\pi x_1)\sin(a_2\pi x_2)`.
        wavenumber: k of "helmholtz".
        boundary_weight: how much more an error on the boundary counts than one of the (scaled) equation.
        resolution: points a side of the grid for scores; for "poisson-gradients" the size of the image.
        image: what "poisson-gradients" learns, as :func:`image_task` takes it; turned grey.

    Returns:
        :class:`EquationTask`, or :class:`ImageGradientTask` for "poisson-gradients".

    Raises:
        ValueError: unknown equation, sizes below 2, frequencies or weights not above 0, a wavenumber at which
            the right-hand side vanishes (resonance).
        FileNotFoundError: no such image.

    Example:
        >>> task = pde_task("poisson", points=8)
        >>> task.x.shape, task.y.shape
        ((96, 2), (96, 1))

    Source: the Helmholtz problem of Wang, Teng & Perdikaris, "Understanding and Mitigating Gradient Flow
    Pathologies in Physics-Informed Neural Networks" (2021), arXiv 2001.04536; kernels of such observations in Wang,
    Yu & Perdikaris, "When and Why PINNs Fail to Train: A Neural Tangent Kernel Perspective" (2022), arXiv 2007.14527.
    """
    _checks.check_choice(equation, get_args(Equation), "equation")
    _checks.check_positive(resolution, "resolution", integer=True, least=8)
    if equation == "poisson-gradients":
        return image_gradient_task(image, size=resolution)
    _checks.check_positive(points, "points", integer=True, least=2)
    _checks.check_positive(boundary_weight, "boundary_weight")
    for value in frequencies:
        _checks.check_positive(value, "a frequency")
    if equation == "helmholtz":
        _checks.check_positive(wavenumber, "wavenumber")
    k = wavenumber if equation == "helmholtz" else 0.0
    inside = grid_coordinates((points, points))
    along = grid_coordinates((points,))
    ends = [np.full_like(along, side) for side in (-1, 1)]
    sides = [np.concatenate(pair, axis=1) for end in ends for pair in ((end, along), (along, end))]
    a, b = (float(value) for value in frequencies)
    task = EquationTask(equation, (a, b), k, boundary_weight, np.concatenate([inside, *sides]), resolution)
    if abs(task.factor) < 1e-6 * (a**2 + b**2):
        raise ValueError(f"wavenumber {k:g} is a resonance of frequencies {frequencies}: q is 0. Change either.")
    return task


def _boundary(x: np.ndarray) -> np.ndarray:
    return np.abs(x).max(axis=1, keepdims=True) == 1
