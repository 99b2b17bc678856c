r"""Means of rectified Gaussian pairs, (0.1) of the theory, as functions of the correlation.

For a standard bivariate normal (g, g') of correlation c = cos(theta), with :math:`g_+ = \max(g, 0)`. Each has the
derivative rule that its closed form has at c = 1 too, where differentiating arccos gives NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_inr._dtypes import unit_of

_TURN = 2 * math.pi
# Abramowitz and Stegun 4.4.46: arccos(c) / sqrt(1 - c) on [0, 1], to 2e-8.
_ARCCOS = (
    1.5707963050,
    -0.2145988016,
    0.0889789874,
    -0.0501743046,
    0.0308918810,
    -0.0170881256,
    0.0066700901,
    -0.0012624911,
)


def _angle(c: Array) -> tuple[Array, Array]:
    """Return theta and its sine."""
    c = jnp.clip(c, -1.0, 1.0)
    sine = jnp.sqrt((1 - c) * (1 + c))
    if c.dtype != jnp.float32:
        return jnp.arccos(c), sine
    return lax.platform_dependent(c, cpu=_fast_arccos, default=jnp.arccos), sine


def _fast_arccos(c: Array) -> Array:
    # XLA calls libm for each arccos on CPU, which costs more than all the rest of a layer.
    size = jnp.abs(c)
    ratio = jnp.zeros_like(size)
    for coefficient in reversed(_ARCCOS):
        ratio = ratio * size + coefficient
    theta = jnp.sqrt(1 - size) * ratio
    return jnp.where(c < 0, math.pi - theta, theta)


def _with_derivative(derivative: Callable[[Array], Array]) -> Callable[[Callable[[Array], Array]], Callable]:
    def wrap(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
        ruled = jax.custom_jvp(function)
        ruled.defjvp(lambda primals, tangents: (ruled(*primals), derivative(*primals) * tangents[0]))
        return functools.wraps(function)(ruled)

    return wrap


def _gates_slope(c: Array) -> Array:
    # Infinite at c = 1, where the derivative of c itself by the inputs is zero: any finite value gives the zero
    # that the product tends to along differentiable paths.
    _, sine = _angle(c)
    return 1 / (_TURN * jnp.maximum(sine, jnp.finfo(sine.dtype).eps ** 0.5))


@_with_derivative(_gates_slope)
def gates(c: Array) -> Array:
    r"""Return :math:`J_0 = E[1_{g>0}1_{g'>0}] = (\pi - \theta)/2\pi`."""
    theta, _ = _angle(c)
    return (math.pi - theta) / _TURN


@_with_derivative(gates)
def rectified(c: Array) -> Array:
    r"""Return :math:`J_1 = E[g_+g'_+] = (\sin\theta + (\pi - \theta)\cos\theta)/2\pi`."""
    theta, sine = _angle(c)
    return (sine + (math.pi - theta) * c) / _TURN


@_with_derivative(lambda c: _angle(c)[1] / math.pi)
def gate_square(c: Array) -> Array:
    r"""Return :math:`J_{02} = E[1_{g>0}g_+'^2] = (\pi - \theta + \sin\theta\cos\theta)/2\pi`."""
    theta, sine = _angle(c)
    return (math.pi - theta + sine * c) / _TURN


@_with_derivative(lambda c: 4 * rectified(c))
def squares(c: Array) -> Array:
    r"""Return :math:`J_2 = E[g_+^2g_+'^2] = (3\sin\theta\cos\theta + (\pi - \theta)(1 + 2\cos^2\theta))/2\pi`."""
    theta, sine = _angle(c)
    return (3 * sine * c + (math.pi - theta) * (1 + 2 * c * c)) / _TURN


def correlation(gram: Array, left: Array, right: Array) -> Array:
    """Return the cosines of a Gram matrix (n1, n2) from the mean squares (n1,), (n2,) of its two sides."""
    unit = jnp.maximum(unit_of(left), unit_of(right))
    left, right = left / unit, right / unit
    return jnp.clip(gram / unit / jnp.sqrt(left[:, None] * right[None, :]), -1.0, 1.0)
