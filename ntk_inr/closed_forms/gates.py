"""Moments of gated Gaussian pairs: a threshold for all, the ReLU's or that of the k largest (T7)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.stats import norm
from jaxtyping import Float

from ntk_inr.infinite import arccosine

_TURN = 2 * math.pi


def quadrature(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights on [0, 1] that crowd at 0.

    Gauss-Legendre in the cube root: with thresholds near 0 the integrand of :func:`orthant` rises from 0
    to 1 just there, and 64 plain nodes miss it by up to 1e-4, these by less than 1e-7.
    """
    s, w = np.polynomial.legendre.leggauss(nodes)
    s = (s + 1) / 2
    return s**3, 1.5 * w * s**2


def upper_quantile(fraction: float) -> float:
    """Return t with P(g > t) = ``fraction``."""
    import scipy.special  # slow to import, and needed here alone

    return -float(scipy.special.ndtri(fraction))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def orthant(h: Array, k: Array, theta: Array, nodes: int) -> Array:
    r"""Return :math:`P(g > h, g' > k)` for thresholds at 0 or above and a pair at angle theta, elementwise.

    .. math:: \frac1{2\pi}\int_0^{\pi-\theta}\exp\Bigl(-\frac{hk}{2\sin^2(\psi/2)}
        - \frac{(h-k)^2}{2\sin^2\psi}\Bigr)d\psi

    which is (7.2) where h = k. Positive terms only, so a small probability keeps its digits. A scan over
    the nodes: three arrays of the size of theta at a time.
    """
    return _integral(h, k, theta, nodes)


