"""Whether a kernel is symmetric, and what limits the steps of gradient descent where it is not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr import _checks

# Rows of a NumPy kernel that are held beside its columns at a time.
_STRIP = 256
# Rows that tell a kernel that training follows from a symmetric one, where whole kernels would cost too much.
FEW_ROWS = 64
# What rounding in float32 may leave between a kernel and its transpose, also where it was widened since.
_ROUNDING = 1e-5
# Of a kernel that is not symmetric: the size up to which all eigenvalues are taken, how many count, and how exactly.
_DENSE, _LEADING, _TOLERANCE = 512, 8, 1e-3


def is_symmetric(K: Any) -> bool:
    """Return whether a kernel is symmetric but for rounding; one under a transformation counts as such."""
    # Written so that NaN counts as symmetric: what is wrong with it is something else.
    return not asymmetry(K) > _ROUNDING


def check_symmetric(K: Any, name: str = "K", rows: int | None = None) -> None:
    """Raise ``ValueError`` where a kernel is not symmetric, by all of its rows or the first ``rows``."""
    apart = asymmetry(K, rows)
    if apart > _ROUNDING:
        raise ValueError(
            f"{name} is not symmetric: it differs from its transpose by {apart:.1e} of its largest entry. If it is the "
            "kernel that training follows (ni.kernels.training_kernel), predict with ni.predict_training(K, ...), "
            "which iterates, and take ni.max_learning_rate(K); eigenvalues and their moments are those of ni.ntk. If "
            "something else set its halves apart, pass (K + K.T) / 2."
        )


def asymmetry(K: Any, rows: int | None = None) -> float:
    """Return how far a kernel and its transpose are apart, over its largest entry; 0 where it can't be seen."""
    if isinstance(K, jax.core.Tracer):
        return 0.0
    if isinstance(K, np.ndarray):
        stop = rows or len(K)
        with np.errstate(invalid="ignore"):
            parts = [_apart(K, slice(i, min(i + _STRIP, stop)), np) for i in range(0, stop, _STRIP)]
        apart, size = np.max(parts, axis=0)
    else:
        with jax.ensure_compile_time_eval():
            apart, size = np.asarray(_compiled(K, rows), float)
    return float(apart) / float(size) if size > 0 else 0.0


def _apart(K: Any, rows: slice, xp: Any) -> tuple[Any, Any]:
    """Return the largest difference between these rows and columns, and the largest entry of them and the diagonal."""
    part = K[rows]
    size = xp.maximum(xp.abs(part).max(), xp.abs(xp.diagonal(K)).max())
    return xp.abs(part - K[:, rows].T).max(), size


@jax.jit(static_argnames="rows")
def _compiled(K: Array, rows: int | None) -> Array:
    return jnp.stack(_apart(K, slice(rows), jnp))


def leading_pace(K: Any) -> float:
    r"""Return the largest :math:`|\lambda|^2/\mathrm{Re}\,\lambda` of the leading eigenvalues of a kernel.

    A step :math:`r - \eta\lambda r` shrinks r where :math:`\eta` is below 2 over that. It is the largest eigenvalue of
    a symmetric kernel. Of another one it is infinite where a leading eigenvalue has no positive real part, so that
    no step shrinks its mode.
    """
    import scipy.linalg

    symmetric = is_symmetric(K)
    K = np.asarray(_checks.as_kernel(K))
    if symmetric:
        return float(scipy.linalg.eigh(K, eigvals_only=True, subset_by_index=(len(K) - 1,) * 2)[0])
    if len(K) <= _DENSE:
        values = scipy.linalg.eigvals(K)
        values = values[np.argsort(-np.abs(values))[:_LEADING]]
    else:
        import scipy.sparse.linalg  # slow to import, and needed here alone

        start = np.random.default_rng(0).normal(size=len(K))
        values = scipy.sparse.linalg.eigs(K, _LEADING, v0=start, return_eigenvectors=False, tol=_TOLERANCE)
    # Those that are small beside the largest hinder no step that it allows, and may be rounding.
    values = values[np.abs(values) > _TOLERANCE * np.abs(values).max()]
    with np.errstate(divide="ignore"):
        return float((np.abs(values) ** 2 / np.maximum(values.real, 0)).max())
