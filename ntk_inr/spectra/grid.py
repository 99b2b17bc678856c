"""Exact moments and eigenvalues of stationary kernels on regular grids, from a few rows of the kernel (T4)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr._dtypes import eps, unit_of
from ntk_inr.spectra.dense import Moments, from_units

# Points of a row that are evaluated at a time.
_CHUNK = 2**15
# Grid points whose pairs are looked at for a violation: anchors, and near points of each.
_ANCHORS, _NEAR = 16, 3


class _Profile(NamedTuple):
    """A stationary kernel on a grid, by offset.

    Attributes:
        values: (rows, *shape) in float64; ``values[s][i]`` is the kernel at the offset ``signs[s] * i`` in steps.
        signs: (rows, d) of 1 and -1. An offset and its negative have one value, so half of all signs suffice.
        tolerance: what rounding may make of a difference that should be 0.
    """

    values: np.ndarray
    signs: np.ndarray
    tolerance: float


def grid_moments(kernel: Callable[[Any, Any], Any], axes: Sequence[Any]) -> Moments:
    r"""Return the exact moments of a stationary kernel's eigenvalues on a regular grid of any size, (4.6).

    .. math::
        \mu = h(0), \qquad
        v = \frac1n \sum_{i \ne 0} h(i)^2 \prod_{t \le d} (N_t - |i_t|), \qquad
        k(x, x') = h(x - x')

    The product counts the pairs at offset i, so this holds whether or not the grid covers a period. Takes
    :math:`2^{d-1} n` entries of the kernel in place of n**2, from one corner of the grid for each direction that
    offsets can point in; the kernel need not be even along each axis. Sums are taken in float64.

    Args:
        kernel: ``kernel(x1, x2): (n1, d), (n2, d) -> (n1, n2)`` in JAX, or a result with such an array in its field
            ``ntk``, as that of ``ni.infinite_kernel(net)``. It may depend on x1 - x2 alone, which is checked at
            about 4000 pairs. Compiled once for each function: don't make a new one for each call.
        axes: d one-dimensional arrays, regularly spaced; the grid is their product, "ij" order, n points. They are
            taken in float64 under x64, else in float32.

    Returns:
        :class:`Moments` of Python floats.

    Raises:
        TypeError: ``kernel`` can't be called, or is not written in JAX.
        ValueError: irregular axes; a kernel that is not stationary, not finite, or of the wrong shape.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> from ntk_inr.spectra.grid import grid_moments
        >>> def gaussian(x1, x2):
        ...     return jnp.exp(-((x1[:, None] - x2[None]) ** 2).sum(-1))
        >>> axis = jnp.linspace(-1, 1, 8)
        >>> m = grid_moments(gaussian, [axis, axis])
        >>> points = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(64, 2)
        >>> exact = ni.moments(gaussian(points, points))
        >>> bool(jnp.allclose(m.mean, exact.mean)), bool(jnp.allclose(m.variance, exact.variance, rtol=1e-4))
        (True, True)

    Source: T4.6 of the theory, in d dimensions.
    """
    profile = _profile(kernel, axes)
    shape = profile.values.shape[1:]
    n = math.prod(shape)
    origin: Any = (slice(None), *[0] * len(shape))
    unit = unit_of(profile.values)
    mean = profile.values[origin][0] / unit
    total = (profile.values / unit) ** 2
    total[origin] = 0
    for length in reversed(shape):
        pairs = length - np.arange(length, dtype=float)
        if length > 1:
            pairs[0] /= 2  # these offsets are in the rows of both signs
        total = total @ pairs
    return from_units(n, mean, 2 * total.sum() / n, unit)


def grid_eigenvalues(kernel: Callable[[Any, Any], Any], axes: Sequence[Any]) -> np.ndarray:
    r"""Return all eigenvalues of a stationary kernel on a grid that covers one period, by FFT, (4.4) and (4.5).

    .. math:: \lambda_q = \sum_j h_j\, e^{-2\pi \mathrm i \sum_t j_t q_t / N_t}

    Exact, because the kernel is then block circulant; that offsets wrap around is checked at every offset. Takes
    :math:`2^{d-1} n` entries of the kernel and n log n steps.

    Args:
        kernel: as in :func:`grid_moments`.
        axes: as in :func:`grid_moments`; each covers one period of the kernel and leaves out its end, as
            ``-1 + 2 * jnp.arange(N) / N`` for NeRF's encoding.

    Returns:
        Eigenvalues (n,), largest first, in NumPy float64.
        Their rounding is that of the kernel: :func:`rounding_floor` wants its dtype.

    Raises:
        TypeError: as :func:`grid_moments`.
        ValueError: as :func:`grid_moments`; a kernel that is not periodic on this grid.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntk_inr.spectra.grid import grid_eigenvalues
        >>> def cosine(x1, x2):
        ...     return jnp.cos(jnp.pi * (x1[:, None] - x2[None])).sum(-1)
        >>> [round(float(v), 3) for v in grid_eigenvalues(cosine, [-1 + 2 * jnp.arange(5) / 5])[:3]]
        [2.5, 2.5, 0.0]

    Source: T4.4 and T4.5 of the theory.
    """
    import scipy.fft  # slow to import, and needed here alone

    profile = _profile(kernel, axes)
    _check_periodic(profile)
    # The real part: rounding leaves h(j) and h(-j) apart.
    values = scipy.fft.fftn(profile.values[0]).real.ravel()
    return np.sort(values)[::-1]


def _profile(kernel: Any, axes: Sequence[Any]) -> _Profile:
    """Return the checked profile of ``kernel`` on the grid of ``axes``."""
    if not callable(kernel):
        raise TypeError(
            f"kernel is {type(kernel).__name__}, which can't be called; expected a function kernel(x1, x2): "
            "(n1, d), (n2, d) -> (n1, n2), such as ni.infinite_kernel(net)."
        )
    function = _checks.as_partial(kernel)
    lines = [_regular(axis, f"axes[{t}]") for t, axis in enumerate(axes)]
    if not lines:
        raise ValueError("axes is empty; expected d one-dimensional arrays of coordinates.")
    shape = tuple(len(line) for line in lines)
    points = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, len(lines))
    looked_at = _scattered(shape)
    some = points[np.ravel_multi_index(looked_at.T, shape)]
    entries = _entries(function, some, some)

    signs = np.array(list(itertools.product(*((1, -1) if n > 1 else (1,) for n in shape))))
    signs = signs[: max(1, len(signs) // 2)]
    corners = np.where(signs > 0, points[0], points[-1])
    values = _rows(function, corners, points).reshape(len(signs), *shape)
    for s, sign in enumerate(signs):
        values[s] = np.flip(values[s], tuple(np.flatnonzero(sign < 0).tolist()))
    if not np.isfinite(values).all():
        raise ValueError(f"kernel gives {np.isnan(values).sum()} NaN and {np.isinf(values).sum()} infinite values.")
    # arccos near 1, in the dual of every ReLU, loses half the digits.
    rounding = eps(entries.dtype) if jnp.issubdtype(entries.dtype, jnp.floating) else 0.0  # integers have none
    tolerance = 8 * math.sqrt(rounding) * float(np.abs(values).max())
    profile = _Profile(values, signs, tolerance)
    _check_stationary(profile, looked_at, entries.astype(float))
    return profile


def _regular(axis: Any, name: str) -> np.ndarray:
    """Return a regular axis in float64, or say what is wrong with it."""
    axis = np.asarray(axis)
    if axis.ndim != 1 or not len(axis):
        raise ValueError(f"{name} has shape {axis.shape}; expected (N,), the coordinates along one axis of the grid.")
    if not jnp.issubdtype(axis.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {axis.dtype}; coordinates are floating point. Pass it with .astype(float).")
    line = axis.astype(float)
    if not np.isfinite(line).all():
        raise ValueError(f"{name} holds NaN or infinite coordinates; expected regularly spaced ones.")
    if len(line) == 1:
        return line
    steps = np.diff(line)
    step = (line[-1] - line[0]) / (len(line) - 1)
    off = np.abs(steps - step).max()
    if step == 0 or off > 8 * eps(axis.dtype) * np.abs(line).max():
        raise ValueError(
            f"{name} is not regularly spaced: its steps run from {steps.min():.6g} to {steps.max():.6g}. Expected "
            "equal steps, as np.linspace gives; use ni.sampled_moments for scattered points."
        )
    return line[0] + step * np.arange(len(line))


def _scattered(shape: tuple[int, ...]) -> np.ndarray:
    """Return indices of grid points (m, d): some far apart, and near ones, which alone see a narrow kernel."""
    rng = np.random.default_rng(0)
    anchors = rng.integers(0, shape, (_ANCHORS, len(shape)))
    near = anchors[:, None] + rng.integers(-2, 3, (_ANCHORS, _NEAR, len(shape)))
    return np.concatenate([anchors, np.clip(near, 0, np.array(shape) - 1).reshape(-1, len(shape))])


@jax.jit
def _evaluate(kernel: Partial, x1: Array, x2: Array) -> Any:
    result = kernel(x1, x2)
    return getattr(result, "ntk", result)


def _entries(kernel: Partial, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """Return the kernel of a few points, once its output is known to be one."""
    try:
        entries = _evaluate(kernel, x1, x2)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError("kernel turns its arguments into NumPy arrays; write it with jax.numpy to compile.") from error
    expected = (len(x1), len(x2))
    if getattr(entries, "shape", None) != expected:
        got = getattr(entries, "shape", type(entries).__name__)
        raise ValueError(f"kernel(x1, x2) gave {got} for x1 of {x1.shape} and x2 of {x2.shape}; expected {expected}.")
    return np.asarray(entries)


def _rows(kernel: Partial, corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the rows (corners, points) of the kernel in float64, by chunks that share one program."""
    size = min(_CHUNK, len(points))
    parts = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        part = np.concatenate([part, np.broadcast_to(part[:1], (size - len(part), part.shape[1]))])
        parts.append(_evaluate(kernel, corners, part))
    return np.concatenate([np.asarray(part, float) for part in parts], axis=1)[:, : len(points)]


