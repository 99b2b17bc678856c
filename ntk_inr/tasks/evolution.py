"""Equations in space and time: heat, waves, Burgers and Allen–Cahn, from their start and their boundary."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr.tasks.equation import FieldTask
from ntk_inr.tasks.grid import grid_coordinates
from ntk_inr.tasks.interface import fingerprint
from ntk_inr.tasks.pictures import Panel, error_panel, picture_rows


@dataclasses.dataclass(frozen=True)
class Law:
    """An equation ``residual(u, u_x, u_xx, u_t, u_tt) = 0`` for x in [-1, 1] and t in [0, 1].

    Attributes:
        residual: as above, of arrays.
        start: u at t = 0, a function of x.
        solution: u at arrays x and t of one shape, in float64.
        size: about how large the terms of the residual are; it is divided by that.
        periodic: whether the ends of space are one place; else u is 0 there.
        has_speed: whether u_t at t = 0 is given, as 0.
    """

    residual: Callable[..., Any]
    start: Callable[[np.ndarray], np.ndarray]
    solution: Callable[[np.ndarray, np.ndarray], np.ndarray]
    size: float
    periodic: bool = False
    has_speed: bool = False

    @property
    def columns(self) -> int:
        """Number of residuals a point: a second one where there are speeds at the start, or slopes at the ends."""
        return 1 + (self.periodic or self.has_speed)


_HEAT, _VISCOSITY, _INTERFACE, _SPEED = 0.1, 0.01 / np.pi, 1e-4, 2.0
_SLOPE = 10.0  # about how large first derivatives are, by which those that are given are divided


def _sine(x: np.ndarray) -> np.ndarray:
    return np.sin(np.pi * x)


def _heat(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.exp(-_HEAT * np.pi**2 * t) * _sine(x)


def _pluck(x: np.ndarray) -> np.ndarray:
    return np.sin(np.pi * x) + np.sin(4 * np.pi * x) / 2


def _wave(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    pace = np.pi * _SPEED
    return np.sin(np.pi * x) * np.cos(pace * t) + np.sin(4 * np.pi * x) * np.cos(4 * pace * t) / 2


def _burgers(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return the solution by Cole and Hopf's transformation, integrated by Gauss and Hermite's rule."""
    nodes, weights = np.polynomial.hermite.hermgauss(200)
    later = np.maximum(t, 1e-12)[..., None]
    places = x[..., None] - 2 * np.sqrt(_VISCOSITY * later) * nodes
    # exp(-cos(pi y) / (2 pi nu)) is up to exp(50); its largest value is divided out.
    exponent = -np.cos(np.pi * places) / (2 * np.pi * _VISCOSITY)
    share = weights * np.exp(exponent - exponent.max(axis=-1, keepdims=True))
    moved = -(share * np.sin(np.pi * places)).sum(-1) / share.sum(-1)
    return np.where(t > 0, moved, -_sine(x))


def _bump(x: np.ndarray) -> np.ndarray:
    return x**2 * np.cos(np.pi * x)


@functools.cache
def _allen_cahn_on_grid() -> Any:
    """Return the solution as a spline of x and t, from 512 Fourier modes followed in time."""
    import scipy.integrate
    import scipy.interpolate

    n = 512
    x = -1 + 2 * np.arange(n) / n
    squares = (np.pi * np.fft.rfftfreq(n, 1 / n)) ** 2

    def change(_: float, u: np.ndarray) -> np.ndarray:
        return np.fft.irfft(-_INTERFACE * squares * np.fft.rfft(u), n) + 5 * (u - u**3)

    times = np.linspace(0, 1, 201)
    found = scipy.integrate.solve_ivp(change, (0, 1), _bump(x), t_eval=times, rtol=1e-10, atol=1e-10)
    around = np.concatenate([found.y, found.y[:1]])  # the other end is the first point again
    return scipy.interpolate.RectBivariateSpline(np.append(x, 1.0), times, around, kx=5, ky=5)


