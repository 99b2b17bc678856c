"""Moments of gated Gaussian pairs: a threshold for all, the ReLU's or that of the k largest (T7)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm
from jaxtyping import Float

from ntk_inr.infinite import arccosine, pairs
from ntk_inr.infinite.orthant import orthant, upper_quantile

_TURN = 2 * math.pi
_NODES = 32


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
        r"""The mean of s g², which is q M2."""
        return self.fraction + self.t * self.density

    @property
    def fourth_moment(self) -> float:
        r"""The mean of s g⁴, which is q M4 of (7.10)."""
        return 3 * self.fraction + (self.t**3 + 3 * self.t) * self.density

    @property
    def energy_bias(self) -> float:
        r"""The bias of the mean of :math:`\frac1m\sum s g^2` by a fixed k, times m: :math:`-tq(1-q)/\phi(t)`.

        The mean is :math:`E\,\Lambda(B)` with :math:`\Lambda' = t(q)^2` and B ~ Beta(k, m - k).
        """
        return -self.t * self.fraction * (1 - self.fraction) / self.density if self.exact else 0.0

    def overlap(self, c: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
        r"""Return :math:`p_q` alone, from the correlations."""
        if self.t == 0:
            return arccosine.gates(c)
        t = jnp.full_like(c, self.t)
        return jnp.where(c >= 1, self.fraction, orthant(t, t, c, _NODES))

    def second(self, c: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
        r"""Return :math:`E_{uv}` alone, from the correlations."""
        return self.moments(c).second

    def moments(self, c: Float[Array, "*pairs"]) -> GatedPairs:
        """Return all moments of pairs of these correlations, elementwise."""
        t, q, s, p = self.t, self.fraction, pairs.root((1 - c) * (1 + c)), self.overlap(c)
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
