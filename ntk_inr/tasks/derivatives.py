"""Derivatives of a network by its coordinates, as functions that can be trained and have kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ntk_inr.tasks.laplacian import forward_laplacian


def value_and_gradient(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return ``(params, x) -> (n, 1 + d)``: the one output of ``apply`` and its derivatives by x.

    Example:
        >>> import jax.numpy as jnp
        >>> print(value_and_gradient(lambda params, x: params * x[:, :1] ** 2)(3.0, jnp.array([[1.0, 5.0]])))
        [[3. 6. 0.]]
    """

    def observed(params: Any, x: Any) -> Array:
        value, back = jax.vjp(lambda x: apply(params, x), jnp.asarray(x))
        return jnp.concatenate([value, *back(jnp.ones_like(value))], axis=1)

    return observed


def value_and_laplacian(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], tuple[Array, Array]]:
    r"""Return ``(params, x) -> ((n, c), (n, c))``: the outputs and their :math:`\sum_i \partial^2/\partial x_i^2`.

    Both are carried forwards together, in d + 2 passes of the network; each row of x is taken to affect its own
    outputs alone.

    Example:
        >>> import jax.numpy as jnp
        >>> both = value_and_laplacian(lambda params, x: params * x[:, :1] ** 2 + x[:, 1:] ** 3)
        >>> print(both(3.0, jnp.array([[1.0, 2.0]]))[1])
        [[18.]]
    """
    both = forward_laplacian(apply)

    def observed(params: Any, x: Any) -> tuple[Array, Array]:
        value, _, laplacian = both(params, x)
        return value, laplacian

    return observed