@orthant.defjvp
def _orthant_jvp(nodes: int, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (h, k, theta), (h_dot, k_dot, theta_dot) = primals, tangents
    s, c = jnp.sin(theta), jnp.cos(theta)
    by_h = norm.pdf(h) * norm.sf((k - c * h) / s)
    by_k = norm.pdf(k) * norm.sf((h - c * k) / s)
    by_theta = jnp.exp(-_exponent(math.pi - theta, h * k, (h - k) ** 2)) / _TURN
    return orthant(h, k, theta, nodes), -(by_h * h_dot + by_k * k_dot + by_theta * theta_dot)


@functools.partial(jax.jit, static_argnums=3)
def _integral(h: Array, k: Array, theta: Array, nodes: int) -> Array:
    span, product, gap = math.pi - theta, h * k, (h - k) ** 2

    def add(total: Array, node: tuple[Array, ...]) -> tuple[Array, None]:
        return total + node[1] * jnp.exp(-_exponent(span * node[0], product, gap)), None

    rule = tuple(jnp.asarray(values, span.dtype) for values in quadrature(nodes))
    total, _ = lax.scan(add, jnp.zeros_like(span + product), rule, unroll=4)
    return span / _TURN * total


def _exponent(psi: Array, product: Array, gap: Array) -> Array:
    tiny = jnp.finfo(psi.dtype).tiny
    half = _half_sine_square(psi)
    return product / (2 * half + tiny) + gap / (8 * half * (1 - half) + tiny)


def _half_sine_square(psi: Array) -> Array:
    """Return sin(psi/2)² = (1 - cos psi)/2 up to psi = pi, by its series: XLA's sine is three times slower on CPU."""
    terms = 14 if psi.dtype == jnp.float64 else 8
    square = psi * psi
    series = jnp.zeros_like(psi)
    for j in range(terms, 0, -1):
        series = series * square - (-1) ** j / math.factorial(2 * j) / 2
    return series * square


def sine(c: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """Return sin(arccos(c)), with derivative 0 rather than infinity at c = 1."""
    square = (1 - c) * (1 + c)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _overlap(t: float, q: float, c: Array) -> Array:
    p = orthant(jnp.asarray(t, c.dtype), jnp.asarray(t, c.dtype), jnp.arccos(c), 64)
    return jnp.where(c >= 1, q, p)


@_overlap.defjvp
def _overlap_jvp(t: float, q: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (c,), (c_dot,) = primals, tangents
    # The density at (t, t). Infinite at c = 1, where any finite value gives the zero that its product with the
    # derivative of c tends to.
    least = jnp.finfo(c.dtype).eps ** 0.5
    slope = jnp.exp(-(t**2) / jnp.maximum(1 + c, least**2)) / (_TURN * jnp.maximum(sine(c), least))
    return _overlap(t, q, c), slope * c_dot


class GatedPairs(NamedTuple):
    r"""Moments of the gates s, s' of pairs (g, g'), each of the shape of their correlations.

    Attributes:
        overlap: :math:`p_q = E[s s']`, (7.2).
        conditional: :math:`A = P(g' > t \mid g = t)`, of (7.3).
        first: :math:`E_u = E[s s' g]`, of T7's constant readout.
        second: :math:`E_{uv} = E[s s' g g']`, of T7's constant readout.
        square: :math:`E[s s' g^2] = p_q + (1 + c^2)t\phi(t)A + c\sin^2\theta\,\phi_2(t, t)`.
        squares: :math:`E[s s' g^2 g'^2]`, by Stein's lemma from the two before.
        bias: :math:`\beta`, by which k fixed moves the mean of the overlap :math:`N/m`, times m, (7.5).
    """

    overlap: Array
    conditional: Array
    first: Array
    second: Array
    square: Array
    squares: Array
    bias: Array


@dataclasses.dataclass(frozen=True)
class Threshold:
    r"""The gate :math:`s = 1\{g > t\}` of a standard normal g.

    Args:
        fraction: q = P(g > t), above 0 and at most 1/2.
        exact: whether the k largest of m pass, so that t fluctuates and k doesn't; otherwise t is fixed.
    """

    fraction: float
    exact: bool

    @functools.cached_property
    def t(self) -> float:
        """The threshold, at least 0."""
        return upper_quantile(self.fraction)

    @functools.cached_property
    def density(self) -> float:
        """The normal density at t, which is also E[s g]."""
        return math.exp(-(self.t**2) / 2) / math.sqrt(_TURN)

    @property
    def energy(self) -> float:
        r"""E[s g²] = q M2."""
        return self.fraction + self.t * self.density

    @property
    def fourth_moment(self) -> float:
        r"""E[s g⁴] = q M4, of (7.10)."""
        return 3 * self.fraction + (self.t**3 + 3 * self.t) * self.density

    @property
    def energy_bias(self) -> float:
        r"""By how much, over m, k fixed moves the mean of :math:`\frac1m\sum s g^2`: :math:`-tq(1-q)/\phi(t)`.

        The mean is :math:`E\,\Lambda(B)` with :math:`\Lambda' = t(q)^2` and B ~ Beta(k, m - k).
        """
        return -self.t * self.fraction * (1 - self.fraction) / self.density if self.exact else 0.0

    def overlap(self, c: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
        r"""Return :math:`p_q` alone, from the correlations."""
        return arccosine.gates(c) if self.t == 0 else _overlap(self.t, self.fraction, c)

    def second(self, c: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
        r"""Return :math:`E_{uv}` alone, from the correlations."""
        return self.moments(c).second

    def moments(self, c: Float[Array, "*pairs"]) -> GatedPairs:
        """Return all moments of pairs of these correlations."""
        t, q, s, p = self.t, self.fraction, sine(c), self.overlap(c)
        tiny = jnp.finfo(c.dtype).tiny
        edge = t * s / jnp.maximum(1 + c, tiny)
        A = norm.sf(edge)
        safe = jnp.where(s > 0, s, 1)
        bias = norm.pdf(edge) / (self.density * safe) * (p - q**2 - c * q * (1 - q))
        bias = jnp.where(s > 0, bias, 0) if self.exact else jnp.zeros_like(c)
        first = (1 + c) * self.density * A
        if t == 0:
            plain = (arccosine.rectified(c), arccosine.gate_square(c), arccosine.squares(c))
            return GatedPairs(p, A, first, *plain, bias)
        # sin² times the density of the pair at (t, t), which itself is infinite at c = 1.
        corner = s * jnp.exp(-(t**2) / jnp.maximum(1 + c, tiny)) / _TURN
        tail = t * self.density * A
        second = c * p + 2 * c * tail + corner
        square = p + (1 + c * c) * tail + c * corner
        squares = square + 2 * c * second + (2 * c * c * t**2 + s**2) * tail + (1 + 2 * c) * t**2 * corner
        return GatedPairs(p, A, first, second, square, squares, bias)


RELU = Threshold(0.5, exact=False)
"""The ReLU passes half of the units, at a threshold that is always 0."""
