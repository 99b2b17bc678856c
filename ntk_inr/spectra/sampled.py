"""Moments of kernels that are never stored: exact by streaming tiles, or from principal submatrices (9.4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr import _checks
from ntk_inr._checks import Precision
from ntk_inr._dtypes import unit_of
from ntk_inr._results import Scalar, result, static
from ntk_inr._typing import Apply, Params, Progress
from ntk_inr.kernels import assembly
from ntk_inr.kernels.model import trace_of
from ntk_inr.kernels.request import Request
from ntk_inr.spectra.dense import Moments, from_units
from ntk_inr.spectra.submatrices import draw, estimate, standard_errors, sums_of, unseen

_LEAST_SUBMATRICES = 8
_MOST_SUBMATRICES = 64


@result
class SampledMoments(Moments):
    """Moments of the eigenvalues estimated from principal submatrices, with standard errors.

    Attributes:
        mean: estimate of trace / n.
        variance: unbiased estimate of the population variance of the eigenvalues.
        deviation: its square root.
        n: number of eigenvalues.
        mean_stderr: standard error of the mean; of both, 0 where the whole kernel was taken.
        variance_stderr: standard error of the variance.
        submatrices: how many submatrices were drawn; 1 where the whole kernel was taken.
        size: rows of each submatrix.
    """

    mean_stderr: Scalar
    variance_stderr: Scalar
    submatrices: Scalar
    size: int = static()


class _Entries(NamedTuple):
    """The sum of squares off the diagonal and the diagonal itself, of one kernel divided by ``unit``."""

    squares: float
    diagonal: np.ndarray
    unit: float

    def per(self, unit: float) -> _Entries:
        """Return the same of the kernel divided by ``unit``."""
        factor = self.unit / unit
        return _Entries(self.squares * factor**2, self.diagonal * factor, unit)


def streamed_moments(
    apply: Apply,
    params: Params,
    x: Any,
    *,
    block: int | None = None,
    memory_limit: int | None = None,
    precision: Precision = "highest",
    progress: Progress | None = None,
) -> Moments:
    """Return the exact moments of the kernel's eigenvalues, (T1.1) and (T1.2), without storing the kernel.

    Takes the time of :func:`ntk_inr.ntk`, and memory for n (sum of widths) floats; where ``memory_limit``
    is below that, factors are computed again for each panel of rows, and memory does not grow with n. Sums
    are taken in float64 on the host.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``; examples must not mix.
        params: pytree of floating point arrays.
        x: coordinates (n, d).
        block: rows and columns of a tile; None picks by memory.
        memory_limit: bytes to stay within; None is what the device has left.
        precision: of matrix products, as in :func:`ntk_inr.ntk`.
        progress: called as ``progress(done, total)`` after each tile.

    Returns:
        :class:`Moments` of Python floats.

    Raises:
        TypeError: integer coordinates or parameters; ``apply`` not callable.
        ValueError: as :func:`ntk_inr.ntk`.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 16)[:, None]
        >>> apply, params = ni.init(ni.CoordinateMLP(features=32, depth=2), jax.random.key(0), x)
        >>> exact, m = ni.moments(ni.ntk(apply, params, x)), ni.streamed_moments(apply, params, x)
        >>> bool(np.allclose([m.mean, m.variance], [exact.mean, exact.variance], rtol=1e-4))
        True
    """
    request = Request.of(
        apply, params, x, block=block, memory_limit=memory_limit, precision=precision, progress=progress
    )
    whole = _entries(request.on_host("streamed_moments"))
    m = _estimated(request.model.n1, [whole])
    return Moments(m.mean, m.variance, m.deviation, m.n)


def sampled_moments(
    apply: Apply,
    params: Params,
    x: Any,
    *,
    key: Array,
    size: int = 2048,
    submatrices: int | None = None,
    rtol: float = 0.004,
    block: int | None = None,
    memory_limit: int | None = None,
    precision: Precision = "highest",
    progress: Progress | None = None,
) -> SampledMoments:
    r"""Return unbiased estimates of the moments at any number of coordinates, (9.4), with standard errors.

    .. math::
        \hat v = \frac1S \sum_{\mathcal S} \frac{n - 1}{b (b - 1)} \sum_{i \ne j \in \mathcal S} K_{ij}^2
        + \widehat{\operatorname{Var}}_i(K_{ii})

    The S disjoint random subsets of b coordinates are drawn without replacement; mean and variance of the
    diagonal come from all of them. Standard errors are the jackknife's over subsets.
    Subsets are added until both relative standard errors are under ``rtol``, at least 8, at most 64 or what fits,
    so ``rtol`` may not be met: read the standard errors. A kernel of no more than ``size`` rows is taken whole, and
    is exact. Costs S b^2 entries of the kernel.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``; examples must not mix.
        params: pytree of floating point arrays.
        x: coordinates (n, d).
        key: a JAX random key.
        size: coordinates b in each subset; smaller where 8 of them don't fit in n.
        submatrices: number S of subsets, at least 2, in place of stopping by ``rtol``.
        rtol: the relative standard error to reach.
        block: rows and columns of a tile; None picks by memory.
        memory_limit: bytes to stay within; None is what the device has left.
        precision: of matrix products, as in :func:`ntk_inr.ntk`.
        progress: called as ``progress(done, most)`` after each submatrix.

    Returns:
        :class:`SampledMoments` of Python floats.

    Raises:
        TypeError: integer coordinates or parameters; ``apply`` not callable.
        ValueError: as :func:`ntk_inr.ntk`; ``submatrices * size`` above n.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jax.random.uniform(jax.random.key(1), (600, 2), minval=-1.0)
        >>> apply, params = ni.init(ni.CoordinateMLP(features=32, depth=2), jax.random.key(0), x)
        >>> m = ni.sampled_moments(apply, params, x, key=jax.random.key(2), size=50)
        >>> exact = ni.streamed_moments(apply, params, x)
        >>> abs(m.variance - exact.variance) < 5 * m.variance_stderr
        True
    """
    _checks.check_positive(size, "size", integer=True, least=2)
    _checks.check_positive(rtol, "rtol")
    request = Request.of(apply, params, x, block=block, memory_limit=memory_limit, precision=precision)
    points = np.asarray(request.on_host("sampled_moments").model.x1)
    n = len(points)
    size, count = _plan(n, size, submatrices)
    most = count or min(_MOST_SUBMATRICES, n // size)
    order = draw(key, n, size, most, otherwise="use ni.streamed_moments") if most > 1 else [slice(None)]
    parts: list[_Entries] = []
    for done, subset in enumerate(order, 1):
        part = _entries(request.at(points[subset]))
        parts.append(part.per(parts[0].unit) if parts else part)
        if progress:
            progress(done, most)
        if done >= min(most, count or _LEAST_SUBMATRICES):
            m = _estimated(n, parts)
            if m.mean_stderr <= rtol * abs(m.mean) and m.variance_stderr <= rtol * abs(m.variance) and not count:
                break
    return m


def _plan(n: int, size: int, submatrices: int | None) -> tuple[int, int | None]:
    """Return the rows of a submatrix, n for the whole kernel, and how many are drawn; None stops by their errors."""
    if submatrices is not None:
        _checks.check_positive(submatrices, "submatrices", integer=True, least=2)
        return size, submatrices
    if n >= _LEAST_SUBMATRICES * size:
        return size, None
    smaller = n // _LEAST_SUBMATRICES
    return (n, 1) if n <= size or smaller < 2 else (smaller, None)


def _entries(request: Request) -> _Entries:
    """Return what moments need of the kernel, tile by tile."""
    n = request.model.n1
    cut = request.cut(trace_of(request.model, "trace"))
    started = (
        (rows, columns, _squares(tile, rows.stop - rows.start, columns.stop - columns.start, rows == columns))
        for rows, columns, tile in assembly.tiles(request, cut)
    )
    totals, units, diagonal = [], [], np.zeros(n)
    for rows, columns, (squares, unit, own) in assembly.held_back(started, cut.ahead):
        once = float(np.asarray(squares, np.float64).sum())
        totals.append(once if rows == columns else 2 * once)
        units.append(float(unit))
        if rows == columns:
            diagonal[rows] = np.asarray(own)[: rows.stop - rows.start]
    unit = max(max(units), float(unit_of(diagonal)))
    total = sum(each * (own / unit) ** 2 for each, own in zip(totals, units, strict=True))
    return _Entries(total, diagonal / unit, unit)


@jax.jit
def _squares(tile: Array, rows: Any, columns: Any, on_diagonal: Any) -> tuple[Array, Array, Array]:
    """Return the sums of squares of the rows of a tile, in a unit of its own, that unit, and the diagonal."""
    # Rows first, then their sums: two short sums round less than a long one.
    i, j = jnp.arange(tile.shape[0])[:, None], jnp.arange(tile.shape[1])[None]
    left_out = (i >= rows) | (j >= columns) | (on_diagonal & (i == j))
    kept = jnp.where(left_out, 0, tile)
    unit = unit_of(kept)
    return ((kept / unit) ** 2).sum(axis=1), unit, jnp.diagonal(tile)


def _estimated(n: int, parts: list[_Entries]) -> SampledMoments:
    """Return the moments for n coordinates from submatrices in one unit, or from one that is the whole kernel."""
    sums = sums_of([np.array([[part.squares]]) for part in parts], [part.diagonal[:, None] for part in parts])
    unit, size = parts[0].unit, sums.size

    def figures(kept: np.ndarray) -> dict[str, Any]:
        own = estimate(n, sums.of(kept))
        return {"mean": own.means[0], "variance": (own.off_diagonal + own.diagonal)[0, 0]}

    errors = standard_errors(figures, len(parts))
    m = from_units(n, **figures(np.ones(len(parts), bool)), unit=unit)
    return SampledMoments(
        m.mean, m.variance, m.deviation, n, submatrices=len(parts), size=size,
        mean_stderr=float(errors["mean"] * unseen(n, size * len(parts)) * unit),
        variance_stderr=float(errors["variance"] * unit * unit),
    )  # fmt: skip
