"""The reference: contraction of whole Jacobians, exact for any differentiable function."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

_CONTRACTION = {"trace": "icp,jcp->ij", "diagonal": "icp,jcp->ijc", "full": "icp,jep->ijce"}


@jax.jit
def _jacobian(apply: Partial, params: Any, x: Array) -> list[Array]:
    """Return each leaf's Jacobian as (n, c, p)."""

    def single(x_i: Array) -> Any:
        return jax.jacrev(lambda p: apply(p, x_i[None])[0])(params)

    with jax.default_matmul_precision("highest"):
        tree = jax.vmap(single)(x)
    return [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(tree)]


@functools.partial(jax.jit, static_argnames="outputs")
def _contract(rows: list[Array], columns: list[Array], outputs: str) -> Array:
    terms = (jnp.einsum(_CONTRACTION[outputs], a, b, precision="highest") for a, b in zip(rows, columns, strict=True))
    kernel = functools.reduce(operator.add, terms)
    return kernel / rows[0].shape[1] if outputs == "trace" else kernel


def ntk(apply: Partial, params: Any, x1: Array, x2: Array | None, outputs: str, block: int) -> Array:
    """Return the kernel; two Jacobians of ``block`` examples are alive at a time."""
    x2 = x1 if x2 is None else x2
    panels = []
    for start in range(0, len(x1), block):
        rows = _jacobian(apply, params, x1[start : start + block])
        tiles = [
            _contract(rows, _jacobian(apply, params, x2[at : at + block]), outputs) for at in range(0, len(x2), block)
        ]
        panels.append(jnp.concatenate(tiles, axis=1))
    return jnp.concatenate(panels)
