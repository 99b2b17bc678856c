"""Gram matrices of the coordinates, and their spread over a random encoding (T4)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ntk_inr.infinite import arccosine
from ntk_inr.networks.encodings import GaussianFourier
from ntk_inr.networks.modulation import FourierModulation, squared_distances
from ntk_inr.networks.normalization import Sphere
from ntk_inr.networks.two_layer import TwoLayerNetwork


class Pairs(NamedTuple):
    """The Gram matrix of the encoded coordinates, its diagonal, and where both of a pair are one coordinate."""

    gram: Float[Array, "n n"]
    squares: Float[Array, " n"]
    same: Bool[Array, "n n"]


class Preactivations(NamedTuple):
    """Standard deviations and correlations of u, and the Gram matrix and squares of its gradient in w and b, (3.1)."""

    std: Float[Array, " n"]
    c: Float[Array, "n n"]
    gradient: Float[Array, "n n"]
    gradient_squares: Float[Array, " n"]


class Modulator(NamedTuple):
    """The kernel k_g of one modulator and, where it is trained, omega² x.x' + 1 of its tangent kernel, (6.5)."""

    kernel: Float[Array, "n n"]
    tangent: Float[Array, "n n"] | None


def encoded(x: Array, encoding: Any, sphere: Sphere | None, key: Any) -> tuple[Pairs, Array | None]:
    """Return the pairs that enter the first layer, and the standard deviations (n, n) of their Gram matrix.

    Those are over the frequencies of a :class:`GaussianFourier` without a key, (4.2), and None for anything else.
    """
    same = jnp.eye(x.shape[0], dtype=bool)
    if isinstance(encoding, GaussianFourier) and key is None:
        similarity = jnp.exp(-2 * math.pi**2 * encoding.scale**2 * squared_distances(x, x))
        square = float(encoding.features)
        if sphere is not None:
            radius = (2 * encoding.features) ** 0.5 if sphere.radius is None else sphere.radius
            square = radius**2 / (1 + 2 * sphere.epsilon)  # the mean square of an entry is 1/2
        spread = square * (1 - similarity**2) / math.sqrt(2 * encoding.features)
        return Pairs(square * similarity, jnp.full(x.shape[0], square, x.dtype), same), spread
    gamma = x if encoding is None else _applied(encoding, x, key)
    if sphere is not None:
        gamma = sphere(gamma)
    return Pairs(gram(gamma), (gamma**2).sum(axis=1), same), None


def _applied(encoding: Any, x: Array, key: Any) -> Array:
    gamma, variables = encoding.init_with_output(jax.random.key(0) if key is None else key, x)
    if jax.tree.leaves(variables.get("params", {})):
        raise ValueError(
            f"encoding {type(encoding).__name__} has parameters of its own; the closed forms hold for fixed encodings "
            "(T4). Take ni.ntk and ni.moments of the network instead."
        )
    if key is None and jax.tree.leaves(variables):
        raise ValueError(
            f"encoding {type(encoding).__name__} draws {', '.join(variables)} at random; pass key=... for one draw. "
            "Only ni.GaussianFourier is averaged over its draws."
        )
    return gamma.astype(x.dtype)


def gram(h: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """Return the inner products of all pairs of rows."""
    return jnp.matmul(h, h.T, precision="highest")


def preactivations(net: TwoLayerNetwork, pairs: Pairs) -> Preactivations:
    """Return the law of the pre-activations u for these pairs of inputs."""
    bias = 0.0 if net.bias_std is None else net.bias_std**2
    squares = net.weight_std**2 * pairs.squares + bias
    c = arccosine.correlation(net.weight_std**2 * pairs.gram + bias, squares, squares)
    weights, biases = (float(group in net.trained) for group in ("weights", "bias"))
    return Preactivations(
        std=jnp.sqrt(squares),
        # Rounding parts points of one direction, and a first-order term of exactly k units jumps at angle 0.
        c=jnp.where(pairs.same | (c > 1 - 4 * jnp.finfo(c.dtype).eps), 1, c),
        gradient=weights * pairs.gram + biases,
        gradient_squares=weights * pairs.squares + biases,
    )


def modulator(modulation: FourierModulation, x: Array) -> Modulator:
    """Return the kernels of a modulation's factors at coordinates ``x``, (6.2)."""
    return _modulator(x, modulation.omega, trained=modulation.trained)


@functools.partial(jax.jit, static_argnames="trained")
def _modulator(x: Array, omega: Any, *, trained: bool) -> Modulator:
    kernel = jnp.exp(-(omega**2) * squared_distances(x, x) / 2)
    return Modulator(kernel, omega**2 * gram(x) + 1 if trained else None)


def averaged(function: Callable[[Pairs], Any], pairs: Pairs, spread: Array | None) -> Any:
    r"""Return the mean over a random Gram matrix of a pytree of (n, n) arrays, each an entrywise function of it.

    To second order, :math:`E f(S) \approx f(ES) + \tfrac12 f''(ES)\operatorname{Var}S`, the derivative by
    automatic differentiation twice.
    """
    values = function(pairs)
    if spread is None:
        return values
    # Entries without spread sit at correlation 1, where the derivatives of arccos are infinite.
    fixed = spread == 0
    drawn = pairs._replace(gram=jnp.where(fixed, 0, pairs.gram), same=jnp.zeros_like(pairs.same))

    def along(step: Array) -> Any:
        return function(drawn._replace(gram=drawn.gram + step * spread))

    def slope(step: Array) -> Any:
        return jax.jvp(along, (step,), (jnp.ones_like(step),))[1]

    zero = jnp.zeros((), spread.dtype)
    _, curvature = jax.jvp(slope, (zero,), (jnp.ones_like(zero),))
    return jax.tree.map(lambda value, bend: jnp.where(fixed, value, value + bend / 2), values, curvature)


def check_directions(pairs: Pairs, *, has_bias: bool) -> None:
    """Raise ``ValueError`` naming the first row that the encoding maps to zero, which has no angle."""
    if has_bias or isinstance(pairs.squares, jax.core.Tracer):
        return
    zeros = jnp.flatnonzero(pairs.squares == 0)
    if zeros.size:
        raise ValueError(
            f"row {int(zeros[0])} of x enters the first layer as the zero vector, which has no direction: its units "
            "are all at the kink. Append a constant 1 to x, encode it, or pass bias_std=..."
        )
