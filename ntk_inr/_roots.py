"""The root of a decreasing function, by bisection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def bisect(above: Callable[[Array], Array], low: Array, high: Array, steps: int) -> Array:
    """Return where ``above`` turns from True to False between ``low`` and ``high``, each entry by itself.

    Each of the ``steps`` halves the brackets.
    """

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        is_above = above(middle)
        return jnp.where(is_above, middle, low), jnp.where(is_above, high, middle)

    low, high = jax.lax.fori_loop(0, steps, halve, (low, high))
    return (low + high) / 2


def decreasing_root(function: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Return the roots of decreasing functions, one for each entry of ``low`` and ``high``, and differentiable."""
    bracket = jax.lax.stop_gradient((low, high))
    # So many steps reach float64's last digits.
    root = jax.lax.stop_gradient(bisect(lambda at: function(at) > 0, *bracket, 60))
    # A Newton step at the root moves nothing, and has the derivative of the implicit function.
    value, slope = jax.jvp(function, (root,), (jnp.ones_like(root),))
    return root - value / jax.lax.stop_gradient(slope)