def _allen_cahn(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return _allen_cahn_on_grid().ev(x, t)


LAWS: dict[str, Law] = {
    "heat": Law(lambda u, u_x, u_xx, u_t, u_tt: u_t - _HEAT * u_xx, _sine, _heat, _HEAT * np.pi**2),
    "wave": Law(lambda u, u_x, u_xx, u_t, u_tt: u_tt - _SPEED**2 * u_xx, _pluck, _wave, 100.0, has_speed=True),
    "burgers": Law(
        lambda u, u_x, u_xx, u_t, u_tt: u_t + u * u_x - _VISCOSITY * u_xx, lambda x: -_sine(x), _burgers, np.pi
    ),
    "allen-cahn": Law(
        lambda u, u_x, u_xx, u_t, u_tt: u_t - _INTERFACE * u_xx + 5 * (u**3 - u), _bump, _allen_cahn, 5.0, periodic=True
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvolutionTask(FieldTask):
    r"""Follow a field in time from where it begins, by its equation.

    The coordinates are x in [-1, 1] and s in [-1, 1], the time t = (1 + s)/2. At s = -1 u is known; at x = -1 and 1 it
    is 0, or for "allen-cahn" the same on both sides, with its slope; elsewhere the equation holds.

    - "heat": :math:`u_t = 0.1\,u_{xx}` from :math:`\sin\pi x`.
    - "wave": :math:`u_{tt} = 4u_{xx}` from :math:`\sin\pi x + \frac12\sin4\pi x` at rest.
    - "burgers": :math:`u_t + uu_x = \frac{0.01}\pi u_{xx}` from :math:`-\sin\pi x`.
    - "allen-cahn": :math:`u_t = 10^{-4}u_{xx} + 5(u - u^3)` from :math:`x^2\cos\pi x`.

    Attributes:
        name: one of these.
        boundary_weight: what residuals at the start and at the ends are multiplied by.
        x: points (n, 2).
        resolution: points a side of the grid that reconstructions are compared on.
        origin: how :func:`ntk_inr.load_task` builds it again.
    """

    name: str
    boundary_weight: float
    x: np.ndarray
    resolution: int
    origin: Any = None

    @property
    def law(self) -> Law:
        """The equation."""
        return LAWS[self.name]

    @property
    def y(self) -> np.ndarray:
        """The observations (n, c): the weighted u at the start, 0 elsewhere."""
        return self.rows(slice(None))[1]

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return some of the points (k, 2), and the observations there (k, c)."""
        x = self.x[indices]
        begins = x[:, 1] == -1
        y = np.zeros((len(x), self.law.columns), np.float32)
        y[begins, 0] = self.boundary_weight * self.law.start(x[begins, 0].astype(np.float64))
        return x, y

    @property
    def digest(self) -> str:
        """A fingerprint of equation and points."""
        return fingerprint(self.name, self.boundary_weight, self.resolution, self.x)

    def solution(self, x: np.ndarray) -> np.ndarray:
        """Return u (n, 1) at points (n, 2)."""
        return self.law.solution(x[:, 0], (1 + x[:, 1]) / 2)[:, None]

    def measure(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Return ``(params, x) -> (n, c)``: the residuals of the equation, of the start and of the ends."""
        law, weight = self.law, self.boundary_weight

        def observed(params: Any, x: Any) -> Array:
            x = jnp.asarray(x)
            u, u_x, u_xx = _along(apply, params, x, 0)
            _, u_s, u_ss = _along(apply, params, x, 1)
            inside = law.residual(u, u_x, u_xx, 2 * u_s, 4 * u_ss) / law.size
            begins, ends = x[:, 1:] == -1, jnp.abs(x[:, :1]) == 1
            at_end, slope = u, jnp.zeros_like(u)
            if law.periodic:
                other, other_x, _ = _along(apply, params, x * jnp.array([[-1.0, 1.0]], x.dtype), 0)
                at_end, slope = (u - other) / 2, (u_x - other_x) / 2
            first = jnp.where(begins, weight * u, jnp.where(ends, weight * at_end, inside))
            if law.columns == 1:
                return first
            second = jnp.where(begins, u_s, 0) if law.has_speed else jnp.where(ends & ~begins, slope, 0)
            return jnp.concatenate([first, weight * second / _SLOPE], axis=1)

        return observed

    def figure(self, reconstruction: np.ndarray | None = None) -> Any:
        """Return the solution over space and time, and a reconstruction with its error."""
        truth = self._truth
        limits = (float(truth.min()), float(truth.max()))
        panels = [Panel("solution u, x down, t across", truth, "field", limits)]
        if reconstruction is not None:
            title = f"relative error {self.scores(reconstruction)['relative_l2']:.2g}"
            panels += [Panel(title, reconstruction, "field", limits), error_panel(reconstruction, truth)]
        return picture_rows([panels])


def _along(apply: Callable[[Any, Any], Any], params: Any, x: Array, axis: int) -> tuple[Array, Array, Array]:
    """Return a network's values and its first and second derivatives along one coordinate, (n, 1) each."""
    direction = jnp.zeros_like(x).at[:, axis].set(1)

    def slope(x: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda x: apply(params, x), (x,), (direction,))

    (value, first), (_, second) = jax.jvp(slope, (x,), (direction,))
    return value, first, second


def evolution_task(name: str, *, points: int, boundary_weight: float, resolution: int) -> EvolutionTask:
    """Return the task on a grid of ``points`` a side, as many at the start, and as many at either end."""
    inside = grid_coordinates((points, points))
    along = grid_coordinates((points,))
    start = np.concatenate([along, np.full_like(along, -1)], axis=1)
    # At the start the ends are known already.
    ends = [np.concatenate([np.full_like(along, side), along], axis=1) for side in (-1, 1)]
    return EvolutionTask(name, boundary_weight, np.concatenate([inside, start, *ends]), resolution)