def _check_stationary(profile: _Profile, looked_at: np.ndarray, entries: np.ndarray) -> None:
    """Refuse a kernel whose ``entries`` between the points ``looked_at`` are not those at their offsets."""
    offsets = looked_at[None] - looked_at[:, None]
    # The signs' first half: the first axis of more than one point is followed forwards.
    first = next((t for t, n in enumerate(profile.values.shape[1:]) if n > 1), 0)
    offsets = np.where(offsets[..., [first]] < 0, -offsets, offsets)
    # A row fits where no offset points against its signs.
    row = (offsets[..., None, :] * profile.signs >= 0).all(-1).argmax(-1)
    expected = profile.values[row, *np.moveaxis(np.abs(offsets), -1, 0)]
    violation = np.abs(entries - expected)
    i, j = np.unravel_index(violation.argmax(), violation.shape)
    if violation[i, j] <= profile.tolerance:
        return
    scale = np.abs(profile.values).max()
    raise ValueError(
        f"kernel is not stationary on this grid: pairs at one offset differ by up to {violation[i, j]:.3g}, "
        f"{violation[i, j] / scale:.2g} of its scale (diagonal entries by {np.diagonal(violation).max():.3g}; rounding "
        f"explains {profile.tolerance:.2g}): {entries[i, j]:.6g} from grid point {_index(looked_at[i])} to "
        f"{_index(looked_at[j])}, {expected[i, j]:.6g} from the corner. It must depend on x1 - x2 alone: raw "
        "coordinates, alone or appended to an encoding, encodings of unequal norm, and the kernel of a network of "
        "finite width, trained or not, don't. Use ni.moments or ni.sampled_moments there."
    )


