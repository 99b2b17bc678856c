"""Passes through a model on many rows, a share of them at a time: in parts of rows, J^T a, and J d."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial

ROWS_AT_ONCE = 2**13
"""Rows of a pass, whose values stay in a CPU's caches for the most part."""


def over_parts(function: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """Return arrays (n, ...) that ``function`` makes of rows (n, ...), ``size`` at a time; the last part overlaps.

    So no copy of the rows is made, as it would be to fill up the last part.
    """
    n = len(jax.tree.leaves(rows)[0])
    if size >= n:
        return function(rows)
    starts = jnp.minimum(jnp.arange(0, n, size), n - size)
    parts = lax.map(lambda start: function(part(rows, start, size)), starts)
    return jax.tree.map(lambda values: joined(values, n), parts)


def joined(parts: Array, n: int) -> Array:
    """Return (parts, size, ...) as (n, ...), without the rows that the last part shares with the one before."""
    flat = parts[:-1].reshape(-1, *parts.shape[2:])
    return jnp.concatenate([flat, parts[-1, parts.shape[1] - (n - len(flat)) :]])


def part(rows: Any, start: Any, size: int) -> Any:
    """Return ``size`` rows of each array from ``start`` on."""
    return jax.tree.map(lambda array: lax.dynamic_slice_in_dim(array, start, size), rows)


def fresh_part(rows: Any, first: Any, size: int) -> tuple[Any, Array]:
    """Return ``size`` rows from ``first`` on, and which of them (size,) no part before has had.

    The last part begins early where it would not be full.
    """
    n = len(jax.tree.leaves(rows)[0])
    start = jnp.minimum(first, n - size)
    return part(rows, start, size), start + jnp.arange(size) >= first


@jax.jit
def values(apply: Partial, params: Any, x: Array) -> Array:
    """Return f (n, c)."""
    return over_parts(lambda x: apply(params, x), x, ROWS_AT_ONCE)


@jax.jit
def pulled(apply: Partial, params: Any, x: Array, cotangent: Array) -> Any:
    """Return J^T of a cotangent (n, c), shaped as the parameters."""
    n, size = len(x), min(len(x), ROWS_AT_ONCE)

    def add(total: Any, first: Array) -> tuple[Any, None]:
        (x_b, cotangent_b), fresh = fresh_part((x, cotangent), first, size)
        out, pullback = jax.vjp(lambda params: apply(params, x_b), params)
        (more,) = pullback(jnp.where(fresh[:, None], cotangent_b, 0).astype(out.dtype))
        return jax.tree.map(jnp.add, total, more), None

    if size == n:
        return add(jax.tree.map(jnp.zeros_like, params), jnp.array(0))[0]
    return lax.scan(add, jax.tree.map(jnp.zeros_like, params), jnp.arange(0, n, size))[0]


@jax.jit
def pushed(apply: Partial, params: Any, x: Array, direction: Any) -> Array:
    """Return J of a direction in the parameters, (n, c)."""

    def along(x: Array) -> Array:
        return jax.jvp(lambda params: apply(params, x), (params,), (direction,))[1]

    return over_parts(along, x, ROWS_AT_ONCE)
