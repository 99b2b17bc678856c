"""Normal pairs above two thresholds: how likely that is, and the moments of the pair there (T7)."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import ndtr
from jax.scipy.stats import norm

from ntk_inr.infinite import arccosine, pairs

_TURN = 2 * math.pi
# Negatively correlated pairs whose thresholds have a larger product are integrated from correlation -1.
_RARE = 0.5


class Above(NamedTuple):
    r"""What is known of a standard normal pair (g, g') of correlation c where :math:`g > h` and :math:`g' > k`.

    Attributes:
        chance: :math:`P(g > h, g' > k)`.
        first: :math:`\phi(h)\,P(g' > k \mid g = h)`.
        second: :math:`\phi(k)\,P(g > h \mid g' = k)`.
        corner: :math:`(1 - c^2)\,\phi_2(h, k)`, with the density of the pair at the thresholds.
    """

    chance: Array
    first: Array
    second: Array
    corner: Array


def upper_quantile(fraction: float) -> float:
    """Return t with P(g > t) = ``fraction``."""
    import scipy.special  # slow to import, and needed here alone

    return -float(scipy.special.ndtri(fraction))


def above(h: Array, k: Array, c: Array, nodes: int) -> Above:
    """Return the moments of pairs of correlation ``c`` above the thresholds h and k, elementwise.

    At c = 1 and h = k their derivatives are finite.
    """
    first, second = _edges(h, k, c)
    corner = pairs.root((1 - c) * (1 + c)) / _TURN * jnp.exp(-_exponent((1 + c) / 2, h, k))
    return Above(orthant(h, k, c, nodes), first, second, corner)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def orthant(h: Array, k: Array, c: Array, nodes: int) -> Array:
    r"""Return :math:`P(g > h, g' > k)` for standard normal pairs of correlation c, elementwise.

    By Price's theorem along the angle psi from :math:`\cos\psi = -c_0` to :math:`\cos\psi = -c`,

    .. math:: P = P_{c_0} + \frac1{2\pi}\int\exp\Bigl(-\frac{hk}{2\sin^2(\psi/2)}
        - \frac{(h-k)^2}{2\sin^2\psi}\Bigr)d\psi

    which is (7.2) where h = k. It starts where the pair is independent, or opposite if both exceed their thresholds
    rarely: all terms are then positive, so that a small probability keeps its digits. The error is under 2e-8 with
    24 nodes of Gauss-Legendre and 1e-9 with 32, for nearly collinear pairs 1e-5 and 2e-6. A scan
    over the nodes holds three arrays of the size of c at a time.
    """
    end = _TURN * arccosine.gates(c)
    rare = (c < 0) & (h * k > _RARE)
    span = end - jnp.where(rare, 0, math.pi / 2)

    def add(total: Array, node: tuple[Array, ...]) -> tuple[Array, None]:
        # The squared node crowds them at the end, where nearly collinear pairs have a narrow layer.
        v, weight = node
        half = _half_sine_square(end - span * (v * v))
        return total + 2 * v * weight * jnp.exp(-_exponent(half, h, k)), None

    rule = tuple(jnp.asarray(values, c.dtype) for values in pairs.legendre(nodes))
    total, _ = lax.scan(add, jnp.zeros_like(span), rule, unroll=2)
    opposite = jnp.maximum(ndtr(-h) - ndtr(k), 0)
    return jnp.where(rare, opposite, ndtr(-h) * ndtr(-k)) + span / _TURN * total


@orthant.defjvp
def _orthant_jvp(nodes: int, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (h, k, c), (h_dot, k_dot, c_dot) = primals, tangents
    first, second = _edges(h, k, c)
    # The pair's density. Infinite at c = 1, where the derivative of c itself by the inputs is zero: any finite value
    # gives the zero that their product tends to along differentiable paths.
    sine = jnp.maximum(pairs.root((1 - c) * (1 + c)), jnp.finfo(c.dtype).eps ** 0.5)
    density = jnp.exp(-_exponent((1 + c) / 2, h, k)) / (_TURN * sine)
    return orthant(h, k, c, nodes), density * c_dot - first * h_dot - second * k_dot


def _edges(h: Array, k: Array, c: Array) -> tuple[Array, Array]:
    """Return ``first`` and ``second`` of :class:`Above`."""
    sine = jnp.sqrt(jnp.maximum((1 - c) * (1 + c), jnp.finfo(c.dtype).eps))
    return norm.pdf(h) * ndtr((c * h - k) / sine), norm.pdf(k) * ndtr((c * k - h) / sine)


def _exponent(half: Array, h: Array, k: Array) -> Array:
    """Return (h² + k² - 2 h k c) / (2 (1 - c²)) at ``half`` = (1 + c)/2, as a sum of positive terms."""
    eps = jnp.finfo(half.dtype).eps
    product, gap = jnp.abs(h * k), (jnp.abs(h) - jnp.abs(k)) ** 2
    side = jnp.where(h * k < 0, 1 - half, half)
    return product / jnp.maximum(2 * side, eps) + gap / jnp.maximum(8 * half * (1 - half), eps)


def _half_sine_square(psi: Array) -> Array:
    """Return sin(psi/2)² = (1 - cos psi)/2 up to psi = pi, by its series: XLA's sine is three times slower on CPU."""
    terms = 14 if psi.dtype == jnp.float64 else 8
    square = psi * psi
    series = jnp.zeros_like(psi)
    for j in range(terms, 0, -1):
        series = series * square - (-1) ** j / math.factorial(2 * j) / 2
    return series * square
