"""Orthonormal rows that span what others do, for many small sets of rows at once."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def orthonormal_rows(h: Array) -> Array:
    """Return rows (..., min(t, m), m), orthonormal or zero, whose combinations the rows of ``h`` (..., t, m) are.

    Each row loses its parts along those before it, twice, so that rows that nearly agree leave orthonormal ones too
    (Giraud, Langou, Rozložník and van den Eshof, "Rounding error analysis of the classical Gram-Schmidt
    orthogonalization process", 2005). A row that is a combination of those before it, but for rounding, leaves zeros.

    LAPACK's QR is not an answer here: on a CPU, JAX waits for the threads that compute the parts of a batch in one of
    these threads, and several batches at once wait for each other for ever.

    Example:
        >>> print(orthonormal_rows(jnp.array([[0.0, 2.0, 0.0], [3.0, 4.0, 0.0]])))
        [[0. 1. 0.]
         [1. 0. 0.]]
    """
    t, m = h.shape[-2:]
    if t >= m:
        return jnp.broadcast_to(jnp.eye(m, dtype=h.dtype), (*h.shape[:-2], m, m))
    largest = jnp.abs(h).max(-1, keepdims=True)
    h = h / jnp.where(largest > 0, largest, 1)
    rows = h[..., :0, :]
    for place in range(t):
        row = rest = h[..., place : place + 1, :]
        for _ in range(2):
            along = (rows * rest).sum(-1, keepdims=True)
            rest = rest - (along * rows).sum(-2, keepdims=True)
        length = _length(rest)
        is_new = length > jnp.finfo(h.dtype).eps * _length(row)
        rest = jnp.where(is_new, rest / jnp.where(is_new, length, 1), 0)
        rows = jnp.concatenate([rows, rest], -2)
    return rows


def _length(rows: Array) -> Array:
    return jnp.sqrt((rows * rows).sum(-1, keepdims=True))
