"""The joint law of a unit's pre-activations at two coordinates, and the quadrature rules that average over it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_inr.infinite import arccosine
from ntk_inr.networks import trig

_ARC_NODES = 24
_PANEL_NODES = 32
_TINY = 1e-12
# Nodes for each of so many uniform variables: Gauss-Legendre needs these for functions as sharp as WIRE's.
_TENSOR_NODES = {2: 64, 3: 48}
LARGEST_TENSOR = max(_TENSOR_NODES)


class Side(NamedTuple):
    r"""The law of pre-activations at n coordinates, :math:`u = g + F w` with g normal and :math:`w_t \sim U(-1, 1)`.

    Attributes:
        k: variance of g, (n,); None where there is no g.
        features: F, (n, f), one column an independent uniform variable; None where there is none.
    """

    k: Float[Array, " n"] | Any
    features: Float[Array, "n f"] | Any = None


def root(k: Array) -> Array:
    """Return the square root, with derivative 0 at 0."""
    positive = k > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, k, 1)), 0)


def inverse_root(k: Array) -> Array:
    """Return 1 / sqrt(k), and 0 at 0."""
    positive = k > 0
    return jnp.where(positive, 1 / jnp.sqrt(jnp.where(positive, k, 1)), 0)


def sinc(z: Array) -> Array:
    """Return sin(z) / z."""
    small = jnp.abs(z) < 0.1
    z2 = z * z
    far = jnp.where(small, 1, z)
    return jnp.where(small, 1 - z2 / 6 * (1 - z2 / 20 * (1 - z2 / 42)), trig.sin(far) / far)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The joint law of the pre-activations u at n1 and v at n2 coordinates.

    Attributes:
        left: law of u; its normal part and its uniform variables are shared with v.
        right: law of v.
        k12: covariance of the normal parts, (n1, n2); None where there are none.
        c: their correlation, exactly 1 where u and v are one, 0 where one of them does not vary.
        diagonal: True where u and v are paired row by row; everything is then (n, 1).
    """

    left: Side
    right: Side
    k12: Float[Array, "n1 n2"] | Any
    c: Float[Array, "n1 n2"] | Any
    diagonal: bool = False

    def spread(self, left: Array, right: Array) -> tuple[Array, Array]:
        """Return (n1,) and (n2,) as (n1, 1) and (1, n2), to be combined by broadcasting."""
        return left[:, None], right[:, None] if self.diagonal else right[None, :]

    def gram(self, left: Float[Array, "n1 b"], right: Float[Array, "n2 b"]) -> Array:
        """Return the inner products of rows."""
        return (left * right).sum(1)[:, None] if self.diagonal else left @ right.T

    @property
    def variances(self) -> tuple[Array, Array]:
        """The variances of the normal parts, (n1, 1) and (1, n2)."""
        assert self.left.k is not None
        assert self.right.k is not None
        return self.spread(self.left.k, self.right.k)

    @property
    def determinant(self) -> Array:
        """The determinant k11 k22 - k12**2 of the normal parts' covariance, (n1, n2)."""
        k11, k22 = self.variances
        return k11 * k22 - self.k12 * self.k12

    def characteristic(self, p: Any, q: Any) -> Array:
        r"""Return :math:`E\cos(pu + qv)`."""
        out = jnp.ones((1, 1))
        if self.k12 is not None:
            k11, k22 = self.variances
            # Arranged so that q = -p at one coordinate gives exactly 0.
            exponent = (p + q) * (p * k11 + q * k22) - p * q * (k11 + k22 - 2 * self.k12)
            out = jnp.exp(-exponent / 2)
        if self.left.features is None or self.right.features is None:
            return out
        columns = self.left.features.T, self.right.features.T
        shape = jnp.broadcast_shapes(out.shape, jnp.broadcast_shapes(*(a.shape for a in self.spread(*_first(columns)))))

        def multiply(product: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
            left, right = self.spread(*column)
            return product * sinc(p * left + q * right), None

        start = jnp.broadcast_to(out, shape).astype(columns[0].dtype)
        return jax.lax.scan(multiply, start, columns, unroll=min(len(columns[0]), 8))[0]


def _first(columns: tuple[Array, Array]) -> tuple[Array, Array]:
    return columns[0][0], columns[1][0]


def pair_of(left: Side, right: Side, k12: Array | None, *, same: bool) -> Pair:
    """Return the joint law; ``same`` where both sides are one list of coordinates."""
    if k12 is None or left.k is None or right.k is None:
        return Pair(left, right, None, None)
    c = jnp.clip(k12 * (inverse_root(left.k)[:, None] * inverse_root(right.k)[None, :]), -1, 1)
    if same:
        # A correlation that rounds to less than 1 costs half the digits of its angle.
        c = jnp.where(jnp.eye(len(c), dtype=bool), _own_correlation(left)[:, None], c)
    return Pair(left, right, k12, c)


def diagonal_of(side: Side) -> Pair:
    """Return the law of each pre-activation beside itself."""
    if side.k is None:
        return Pair(side, side, None, None, diagonal=True)
    return Pair(side, side, side.k[:, None], _own_correlation(side)[:, None], diagonal=True)


def _own_correlation(side: Side) -> Array:
    return (side.k > 0).astype(side.k.dtype)


@functools.cache
def legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Gauss-Legendre's nodes and weights for the mean over [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, w / 2


@functools.cache
def uniform_rule(variables: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes (b, variables) and weights (b,) for the mean over independent U(-1, 1).

    One variable has a panel on each side of 0, where a small normal part leaves a sharp bend.
    """
    if variables == 1:
        x, w = legendre(_PANEL_NODES)
        return np.concatenate([-x, x])[:, None], np.concatenate([w, w]) / 2
    x, w = legendre(_TENSOR_NODES[variables])
    grid = np.meshgrid(*[2 * x - 1] * variables, indexing="ij")
    weights = functools.reduce(np.multiply.outer, [w] * variables)
    return np.stack([axis.ravel() for axis in grid], axis=1), weights.ravel()


@functools.cache
def hermite_rule(order: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the nodes (q,) of Gauss-Hermite and the matrix (q, k) from values there to Hermite coefficients.

    The coefficients :math:`E[f(g)\,\mathrm{He}_k(g)]/\sqrt{k!}` for k < order, g standard normal, by the
    eigenvectors of the Jacobi matrix, which don't underflow at any order.
    """
    step = np.sqrt(np.arange(1, order))
    nodes, vectors = np.linalg.eigh(np.diag(step, 1) + np.diag(step, -1))
    return nodes, (vectors * vectors[:1]).T


def bends(z2: Array) -> Array:
    r"""Return the mean of :math:`e^{-z^2b^2}` over b in U(-1, 1)."""
    z = jnp.sqrt(jnp.maximum(z2, _TINY))
    return 0.5 * np.pi**0.5 * jax.scipy.special.erf(z) / z


def arc(h1: Array, h2: Array, c: Array) -> tuple[Array, Array]:
    r"""Return :math:`\int_0^{\arcsin c} w\,d\psi` and :math:`\int_0^{\arcsin c} w\sin\psi\,d\psi`.

    Here w is the mean of :math:`\exp(-b^2\,\frac{h_1^2 + h_2^2 - 2h_1h_2\sin\psi}{2\cos^2\psi})` over a bias b in
    U(-1, 1), so that :math:`w/2\pi\cos\psi` is the mean of the bivariate normal density at (b h1, b h2) of
    correlation :math:`\sin\psi` (Price's theorem along the correlation).
    """
    upper = 2 * np.pi * arccosine.gates(c) - np.pi / 2
    apart, along = (h1 - h2) ** 2 / 2, h1 * h2

    def add(total: tuple[Array, Array], node: Array) -> tuple[tuple[Array, Array], None]:
        # The squared node crowds them at the upper end, where nearly collinear coordinates have a narrow layer.
        v, w = node
        sine, cosine = trig.sincos(upper * (1 - v * v))
        bent = apart / jnp.maximum(cosine * cosine, _TINY) + along / jnp.maximum(1 + sine, _TINY)
        height = upper * (2 * v * w) * bends(bent)
        return (total[0] + height, total[1] + height * sine), None

    nodes = jnp.asarray(np.stack(legendre(_ARC_NODES), axis=1), c.dtype)
    return jax.lax.scan(jax.checkpoint(add), (jnp.zeros_like(c), jnp.zeros_like(c)), nodes)[0]
