r"""Duals of TopK in the limit of many units, k of m: each passes above the quantile 1 - k/m of its law (T7)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm

from ntk_inr._roots import decreasing_root
from ntk_inr.infinite import pairs, quadrature
from ntk_inr.infinite.duals import Means
from ntk_inr.infinite.orthant import above
from ntk_inr.infinite.pairs import Pair, Side
from ntk_inr.networks.sparsity import Soft

_NODES = 24


@dataclasses.dataclass(frozen=True)
class HardGate:
    r"""The k largest units of an increasing rectifier, :math:`p\,u\,1\{u \ge t(u)\}` with :math:`P(u \ge t) = q < 1/2`.

    The slope is (T7.2), as automatic differentiation sees the gate; the value has the truncated normal's second
    moments of T7.7. A uniform bias is averaged over by 64 nodes of Gauss-Legendre: to 1e-6 relative where its
    spread is under 10 times that of the normal part, and 1e-2 for rare coordinates near 0 where it is not.

    Args:
        q: fraction that passes.
        p: slope of the rectifier above 0.
    """

    q: float
    p: float = 1.0

    def moments(self, pair: Pair) -> Means:
        """Return the means of phi(u) phi(v) and phi'(u) phi'(v)."""
        sigmas = pair.spread(pairs.root(pair.left.k), pairs.root(pair.right.k))
        heights, offsets, weights = zip(*(self._heights(side) for side in (pair.left, pair.right)), strict=True)

        def add(total: Means, at: tuple[tuple[Array, Array], tuple[Array, Array], Array]) -> tuple[Means, None]:
            height, offset, weight = at
            value, slope = _truncated(*pair.spread(*height), pair.c, *pair.spread(*offset), *sigmas)
            return Means(total.value + weight * value, total.slope + weight * slope), None

        zero = jnp.zeros_like(pair.c)
        rule = tuple(a.T for a in heights), tuple(a.T for a in offsets), weights[0]
        total = jax.lax.scan(jax.checkpoint(add), Means(zero, zero), rule)[0]
        return Means(self.p**2 * total.value, self.p**2 * total.slope)

    def mean(self, side: Side) -> Array:
        """Return the mean of phi(u)."""
        height, offset, weights = self._heights(side)
        passed = pairs.root(side.k)[:, None] * norm.pdf(height) + offset * ndtr(-height)
        return self.p * (passed @ weights)

    def _heights(self, side: Side) -> tuple[Array, Array, Array]:
        """Return the threshold less the bias in standard deviations, the bias, (n, b), and weights (b,)."""
        t = -ndtri(jnp.asarray(self.q, side.k.dtype))
        if side.features is None:
            return jnp.full_like(side.k, t)[:, None], jnp.zeros_like(side.k)[:, None], jnp.ones_like(side.k, shape=1)
        nodes, weights = (jnp.asarray(part, side.k.dtype) for part in pairs.uniform_rule(1))
        offset = side.features @ nodes.T
        # Under a thousandth of the bias's spread the normal part is too narrow for the nodes to see.
        sigma = jnp.maximum(pairs.root(side.k), 1e-3 * jnp.abs(side.features[:, 0]))[:, None]

        def excess(threshold: Array) -> Array:
            return ndtr((offset - threshold[:, None]) / sigma) @ weights - self.q

        threshold = decreasing_root(excess, jnp.zeros_like(side.k), (8 * sigma[:, 0] + jnp.abs(offset).max(1)))
        return (threshold[:, None] - offset) / sigma, offset, weights


def _truncated(h: Array, k: Array, c: Array, a: Array, b: Array, s1: Array, s2: Array) -> tuple[Array, Array]:
    r"""Return :math:`E[(\sigma_1g + a)(\sigma_2g' + b)\,1\{g > h, g' > k\}]` and the probability of the event."""
    chance, left, right, corner = above(h, k, c, _NODES)
    both = c * (chance + h * left + k * right) + corner
    value = s1 * s2 * both + s1 * b * (left + c * right) + s2 * a * (right + c * left) + a * b * chance
    return value, chance


@dataclasses.dataclass(frozen=True)
class SoftGate:
    r"""TopK's soft modes on any activation: gates sigmoid((h - t)/T) of mean q, t constant to the parameters (T7.11).

    By quadrature, as :class:`ntk_inr.infinite.quadrature.Quadrature`: smooth only on the scale of T, so an
    ``order`` near (8 sigma / T)**2 / 2 is needed for 1e-4. Of units with no activation before the gate,
    :mod:`ntk_inr.infinite.soft_gates` has the closed form, at any temperature.

    Args:
        function: the activation under the gate.
        q: mean of the gate.
        temperature: T.
        soft: how the gate is used; see :class:`ntk_inr.networks.sparsity.TopK`.
        order: nodes of Gauss-Hermite.
    """

    function: Callable[[Array], Array]
    q: float
    temperature: Any
    soft: Soft
    order: int = 64

    def moments(self, pair: Pair) -> Means:
        """Return the means of phi(u) phi(v) and phi'(u) phi'(v)."""
        left, right = (functools.partial(self._both, self._threshold(side)) for side in (pair.left, pair.right))
        return quadrature.moments(pair, left, right, self.order)

    def mean(self, side: Side) -> Array:
        """Return the mean of phi(u)."""
        threshold = self._threshold(side)
        return quadrature.mean(side, lambda u: self._gated(u, threshold, self.soft), self.order)

    def _threshold(self, side: Side) -> Array:
        u, weights = quadrature.nodes(side, self.order)
        h = self.function(u)

        def excess(t: Array) -> Array:
            return (jax.nn.sigmoid((h - t[:, None, None]) / self.temperature) * weights).sum((1, 2)) - self.q

        # With all of h at the largest, or at the smallest, the mean is q at these two.
        shift = self.temperature * math.log(1 / self.q - 1)
        return decreasing_root(excess, h.min((1, 2)) + shift, h.max((1, 2)) + shift)

    def _gated(self, u: Array, threshold: Array, soft: Literal["shrinkage", "gated", "straight_through"]) -> Array:
        h = self.function(u)
        z = (h - threshold[:, None, None]) / self.temperature
        return self.temperature * jax.nn.softplus(z) if soft == "shrinkage" else h * jax.nn.sigmoid(z)

    def _both(self, threshold: Array, u: Array) -> tuple[Array, Array]:
        # The derivative that "straight_through" passes on is that of "shrinkage".
        derived: Soft = "gated" if self.soft == "gated" else "shrinkage"
        ones = jnp.ones_like(u)
        _, slope = jax.jvp(lambda u: self._gated(u, threshold, derived), (u,), (ones,))
        return self._gated(u, threshold, self.soft), slope
