"""The reference: contraction of whole Jacobians, exact for any differentiable function."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ntk_inr._dtypes import accumulation_dtype, at_precision
from ntk_inr._typing import Params
from ntk_inr.kernels.assembly import reported, transposed
from ntk_inr.kernels.memory import describe
from ntk_inr.kernels.model import Model
from ntk_inr.kernels.request import Request

_JACOBIAN_BYTES = 512 * 2**20
# Rows at a time where columns are pushed forward, which compute all of the function again for each.
_PUSHED = 1024
_CONTRACTION = {"trace": "icp,jcp->ij", "diagonal": "icp,jcp->ijc", "full": "icp,jep->ijce"}


def rows_at_once(model: Model, stored: int = 0, limit: int | None = None) -> int:
    """Return how many examples' Jacobians fit twice beside ``stored`` bytes, or say what the least is."""
    each = (
        2 * model.c * model.dtype.itemsize * sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(model.params))
    )
    if limit is None:
        return max(1, _JACOBIAN_BYTES // each)
    if limit < stored + each:
        raise ValueError(
            f"two rows of Jacobians and the kernel need at least {describe(stored + each)}; memory_limit leaves "
            f'{describe(limit)}. Raise it, or use method="structured", which needs less.'
        )
    return (limit - stored) // each


@functools.partial(jax.jit, static_argnames="precision")
@at_precision
def rows(apply: Partial, params: Params, x: Array, *, precision: str) -> list[Array]:
    """Return each leaf's Jacobian as (n, c, p), for a function whose examples do not mix."""

    def single(x_i: Array) -> Any:
        return jax.jacrev(lambda p: apply(p, x_i[None])[0])(params)

    return [leaf.reshape(*leaf.shape[:2], -1) for leaf in _accumulable(jax.vmap(single)(x))]


def _accumulable(tree: Any) -> list[Array]:
    """Return the leaves in the dtype that kernels are summed in, at least float32."""
    leaves = jax.tree.leaves(tree)
    dtype = accumulation_dtype(*leaves)
    return [leaf.astype(dtype) for leaf in leaves]


@functools.partial(jax.jit, static_argnames=("count", "precision"))
@at_precision
def coupled_rows(apply: Partial, params: Params, x: Array, start: Any, *, count: int, precision: str) -> list[Array]:
    """Return rows ``start`` to ``start + count`` of each leaf's Jacobian (n, c, p) of the whole batch."""
    out, pull = jax.vjp(lambda p: apply(p, x), params)
    n, c = out.shape
    seeds = jnp.arange(count * c)
    # Past the end these rows are zero.
    cotangents = jax.nn.one_hot(start * c + seeds, n * c, dtype=out.dtype).reshape(count * c, n, c)
    (tree,) = jax.vmap(pull)(cotangents)
    return [leaf.reshape(count, c, -1) for leaf in _accumulable(tree)]


@functools.partial(jax.jit, static_argnames=("outputs", "precision"))
def contract(left: list[Array], right: list[Array], *, outputs: str, precision: str) -> Array:
    """Return the kernel of two sets of Jacobians."""
    terms = (jnp.einsum(_CONTRACTION[outputs], a, b, precision=precision) for a, b in zip(left, right, strict=True))
    kernel = functools.reduce(operator.add, terms)
    return kernel / left[0].shape[1] if outputs == "trace" else kernel


def tiles(request: Request, stored: int) -> Iterator[tuple[slice, slice, Array]]:
    """Yield (rows, columns, tile), two blocks of Jacobians alive at a time, which fit beside ``stored`` bytes."""
    model, precision = request.model, request.precision
    block = request.block or rows_at_once(model, stored, request.memory_limit)
    block = min(block, max(model.n1, model.n2))

    def part(x: Any, start: int) -> list[Array]:
        if model.coupled:
            count = min(block, len(x) - start)
            return coupled_rows(model.apply, model.params, x, start, count=count, precision=precision)
        return rows(model.apply, model.params, x[start : start + block], precision=precision)

    symmetric = model.x2 is None
    left = _sliceable(model.x1)
    right = left if symmetric else _sliceable(model.x2)
    corners = [(i, j) for i in range(0, len(left), block) for j in range(i if symmetric else 0, len(right), block)]

    def contracted() -> Iterator[tuple[slice, slice, Array]]:
        start, own = -1, []
        for i, j in corners:
            if i != start:
                start, own = i, part(left, i)
            columns = own if symmetric and i == j else part(right, j)
            tile = contract(own, columns, outputs=request.outputs, precision=precision)
            if symmetric and i == j:
                tile = (tile + transposed(tile)) / 2
            yield slice(i, min(i + block, len(left))), slice(j, min(j + block, len(right))), tile

    return reported(contracted(), len(corners), request.progress)


def pushed(request: Request, full: Partial) -> Iterator[tuple[slice, slice, Array]]:
    """Yield (rows, columns, tile) of the derivatives of ``full`` along the model's gradients, in forward mode."""
    model, n = request.model, request.model.n1
    block = min(n, request.block or _PUSHED)
    spans = [slice(start, min(start + block, n)) for start in range(0, n, block)]
    call = functools.partial(_pushed, full, outputs=request.outputs, precision=request.precision)
    parts = (
        (rows, slice(0, model.n2), call(model.apply, model.params, model.x1[rows], model.columns)) for rows in spans
    )
    return reported(parts, len(spans), request.progress)


@functools.partial(jax.jit, static_argnames=("outputs", "precision"))
@at_precision
def _pushed(
    full: Partial, apply: Partial, params: Params, x1: Array, x2: Array, *, outputs: str, precision: str
) -> Array:
    def column(x_j: Array) -> Array:
        gradients = jax.jacrev(lambda p: apply(p, x_j[None])[0])(params)
        return jax.vmap(lambda way: jax.jvp(lambda p: full(p, x1), (params,), (way,))[1])(gradients)

    every = jax.lax.map(column, x2).transpose(2, 0, 3, 1)
    every = every.astype(accumulation_dtype(*jax.tree.leaves(params)))
    if outputs == "full":
        return every
    each = jnp.diagonal(every, axis1=2, axis2=3)
    return each if outputs == "diagonal" else each.mean(2)


def _sliceable(x: Any) -> Any:
    # Sliced by NumPy where it can be: each slice of a JAX array would be a program of its own.
    return x if isinstance(x, jax.core.Tracer) else np.asarray(x)