def _index(point: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in point)


def _check_periodic(profile: _Profile) -> None:
    """Refuse a kernel that is not the same at offsets that a whole turn of the grid sets apart."""
    forward = profile.values[0]
    axes = tuple(range(forward.ndim))
    worst = 0.0
    for value, sign in zip(profile.values, profile.signs, strict=True):
        # An offset and its negative have one value; forwards, its entry stands at the rest of the turn.
        turned = tuple(t for t in axes if sign[t] < 0) or axes
        wrapped = np.roll(np.flip(forward, turned), 1, turned)
        worst = max(worst, float(np.abs(value - wrapped).max()))
    if worst <= profile.tolerance:
        return
    origin = forward[(0,) * forward.ndim]
    ends = [forward[tuple(n - 1 if t == axis else 0 for t in axes)] for axis, n in enumerate(forward.shape)]
    closed = [t for t in axes if forward.shape[t] > 1 and abs(ends[t] - origin) <= profile.tolerance]
    fix = (
        f"axes[{closed[0]}] holds both ends of the period; leave its last point out."
        if closed
        else "Let the axes cover one period; without one, ni.grid_moments and ni.eigenvalues are exact."
    )
    raise ValueError(
        f"kernel is not periodic on this grid: offsets that a whole turn sets apart differ by up to {worst:.3g}, "
        f"{worst / np.abs(forward).max():.2g} of its scale (rounding explains {profile.tolerance:.2g}), so an FFT "
        f"doesn't give its eigenvalues. {fix}"
    )
