"""The structured kernel: small Gram matrices multiplied entry by entry, (T8.1)."""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Float

from ntk_inr.kernels.taps import TappedFunction

_FACTOR_BATCH = 4096


class Factor(NamedTuple):
    """One term of the kernel, ``(h h' + offset) * (delta delta')``, for n examples.

    Parameters without a tap share a factor whose ``h`` is empty, standing for 1, with their Jacobian as ``delta``.
    """

    h: Float[Array, "n m_in"]
    delta: Float[Array, "n c m_out"]
    offset: Float[Array, ""]


def factors(apply: Partial, params: Any, x: Float[Array, "n d"]) -> list[Factor]:
    """Return the factors of the kernel at coordinates ``x``, one a tapped product, one for the rest."""
    leaves, tree = jax.tree.flatten(params)

    def function(leaves: list[Array], x_i: Array) -> Array:
        return apply(jax.tree.unflatten(tree, leaves), x_i[None])[0]

    tapped = TappedFunction(function, leaves, x[0])
    inputs, deltas, jacobians = lax.map(functools.partial(tapped.factors, leaves), x, batch_size=_FACTOR_BATCH)
    dtype = jnp.result_type(*leaves)
    found = [
        Factor(h, delta, jnp.asarray(offset, dtype))
        for h, delta, offset in zip(inputs, deltas, tapped.offsets, strict=True)
    ]
    if jacobians:
        rest = jnp.concatenate(jacobians, axis=-1)
        found.append(Factor(jnp.zeros((len(x), 0), dtype), rest, jnp.ones((), dtype)))
    return found


def _term(a: Factor, b: Factor, outputs: str) -> Array:
    """Return one factor's share of the kernel between two sets of examples."""
    if outputs == "trace":
        backward = a.delta.reshape(len(a.delta), -1) @ b.delta.reshape(len(b.delta), -1).T / a.delta.shape[1]
    elif outputs == "diagonal":
        backward = jnp.einsum("icm,jcm->ijc", a.delta, b.delta)
    else:
        backward = jnp.einsum("icm,jem->ijce", a.delta, b.delta)
    if a.h.shape[1] == 0:
        return backward
    forward = a.h @ b.h.T + a.offset
    return backward * forward.reshape(forward.shape + (1,) * (backward.ndim - 2))


@functools.partial(jax.jit, static_argnames=("outputs", "block"))
def ntk(apply: Partial, params: Any, x1: Array, x2: Array | None, outputs: str, block: int) -> Array:
    """Return the kernel, in panels of ``block`` rows so that the Gram products stay small."""
    with jax.default_matmul_precision("highest"):
        rows = factors(apply, params, x1)
        columns = rows if x2 is None else factors(apply, params, x2)
        n = len(x1)
        panels = -(-n // block)

        def padded(array: Array) -> Array:
            array = jnp.pad(array, [(0, panels * block - n)] + [(0, 0)] * (array.ndim - 1))
            return array.reshape(panels, block, *array.shape[1:])

        def panel(arrays: list[tuple[Array, Array]]) -> Array:
            local = [Factor(h, delta, row.offset) for (h, delta), row in zip(arrays, rows, strict=True)]
            terms = (_term(a, b, outputs) for a, b in zip(local, columns, strict=True))
            return functools.reduce(operator.add, terms)

        kernel = lax.map(panel, [(padded(row.h), padded(row.delta)) for row in rows])
        kernel = kernel.reshape(panels * block, *kernel.shape[2:])[:n]
    if x2 is None:
        # Products of transposed panels may round differently; this makes K symmetric to the bit.
        axes = (1, 0, 3, 2) if outputs == "full" else (1, 0, 2)[: kernel.ndim]
        kernel = (kernel + jnp.transpose(kernel, axes)) / 2
    return kernel
