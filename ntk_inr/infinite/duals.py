r"""Dual activations: :math:`E\,\phi(u)\phi(v)` and :math:`E\,\phi'(u)\phi'(v)` of pairs of pre-activations (T11)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr.infinite import arccosine, pairs
from ntk_inr.infinite.pairs import Pair, Side


class Means(NamedTuple):
    """The means of an activation's products, and of its slopes' products, over pairs of pre-activations.

    Attributes:
        value: mean of phi(u) phi(v), (n1, n2).
        slope: mean of phi'(u) phi'(v) as automatic differentiation sees phi', (n1, n2).
    """

    value: Float[Array, "n1 n2"]
    slope: Float[Array, "n1 n2"]


@runtime_checkable
class Dual(Protocol):
    """An activation, as a kernel takes it: means over normal and uniform pre-activations."""

    def moments(self, pair: Pair) -> Means:
        """Return the means of phi(u) phi(v) and phi'(u) phi'(v)."""
        ...

    def mean(self, side: Side) -> Float[Array, " n"]:
        """Return the mean of phi(u)."""
        ...


@dataclasses.dataclass(frozen=True)
class Rectifier:
    r"""ReLU and all that is linear on each side of 0: :math:`p\,u_+ + r\,(-u)_+`, (T0.1).

    With a uniform bias, by Price's theorem along the correlation and the closed mean over the bias of the
    bivariate normal density; the error is under 1e-5 relative, 1e-14 for most pairs.

    Args:
        p: value at 1.
        r: value at -1: 0 for ReLU, -0.01 for leaky ReLU, 1 for abs, -1 for the identity.
    """

    p: float = 1.0
    r: float = 0.0

    def moments(self, pair: Pair) -> Means:
        """Return the means of phi(u) phi(v) and phi'(u) phi'(v)."""
        k11, k22 = pair.variances
        size = pairs.root(k11) * pairs.root(k22)
        bend = (self.p + self.r) ** 2
        if pair.left.features is None or pair.right.features is None:
            value, slope = arccosine.rectified(pair.c), arccosine.gates(pair.c)
            if self.r == 0:
                return Means(self.p**2 * size * value, self.p**2 * slope)
            # u_+ (-v)_+ has the moments of u_+ v_+ at the opposite correlation; so phi = -r u + (p + r) u_+ gives
            # these, by J1(c) - J1(-c) = c / 2.
            linear = self.r * self.p
            return Means(size * (bend * value - linear * pair.c), bend * slope - linear)
        levels, gates, weights = self._under_bias(pair.left)
        levels_right, gates_right, _ = self._under_bias(pair.right)
        value = pair.gram(levels * weights, levels_right) + pair.k12 * pair.gram(gates * weights, gates_right)
        slope = pair.gram(gates * weights, gates_right)
        heights = [side.features[:, 0] * pairs.inverse_root(side.k) for side in (pair.left, pair.right)]
        arc, arc_sine = pairs.arc(*pair.spread(*heights), pair.c)
        turn = bend / (2 * math.pi)
        return Means(value + turn * (pair.k12 * arc - size * arc_sine), slope + turn * arc)

    def mean(self, side: Side) -> Array:
        """Return the mean of phi(u)."""
        if side.features is None:
            return (self.p + self.r) / (2 * math.pi) ** 0.5 * pairs.root(side.k)
        levels, _, weights = self._under_bias(side)
        return levels @ weights[0]

    def _under_bias(self, side: Side) -> tuple[Array, Array, Array]:
        """Return the means of phi and phi' over the normal part at nodes of the bias, and the nodes' weights."""
        offset, weights = _bias_nodes(side)
        sigma = pairs.root(side.k)[:, None]
        z = offset * pairs.inverse_root(side.k)[:, None]
        # Where there is no normal part, z is 0 instead of infinite.
        passed = jnp.where(sigma > 0, jax.scipy.special.ndtr(z), (offset > 0).astype(z.dtype))
        density = jnp.exp(-z * z / 2) / (2 * math.pi) ** 0.5
        level = sigma * density + offset * passed
        return (self.p + self.r) * level - self.r * offset, (self.p + self.r) * passed - self.r, weights


@dataclasses.dataclass(frozen=True)
class Sine:
    r"""``sin(omega u + phase)``: :math:`\tfrac12[E\cos\omega(u - v) - \cos(2\varphi)\,E\cos\omega(u + v)]`, (T11.4).

    Closed for normal and for uniform weights and biases.
    """

    omega: Any
    phase: Any

    def moments(self, pair: Pair) -> Means:
        """Return the means of phi(u) phi(v) and phi'(u) phi'(v)."""
        apart = pair.characteristic(self.omega, -self.omega)
        along = jnp.cos(2 * self.phase) * pair.characteristic(self.omega, self.omega)
        return Means((apart - along) / 2, self.omega**2 / 2 * (apart + along))

    def mean(self, side: Side) -> Array:
        """Return the mean of phi(u)."""
        return jnp.sin(self.phase) * pairs.diagonal_of(side).characteristic(self.omega, 0.0)[:, 0]


@dataclasses.dataclass(frozen=True)
class Erf:
    """``erf(slope u)``, T11's row; with a uniform bias by Price's theorem along the correlation, to 1e-9."""

    slope: Any

    def moments(self, pair: Pair) -> Means:
        """Return the means of phi(u) phi(v) and phi'(u) phi'(v)."""
        w2 = self.slope**2
        k11, k22 = pair.variances
        v1, v2 = 1 + 2 * w2 * k11, 1 + 2 * w2 * k22
        c = 2 * w2 * pair.k12 / (jnp.sqrt(v1) * jnp.sqrt(v2))
        determinant = 1 + 2 * w2 * (k11 + k22) + 4 * w2**2 * pair.determinant
        slope = 4 * w2 / math.pi / jnp.sqrt(determinant)
        if pair.left.features is None or pair.right.features is None:
            return Means(2 / math.pi * jnp.arcsin(c), slope)
        heights = [2**0.5 * self.slope * s.features[:, 0] / jnp.sqrt(1 + 2 * w2 * s.k) for s in (pair.left, pair.right)]
        h1, h2 = pair.spread(*heights)
        arc, _ = pairs.arc(h1, h2, c)
        levels, weights = self._under_bias(pair.left)
        value = pair.gram(levels * weights, self._under_bias(pair.right)[0]) + 2 / math.pi * arc
        together = (h1 * h1 + h2 * h2 - 2 * h1 * h2 * c) * (v1 * v2) / (2 * determinant)
        return Means(value, slope * pairs.bends(together))

    def mean(self, side: Side) -> Array:
        """Return the mean of phi(u), 0 by symmetry."""
        return jnp.zeros_like(side.k)

    def _under_bias(self, side: Side) -> tuple[Array, Array]:
        offset, weights = _bias_nodes(side)
        variance = 1 + 2 * self.slope**2 * side.k[:, None]
        return jax.scipy.special.erf(self.slope * offset / jnp.sqrt(variance)), weights


def _bias_nodes(side: Side) -> tuple[Array, Array]:
    """Return the bias at its nodes, (n, b), and their weights, (1, b)."""
    nodes, weights = (jnp.asarray(part, side.features.dtype) for part in pairs.uniform_rule(1))
    return side.features @ nodes.T, weights[None, :]


@dataclasses.dataclass(frozen=True)
class Wavelet:
    r"""Gabor's :math:`e^{-s^2u^2}\cos(\omega u + \varphi)` (T11.1, T11.2), and Gauss's bump at omega = 0.

    Under uniform weights or biases, by the Fourier series of the wavelet in a period that the pre-activations
    don't leave, term by term with the characteristic function: exact to 1e-7 where ``terms`` suffice, at
    the cost of terms**2 n1 n2 f.

    Args:
        scale: s.
        omega: angular frequency.
        phase: phi.
        terms: of the series; :meth:`count` gives how many suffice.
    """

    scale: Any
    omega: Any
    phase: Any
    terms: int = 64

    def moments(self, pair: Pair) -> Means:
        """Return the means of phi(u) phi(v) and phi'(u) phi'(v)."""
        if pair.left.features is not None:
            return self._series_moments(pair)
        s2, w2 = self.scale**2, self.omega**2
        k11, k22 = pair.variances
        spread, gap = k11 + k22, pair.determinant
        d = 1 + 2 * s2 * spread + 4 * s2**2 * gap
        if isinstance(self.omega, float) and self.omega == 0:
            value = jax.lax.rsqrt(d)
            return Means(value, 4 * s2**2 * pair.k12 * (value * value * value))
        power, cross = (spread + 4 * s2 * gap) / d, pair.k12 / d
        apart = jnp.exp(-w2 / 2 * (power - 2 * cross))
        along = jnp.cos(2 * self.phase) * jnp.exp(-w2 / 2 * (power + 2 * cross))
        value = (apart + along) / (2 * jnp.sqrt(d))
        power_slope = 8 * s2 * cross * (s2 * power - 1)
        cross_slope = 1 / d + 8 * s2**2 * cross**2
        turning = apart * (power_slope - 2 * cross_slope) + along * (power_slope + 2 * cross_slope)
        return Means(value, 4 * s2**2 * cross * value - w2 / (4 * jnp.sqrt(d)) * turning)

    def mean(self, side: Side) -> Array:
        """Return the mean of phi(u)."""
        if side.features is None:
            d = 1 + 2 * self.scale**2 * side.k
            return jnp.cos(self.phase) * jnp.exp(-(self.omega**2) * side.k / (2 * d)) / jnp.sqrt(d)
        pair = pairs.diagonal_of(side)
        step, even, _ = self._series(pair)
        waves = jax.lax.map(lambda k: pair.characteristic(k * step, 0.0)[:, 0], jnp.arange(self.terms))
        return even @ waves

    @staticmethod
    def count(scale: float, omega: float, reach: float) -> int:
        """Return how many terms serve pre-activations in [-reach, reach]."""
        return math.ceil(1.15 * (omega + 2 * _EDGE * scale) * (reach + _EDGE / scale) / (2 * math.pi))

    def _series(self, pair: Pair) -> tuple[Array, Array, Array]:
        """Return the frequencies' step, and the coefficients of their cosines and sines."""
        reach = jnp.maximum(*(_reach(side) for side in (pair.left, pair.right)))
        step = 2 * math.pi / (reach + _EDGE / self.scale)
        k = jnp.arange(self.terms)

        def window(frequency: Array) -> Array:
            return jnp.exp(-((frequency / (2 * self.scale)) ** 2)) / (2 * math.pi**0.5 * self.scale)

        above, below = window(k * step - self.omega), window(k * step + self.omega)
        even = jnp.where(k == 0, 0.5, 1.0).astype(step.dtype) * step * jnp.cos(self.phase) * (above + below)
        return step, even, -step * jnp.sin(self.phase) * (above - below)

    def _series_moments(self, pair: Pair) -> Means:
        step, even, odd = self._series(pair)
        index = jnp.arange(self.terms)

        def add(total: Means, at: Array) -> tuple[Means, None]:
            k, q = at // self.terms, at % self.terms
            apart = pair.characteristic(k * step, -q * step)
            along = pair.characteristic(k * step, q * step)
            evens, odds = even[k] * even[q], odd[k] * odd[q]
            value = (evens + odds) * apart + (evens - odds) * along
            slope = (k * q * step**2) * ((evens + odds) * apart - (evens - odds) * along)
            return Means(total.value + value / 2, total.slope + slope / 2), None

        zero = jnp.zeros_like(pair.characteristic(step, step))
        return jax.lax.scan(add, Means(zero, zero), jnp.arange(len(index) ** 2))[0]


# Widths of the window beyond which it is under 3e-8 of its height.
_EDGE = 4.2


def _reach(side: Side) -> Array:
    """Return how far from 0 the pre-activations of a side come, or 7 standard deviations."""
    square = jnp.zeros((), side.features.dtype) if side.k is None else jnp.max(side.k)
    largest = jnp.max(jnp.abs(side.features).sum(1))
    return 7 * pairs.root(square) + jnp.minimum(largest, 7 * pairs.root(jnp.max((side.features**2).sum(1) / 3)))
