"""The matrix products of networks, and the precision that each is computed in."""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from ntk_inr import _checks

Precision = Literal["default", "high", "highest", "bfloat16"]


def check_precision(precision: str | None) -> None:
    """Raise where ``precision`` is no way to compute products."""
    if precision is not None:
        _checks.check_choice(precision, get_args(Precision), "precision")


def of_coordinates(x: Float[Array, "n d"], matrix: Float[Array, "d m"]) -> Float[Array, "n m"]:
    """Return the product of coordinates by a matrix, in full precision whatever the device's default is.

    TensorFloat-32, a GPU's default, has 10 bits after the first: of 8000 samples over [-1, 1] it leaves 6050 distinct.
    """
    return jnp.matmul(x, matrix, precision=lax.Precision.HIGHEST)


def product(
    h: Float[Array, "n m"], matrix: Float[Array, "m k"], precision: Precision | None = None, *, sums: bool = False
) -> Float[Array, "n k"]:
    """Return the product of hidden values by a matrix.

    Args:
        h: values (n, m).
        matrix: (m, k).
        precision: "default", "high" or "highest", as JAX names them; None is ``jax.default_matmul_precision``;
            "bfloat16" rounds both operands to it, and the sums, which accelerators form in float32.
        sums: keep those sums in float32.

    Returns:
        The product, in h's dtype.
    """
    if precision != "bfloat16":
        return jnp.matmul(h, matrix, precision=precision)
    low = h.astype(jnp.bfloat16), matrix.astype(jnp.bfloat16)
    return jnp.matmul(*low, preferred_element_type=jnp.float32 if sums else jnp.bfloat16).astype(h.dtype)
