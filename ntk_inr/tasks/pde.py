"""Partial differential equations as a task: a field learnt from its derivatives and its boundary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr import _checks
from ntk_inr.tasks.derivatives import value_and_laplacian
from ntk_inr.tasks.equation import FieldTask
from ntk_inr.tasks.evolution import LAWS, EvolutionTask, evolution_task
from ntk_inr.tasks.grid import grid_coordinates
from ntk_inr.tasks.image_file import BUNDLED as IMAGES
from ntk_inr.tasks.image_gradients import ImageGradientTask, image_gradient_task
from ntk_inr.tasks.interface import fingerprint
from ntk_inr.tasks.origin import with_origin
from ntk_inr.tasks.pictures import Panel, error_panel, picture_rows

Equation = Literal["poisson-gradients", "poisson", "helmholtz", "heat", "wave", "burgers", "allen-cahn"]


@dataclasses.dataclass(frozen=True)
class EquationTask(FieldTask):
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

    name: str
    frequencies: tuple[float, float]
    wavenumber: float
    boundary_weight: float
    x: np.ndarray
    resolution: int
    origin: Any = None

    @property
    def span(self) -> float:
        """Span of the solution, for PSNR."""
        return 2.0

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

    def figure(self, reconstruction: np.ndarray | None = None) -> Any:
        """Return the right-hand side, the solution, and a reconstruction with its error."""
        truth = self._truth
        panels = [Panel("right-hand side q", self.factor * truth, "field"), Panel("solution u", truth, "field")]
        if reconstruction is not None:
            title = f"relative error {self.scores(reconstruction)['relative_l2']:.2g}"
            panels += [Panel(title, reconstruction, "field", (-1.0, 1.0)), error_panel(reconstruction, truth)]
        return picture_rows([panels])


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
) -> EquationTask | EvolutionTask | ImageGradientTask:
    r"""Make a task of a partial differential equation whose solution is known.

    Args:
        equation: "poisson" is :math:`\Delta u = q`, "helmholtz" :math:`\Delta u + k^2u = q`, both with u given on
            the sides of the square; "heat", "wave", "burgers" and "allen-cahn" follow a field in time, as
            :class:`EvolutionTask` has them; "poisson-gradients" learns an image from its gradients alone.
        points: places a side at which the equation holds, and rows on each side of the boundary.
        frequencies: of "poisson" and "helmholtz", (a1, a2) of the solution :math:`\sin(a_1\pi x_1)\sin(a_2\pi x_2)`.
        wavenumber: k of "helmholtz".
        boundary_weight: how much more an error on the boundary counts than one of the (scaled) equation.
        resolution: points a side of the grid for scores; for "poisson-gradients" the size of the image.
        image: what "poisson-gradients" learns, as :func:`image_task` takes it; turned grey.

    Returns:
        :class:`EquationTask`, :class:`EvolutionTask`, or :class:`ImageGradientTask` for "poisson-gradients".

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
    Yu & Perdikaris, "When and Why PINNs Fail to Train: A Neural Tangent Kernel Perspective" (2022), arXiv 2007.14527,
    whose wave is here; Burgers and Allen–Cahn as in Raissi, Perdikaris & Karniadakis (2017), arXiv 1711.10561.
    """
    _checks.check_choice(equation, get_args(Equation), "equation")
    _checks.check_positive(resolution, "resolution", integer=True, least=8)
    if equation == "poisson-gradients":
        return image_gradient_task(image, size=resolution)
    _checks.check_positive(points, "points", integer=True, least=2)
    _checks.check_positive(boundary_weight, "boundary_weight")
    if equation in LAWS:
        return evolution_task(equation, points=points, boundary_weight=boundary_weight, resolution=resolution)
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
