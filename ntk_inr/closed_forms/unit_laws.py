r"""The law of the kernel of independent units: lemma L1 with the moments of T2, T3 and T6, at any width."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr.closed_forms.inputs import Modulator, Preactivations
from ntk_inr.infinite import arccosine
from ntk_inr.networks.two_layer import Readout, TwoLayerNetwork


class KernelLaw(NamedTuple):
    """Mean and variance of each entry of a random kernel H, and the covariances of H_ii with H_jj."""

    mean: Float[Array, "n n"]
    variance: Float[Array, "n n"]
    diagonal_covariance: Float[Array, "n n"]


class _Term(NamedTuple):
    """A summand of one unit's kernel.

    Attributes:
        coefficient: (n, n), or a number.
        squares: diagonal of the coefficient, (n,).
        readouts: power of the readout c.
        unit: whether the pair of gates enters, or that of activations.
        derived: index of the modulator that enters by its derivative; None where none does.
    """

    coefficient: Array | float
    squares: Array
    readouts: int
    unit: Literal["gate", "activation"]
    derived: int | None = None


def readout_moment(net: TwoLayerNetwork, power: int) -> Array | float:
    """Return E c^power, for the powers 0, 2 and 4."""
    return net.scale**power * (3 if power == 4 and net.readout == "normal" else 1)


def effective_readout(net: TwoLayerNetwork) -> Readout:
    """Return the readout, "signs" for a constant one of a modulated network.

    A shift of its phase by pi flips the sign of a sine modulator at every coordinate, so the two networks
    have one law.
    """
    return "signs" if net.readout == "constant" and net.modulation else net.readout


def output_bias(net: TwoLayerNetwork) -> Array | float:
    """Return the constant that a trained output bias adds to the kernel, (3.1)."""
    return net.output_bias**2 if net.output_bias is not None and "readout" in net.trained else 0.0


def unit_law(
    net: TwoLayerNetwork, pre: Preactivations, modulators: list[Modulator], *, readout_gain: Array | float = 1.0
) -> KernelLaw:
    r"""Return the exact law of a kernel that is a sum over independent units, (2.1).

    The kernel of one unit,

    .. math:: h_{ij} = c^2\,1_i1_jG_{ij}\prod_l g_ig_j + \sigma_i\sigma_j\prod_l g_ig_j
        + c^2\sigma_i\sigma_j\sum_l D^l_{ij}\,g'^l_ig'^l_j\prod_{l'\ne l}g^{l'}_ig^{l'}_j

    has a term for each trained group; the factors of its moments are independent, and listed in (0.1),
    (3.3), (3.4) and (6.2). ``readout_gain`` multiplies the second term.
    """
    terms = _terms(net, pre, modulators, readout_gain)
    mean = square = diagonals = jnp.zeros_like(pre.c)
    ends = jnp.zeros_like(pre.std)
    kernel = product((m.kernel for m in modulators), pre.c)
    for a in terms:
        gain = readout_moment(net, a.readouts)
        entry, end = _unit_mean(a.unit, pre)
        mean = mean + gain * a.coefficient * entry * kernel
        ends = ends + gain * a.squares * end
    for a, b in itertools.product(terms, repeat=2):
        gain = readout_moment(net, a.readouts + b.readouts)
        entry, diagonal = _unit_products(a.unit, b.unit, pre)
        for index, m in enumerate(modulators):
            mixed, k4 = (a.derived == index) != (b.derived == index), m.kernel**4 / 2
            entry = entry * (k4 if mixed else 1 + k4)
            diagonal = diagonal * (1 - k4 if mixed else 1 + k4)
        square = square + gain * a.coefficient * b.coefficient * entry
        diagonals = diagonals + gain * outer(a.squares, b.squares) * diagonal
    variance, covariance = square - mean**2, diagonals - outer(ends, ends)
    return KernelLaw(mean + output_bias(net), variance / net.width, covariance / net.width)


def _terms(
    net: TwoLayerNetwork, pre: Preactivations, modulators: list[Modulator], readout_gain: Array | float
) -> list[_Term]:
    ones = jnp.ones_like(pre.std)
    terms = []
    if {"weights", "bias"} & set(net.trained):
        terms.append(_Term(pre.gradient, pre.gradient_squares, 2, "gate"))
    if "readout" in net.trained:
        terms.append(_Term(readout_gain, readout_gain * ones, 0, "activation"))
    for index, m in enumerate(modulators):
        if m.tangent is not None:
            terms.append(_Term(m.tangent, jnp.diagonal(m.tangent), 2, "activation", derived=index))
    return terms


def _unit_mean(unit: str, pre: Preactivations) -> tuple[Array, Array]:
    """Return the mean (n, n) of 1_i 1_j ("gate") or sigma_i sigma_j ("activation"), and its diagonal (n,)."""
    if unit == "gate":
        return arccosine.gates(pre.c), jnp.full_like(pre.std, 0.5)
    return outer(pre.std, pre.std) * arccosine.rectified(pre.c), pre.std**2 / 2


def _unit_products(a: str, b: str, pre: Preactivations) -> tuple[Array, Array]:
    """Return the mean of the product of pairs a and b at (i, j), and of a at (i, i) with b at (j, j), both (n, n)."""
    c, stds, squares = pre.c, outer(pre.std, pre.std), pre.std**2
    if a == b == "gate":
        return (arccosine.gates(c),) * 2
    if a == b:
        return (stds**2 * arccosine.squares(c),) * 2
    diagonal = squares[:, None] if a == "activation" else squares[None, :]
    return stds * arccosine.rectified(c), diagonal * arccosine.gate_square(c)


def outer(a: Float[Array, " n"], b: Float[Array, " n"]) -> Float[Array, "n n"]:
    """Return all products of an entry of a with one of b."""
    return a[:, None] * b[None, :]


def product(arrays: Iterable[Array], like: Array) -> Array:
    """Return the entrywise product, ones of the shape of ``like`` where there are none."""
    return math.prod(arrays, start=jnp.ones_like(like))
