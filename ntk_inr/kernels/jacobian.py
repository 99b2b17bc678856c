"""The reference: contraction of whole Jacobians, exact for any differentiable function."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ntk_inr._dtypes import accumulation_dtype
from ntk_inr.kernels.assembly import Progress, reported, transposed

_CONTRACTION = {"trace": "icp,jcp->ij", "diagonal": "icp,jcp->ijc", "full": "icp,jep->ijce"}


@functools.partial(jax.jit, static_argnames="precision")
def rows(apply: Partial, params: Any, x: Array, *, precision: str) -> list[Array]:
    """Return each leaf's Jacobian as (n, c, p), for a function whose examples do not mix."""

    def single(x_i: Array) -> Any:
        return jax.jacrev(lambda p: apply(p, x_i[None])[0])(params)

    with jax.default_matmul_precision(precision):
        tree = jax.vmap(single)(x)
    return [leaf.reshape(*leaf.shape[:2], -1) for leaf in _accumulable(tree)]


def _accumulable(tree: Any) -> list[Array]:
    """Return the leaves in the dtype that kernels are summed in, at least float32."""
    leaves = jax.tree.leaves(tree)
    dtype = accumulation_dtype(*leaves)
    return [leaf.astype(dtype) for leaf in leaves]


@functools.partial(jax.jit, static_argnames=("count", "precision"))
def coupled_rows(apply: Partial, params: Any, x: Array, start: Any, *, count: int, precision: str) -> list[Array]:
    """Return rows ``start`` to ``start + count`` of each leaf's Jacobian (n, c, p) of the whole batch."""
    with jax.default_matmul_precision(precision):
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


def tiles(
    apply: Partial,
    params: Any,
    x1: Array,
    x2: Array | None,
    *,
    outputs: str,
    precision: str,
    block: int,
    coupled: bool,
    progress: Progress | None,
) -> Iterator[tuple[slice, slice, Array]]:
    """Yield (rows, columns, tile); two Jacobians of ``block`` examples are alive at a time."""

    def part(x: Any, start: int) -> list[Array]:
        if coupled:
            count = min(block, len(x) - start)
            return coupled_rows(apply, params, x, start, count=count, precision=precision)
        return rows(apply, params, x[start : start + block], precision=precision)

    left = _sliceable(x1)
    right = left if x2 is None else _sliceable(x2)
    corners = [(i, j) for i in range(0, len(left), block) for j in range(i if x2 is None else 0, len(right), block)]

    def contracted() -> Iterator[tuple[slice, slice, Array]]:
        start, own = -1, []
        for i, j in corners:
            if i != start:
                start, own = i, part(left, i)
            columns = own if x2 is None and i == j else part(right, j)
            tile = contract(own, columns, outputs=outputs, precision=precision)
            if x2 is None and i == j:
                tile = (tile + transposed(tile)) / 2
            yield slice(i, min(i + block, len(left))), slice(j, min(j + block, len(right))), tile

    return reported(contracted(), len(corners), progress)


def pushed(
    full: Partial,
    apply: Partial,
    params: Any,
    x1: Any,
    x2: Any,
    *,
    outputs: str,
    precision: str,
    block: int,
    progress: Progress | None,
) -> Iterator[tuple[slice, slice, Array]]:
    """Yield (rows, columns, tile) of the derivatives of ``full`` along the gradients of ``apply``, in forward mode."""
    spans = [slice(start, min(start + block, len(x1))) for start in range(0, len(x1), block)]
    options = {"outputs": outputs, "precision": precision}
    parts = ((rows, slice(0, len(x2)), _pushed(full, apply, params, x1[rows], x2, **options)) for rows in spans)
    return reported(parts, len(spans), progress)


@functools.partial(jax.jit, static_argnames=("outputs", "precision"))
def _pushed(full: Partial, apply: Partial, params: Any, x1: Array, x2: Array, *, outputs: str, precision: str) -> Array:
    def column(x_j: Array) -> Array:
        gradients = jax.jacrev(lambda p: apply(p, x_j[None])[0])(params)
        return jax.vmap(lambda way: jax.jvp(lambda p: full(p, x1), (params,), (way,))[1])(gradients)

    with jax.default_matmul_precision(precision):
        every = jax.lax.map(column, x2).transpose(2, 0, 3, 1)
    every = every.astype(accumulation_dtype(*jax.tree.leaves(params)))
    if outputs == "full":
        return every
    each = jnp.diagonal(every, axis1=2, axis2=3)
    return each if outputs == "diagonal" else each.mean(2)


def _sliceable(x: Any) -> Any:
    # Sliced by NumPy where it can be: each slice of a JAX array would be a program of its own.
    return x if isinstance(x, jax.core.Tracer) else np.asarray(x)
