"""Moments of the kernel's eigenvalues from its entries, without eigendecomposition (T1)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_inr import _checks
from ntk_inr._dtypes import unit_of
from ntk_inr._results import Scalar, result, static
from ntk_inr.spectra.symmetry import FEW_ROWS, check_symmetric


class ScaleFree:
    """The figures of eigenvalues that their scale leaves alone, for results with ``mean``, ``deviation`` and ``n``."""

    mean: Any
    deviation: Any
    n: int

    @property
    def cv(self) -> Any:
        """``deviation / mean``, free of scale: compare variants by this one."""
        with np.errstate(all="ignore"):
            if isinstance(self.mean, float):  # Python's own division would raise where the mean is 0
                return float(np.float64(self.deviation) / self.mean)
            return self.deviation / self.mean

    @property
    def effective_rank(self) -> Any:
        """``n / (1 + cv**2)``, between 1 and n."""
        return self.n / (1 + self.cv * self.cv)


@result
class Moments(ScaleFree):
    """Mean and spread of the eigenvalues of an (n, n) kernel, each a scalar.

    Attributes:
        mean: trace / n.
        variance: population variance of the eigenvalues; scales with the kernel's square.
        deviation: its square root, in the kernel's units; right also where the variance leaves the range of its dtype.
        n: number of eigenvalues.
    """

    mean: Scalar
    variance: Scalar
    deviation: Scalar
    n: int = static()

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: the fields, cv and the effective rank."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "cv": self.cv, "effective rank": self.effective_rank}


def moments(K: Any) -> Moments:
    r"""Return the moments of the eigenvalues of a symmetric kernel, (T1.1) and (T1.2).

    .. math::
        \mu = \tfrac1n \operatorname{Tr} K, \qquad
        v = \tfrac1n \sum_{i \ne j} K_{ij}^2 + \operatorname{Var}_i(K_{ii}), \qquad
        \mathrm{cv} = \frac{\sqrt v}{\mu}, \qquad r = \frac{n}{1 + \mathrm{cv}^2}

    This form of v never cancels, unlike ``norm(K)**2 / n - mean**2``. Squares are taken in units of the largest entry,
    so that the deviation, cv and the effective rank r are right for kernels of any scale, where v itself may leave the
    range of its dtype. Works under jit, vmap and grad; a NumPy kernel is reduced by NumPy. Sums are in K's dtype,
    float32 for half precision; integers count as floats.

    Args:
        K: symmetric kernel (n, n), in JAX or NumPy.

    Returns:
        :class:`Moments` of scalars, with ``cv`` and ``effective_rank``, which are NaN for a kernel of zeros.

    Raises:
        TypeError: K holds no real numbers.
        ValueError: K is not square, or not symmetric, as :func:`training_kernel` may be.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> m = ni.moments(jnp.diag(jnp.array([1.0, 3.0])))
        >>> float(m.mean), float(m.variance), float(m.cv), round(float(m.effective_rank), 3)
        (2.0, 1.0, 0.5, 1.6)
    """
    K = _checks.as_kernel(K)
    check_symmetric(K, rows=FEW_ROWS)
    return _moments(K, np) if isinstance(K, np.ndarray) else _compiled(K)


def from_units(n: int, mean: float, variance: float, unit: float) -> Moments:
    """Return the moments, in Python floats, of a kernel whose quotient by ``unit`` has this mean and variance.

    A variance below 0, where noise took an estimate, has the deviation 0.
    """
    with np.errstate(all="ignore"):
        deviation = math.sqrt(max(variance, 0.0)) * unit
        return Moments(float(mean * unit), float(variance * unit * unit), float(deviation), n)


def _moments(K: Any, xp: Any) -> Moments:
    n = K.shape[0]
    diagonal = xp.diagonal(K)
    mean_unit = unit_of(diagonal)
    mean = (diagonal / mean_unit).mean()
    # The diagonal is left out, not subtracted, which would cancel. Rows first, then their sums: two
    # short sums round less than one of n**2 terms.
    off_diagonal = xp.where(xp.eye(n, dtype=bool), 0, K)
    spread = diagonal - mean * mean_unit
    unit = xp.maximum(unit_of(off_diagonal), unit_of(spread))
    off_diagonal = off_diagonal / unit
    variance = (off_diagonal**2).sum(axis=1).sum() / n + ((spread / unit) ** 2).mean()
    # The square root of 0 has no gradient, and equal eigenvalues have no deviation whichever way they move.
    deviation = xp.where(variance == 0, 0, xp.sqrt(xp.where(variance == 0, 1, variance)))
    with np.errstate(all="ignore"):
        return Moments(mean * mean_unit, variance * unit * unit, deviation * unit, n)


# One program: no (n, n) mask is stored or sent, and where K is sharded devices exchange only sums and diagonals.
_compiled = jax.jit(functools.partial(_moments, xp=jnp))
