"""Soft TopK of the units themselves in the limit of many: moments of sigmoid gates, closed, at any temperature (T7)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.stats import norm
from jaxtyping import Float

from ntk_inr._roots import decreasing_root
from ntk_inr.infinite.orthant import Above, above, upper_quantile
from ntk_inr.networks.sparsity import Soft

# sigmoid(x) = sum of WEIGHTS * Phi(x / SPREADS) to 2.2e-9 for every x, so that each soft gate is a mixture of hard
# ones of noisy arguments, whose moments are closed. Monahan and Stefanski 1989, "Normal scale mixture
# approximations to F*(z) and computation of the logistic-normal integral", table of eight terms.
_WEIGHTS = np.array(
    [
        *(0.003246343272134, 0.051517477033972, 0.195077912673858, 0.315569823632818),
        *(0.274149576158423, 0.131076880695470, 0.027912418727972, 0.001449567805354),
    ]
)
_SPREADS = 1 / np.array(
    [
        *(1.365340806296348, 1.059523971016916, 0.830791313765644, 0.650732166639391),
        *(0.508135425366489, 0.396313345166341, 0.308904252267995, 0.238212616409306),
    ]
)
_NODES = 24


class SoftGates(NamedTuple):
    r"""The gates :math:`s_i = \mathrm{sigmoid}((g - \tau_i)/T_i)` with :math:`E s_i = q`, one for each example.

    Attributes:
        fraction: q.
        temperature: (n,) T over the standard deviation of the example's pre-activations.
        threshold: (n,) tau, in the same units.
        soft: what the gate does: "shrinkage", "gated" or "straight_through", see :class:`ntk_inr.TopK`.
    """

    fraction: float
    temperature: Array
    threshold: Array
    soft: Soft

    def overlap(self, c: Float[Array, "n n"]) -> Float[Array, "n n"]:
        r"""Return :math:`E[h_i'(g)h_j'(g')]`, h' as autodiff takes it; at T = 0 (7.2), or (7.12) for "gated"."""
        if self.soft == "gated":
            # Price's theorem: h is smooth, so this is the slope of E[h h'] in the correlation.
            return jax.jvp(self.second, (c,), (jnp.ones_like(c),))[1]
        return self._over_pairs(_gate_product, c)

    def second(self, c: Float[Array, "n n"]) -> Float[Array, "n n"]:
        r"""Return :math:`E[h_i(g)h_j(g')]`, the activations over the standard deviations."""
        return self._over_pairs(self._product, c)

    @property
    def energy(self) -> Float[Array, " n"]:
        r"""E[h_i(g)²]."""
        ends = (self.threshold, self.temperature)
        return _mixed(self._product, jnp.ones_like(self.threshold), ends, ends)

    @property
    def _product(self) -> Callable[..., Array]:
        return _excess_product if self.soft == "shrinkage" else _gated_product

    def _over_pairs(self, moment: Callable[..., Array], c: Array) -> Array:
        rows = (self.threshold[:, None], self.temperature[:, None])
        half = _mixed(moment, c, rows, (rows[0].T, rows[1].T))
        return (half + half.T) / 2


@functools.partial(jax.jit, static_argnums=0)
def _mixed(moment: Callable[..., Array], c: Array, left: tuple[Array, Array], right: tuple[Array, Array]) -> Array:
    """Return the moment summed over both mixtures, to be averaged with its transpose.

    Exchanging the two terms of a mixture transposes the moment: half of the terms will do, taken twice.
    """
    (a, t1), (b, t2) = left, right

    def add(total: Array, term: tuple[Array, ...]) -> tuple[Array, None]:
        weight, spread1, spread2 = term
        return total + weight * moment(c, a, b, 1 + (spread1 * t1) ** 2, 1 + (spread2 * t2) ** 2), None

    pairs = np.stack(np.triu_indices(len(_WEIGHTS)))
    weights = _WEIGHTS[pairs].prod(axis=0) * np.where(pairs[0] == pairs[1], 1, 2)
    terms = tuple(jnp.asarray(values, c.dtype) for values in (weights, *_SPREADS[pairs]))
    return lax.scan(add, jnp.zeros_like(c), terms)[0]


def soft_gates(fraction: float, soft: Soft, temperature: Float[Array, " n"]) -> SoftGates:
    """Return the gates that pass ``fraction`` of the units, at most 1/2, at temperatures of their own."""
    return SoftGates(fraction, temperature, _threshold(fraction, temperature), soft)


@functools.partial(jax.jit, static_argnums=0)
def _threshold(fraction: float, temperature: Array) -> Array:
    spreads = jnp.asarray(_SPREADS, temperature.dtype)[None, :] * temperature[:, None]
    weights = jnp.asarray(_WEIGHTS, temperature.dtype)[None, :]
    noisy = jnp.sqrt(1 + spreads**2)
    t = upper_quantile(fraction)

    def passing(threshold: Array) -> Array:
        return (weights * norm.sf(threshold[:, None] / noisy)).sum(axis=1)

    bracket = (t * noisy.min(axis=1), t * noisy.max(axis=1))
    return decreasing_root(lambda threshold: passing(threshold) - fraction, *bracket)


def _above(c: Array, a: Array, b: Array, v1: Array, v2: Array) -> tuple[Above, Array]:
    """Return the moments of X = g + noise of variance v1, X' of v2, covariance c, above a and b, and their 1 - rho²."""
    root = jnp.sqrt(v1 * v2)
    rho = c / root
    gap = jnp.maximum((1 - rho) * (1 + rho), jnp.finfo(c.dtype).eps)
    standard = above(a / jnp.sqrt(v1), b / jnp.sqrt(v2), rho, _NODES)
    first, second = standard.first / jnp.sqrt(v1), standard.second / jnp.sqrt(v2)
    return Above(standard.chance, first, second, standard.corner / root), gap


def _gate_product(c: Array, a: Array, b: Array, v1: Array, v2: Array) -> Array:
    """Return P(X > a, X' > b)."""
    return _above(c, a, b, v1, v2)[0].chance


def _excess_product(c: Array, a: Array, b: Array, v1: Array, v2: Array) -> Array:
    """Return E[(X - a)+ (X' - b)+]: T softplus((g - a)/T) is E[(X - a)+] over the noise."""
    p, _ = _above(c, a, b, v1, v2)
    return (c + a * b) * p.chance - b * v1 * p.first - a * v2 * p.second + v1 * v2 * p.corner


def _gated_product(c: Array, a: Array, b: Array, v1: Array, v2: Array) -> Array:
    """Return E[g g' 1(X > a, X' > b)], by Stein's lemma."""
    p, gap = _above(c, a, b, v1, v2)
    edges = c * (a / v1 * p.first + b / v2 * p.second)
    return c * p.chance + edges + (1 + c * c * (1 - 1 / v1 - 1 / v2)) * p.corner / gap
