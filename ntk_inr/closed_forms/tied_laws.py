r"""Kernels whose units are tied together, by a norm or by k fixed: first order in 1/m, and the limit (T5, T7)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr.closed_forms.gates import RELU, GatedPairs, Threshold
from ntk_inr.closed_forms.inputs import Modulator, Preactivations
from ntk_inr.closed_forms.unit_laws import KernelLaw, effective_readout, outer, output_bias, product, readout_moment
from ntk_inr.infinite.soft_gates import SoftGates
from ntk_inr.networks.normalization import Sphere
from ntk_inr.networks.two_layer import TwoLayerNetwork


def hidden_sphere(net: TwoLayerNetwork) -> Sphere | None:
    """Return the sphere that the hidden layer is projected to, by normalization or by TopK-SP; None without one."""
    if net.sparsity is not None and net.sparsity.mode == "sphere":
        return Sphere(placement="hidden_post", radius=net.sparsity.radius)
    on_hidden = net.normalization is not None and net.normalization.placement != "input"
    return net.normalization if on_hidden else None


def _inverse_square(sphere: Sphere, gate: Threshold | SoftGates, std: Array) -> Array:
    """Return 1/(mean square + epsilon) of each row that is normalised, in the limit."""
    return 1 / (std**2 * (gate.energy if sphere.placement == "hidden_post" else 1.0) + sphere.epsilon)


def row_gain(net: TwoLayerNetwork, gate: Threshold | SoftGates, pre: Preactivations) -> Float[Array, " n"]:
    """Return the factor (n,) of each example by hidden normalization in the limit, 1 without one."""
    sphere = hidden_sphere(net)
    if sphere is None:
        return jnp.ones_like(pre.std)
    radius = 1.0 if sphere.radius is None else sphere.radius / net.width**0.5
    return radius * jnp.sqrt(_inverse_square(sphere, gate, pre.std))


def gated_std(net: TwoLayerNetwork, pre: Preactivations) -> Float[Array, " n"]:
    """Return the standard deviations (n,) of what enters the gates, which is u or the normalised u."""
    sphere = hidden_sphere(net)
    before = sphere is not None and sphere.placement == "hidden_pre"
    return pre.std * row_gain(net, RELU, pre) if before else pre.std


class _Energies(NamedTuple):
    """First-order moments, times m, of the squared norm y of an example over its mean, and of the overlap X with it."""

    bias: Float[Array, " n"]  # of the mean of y
    variance: Float[Array, " n"]  # of y
    covariance: Float[Array, "n n"]  # of y_i with y_j
    mixed: Float[Array, "n n"]  # of X_ij with y_i
    diagonal: Float[Array, "n n"]  # of X_ii with y_j
    projection: Float[Array, "n n"]  # subtracted from X_ij: the part along the norm's gradient


def limit_law(
    net: TwoLayerNetwork,
    gate: Threshold | SoftGates,
    pre: Preactivations,
    overlap: Float[Array, "n n"],
    modulators: list[Modulator],
) -> KernelLaw:
    r"""Return the kernel of infinite width, or its leading value at a finite one.

    .. math:: H_{ij} = \frac{C^2}{m\,\lVert h_i\rVert\lVert h_j\rVert/m}\Bigl[a^2G_{ij}\Gamma_{ij}
        + \varsigma_i\varsigma_jE_{uv}\bigl(1 + a^2\textstyle\sum_lD^l_{ij}\bigr)\Bigr]\prod_l k_g^l + \beta^2

    with :math:`\Gamma` the ``overlap`` of :func:`gate_overlap`, without the fraction where nothing is
    normalised, and of the bracket only what is trained: (3.2), (5.6), (5.8), (6.5), (7.2) and (7.7) in one.
    """
    kernel = net.scale**2 * pre.gradient * overlap
    tangents = [net.scale**2 * m.tangent for m in modulators if m.tangent is not None]
    tangent = sum(tangents, start=1.0 if "readout" in net.trained else 0.0)
    if "readout" in net.trained or tangents:
        kernel = kernel + outer(pre.std, pre.std) * gate.second(pre.c) * tangent
    kernel = kernel * product((m.kernel for m in modulators), pre.c)
    rows = row_gain(net, gate, pre)
    kernel = outer(rows, rows) * kernel
    nothing = jnp.zeros_like(kernel)
    return KernelLaw(kernel + output_bias(net), nothing, nothing)


def gate_overlap(net: TwoLayerNetwork, gate: Threshold | SoftGates, pre: Preactivations) -> Float[Array, "n n"]:
    r"""Return :math:`\Gamma`, the limit of the overlap of the gates that the gradient sees.

    The overlap of the gates themselves; of projected gates :math:`s(1 - b g)` after activations, or
    :math:`s - b g` before them, where normalization meets a constant readout, (5.6), (5.8) and T7's
    :math:`\Psi_q`, with b for each example, so norms may differ and epsilon counts.
    """
    sphere = hidden_sphere(net)
    if sphere is None or effective_readout(net) != "constant" or isinstance(gate, SoftGates):
        return gate.overlap(pre.c)
    pairs = gate.moments(pre.c)
    b = gate.density * pre.std**2 * _inverse_square(sphere, gate, pre.std)
    total, both = b[:, None] + b[None, :], outer(b, b)
    if sphere.placement == "hidden_post":
        return pairs.overlap - total * pairs.first + both * pairs.second
    return pairs.overlap - total * pre.c * gate.density + both * pre.c


def first_order_law(
    net: TwoLayerNetwork, gate: Threshold, pre: Preactivations, modulators: list[Modulator]
) -> KernelLaw:
    r"""Return the law to first order in 1/m of units tied by a norm or by k fixed, for a zero-mean readout.

    .. math:: H_{ij} = \frac{C^2}m G_{ij}\,\frac{\bar X_{ij} - \pi_{ij}/m}{\sqrt{\bar Y_i\bar Y_j}},\qquad
        X = c^2s_is_jg_ig_j,\quad \bar Y_i = \tfrac1m\lVert h_i\rVert^2

    expanded about the means: the mean moves by the bias :math:`\beta` of (7.5), by the projection
    :math:`\pi` of (5.7) and by the curvature of the fraction; the variance is that of the linear part. With
    exactly k units, X moves by :math:`-A(s_i + s_j)` and Y by :math:`-t^2s_i` for each unit, as (7.6) and
    (7.10) have it. Only w and b are trained, and no modulator is.
    """
    a2, a4 = readout_moment(net, 2), readout_moment(net, 4)
    k = product((m.kernel for m in modulators), pre.c)
    fourth = product((1 + m.kernel**4 / 2 for m in modulators), pre.c)
    pairs, tied, q = gate.moments(pre.c), float(gate.exact), gate.fraction
    p, pull = pairs.overlap, tied * pairs.conditional
    X = a2 * k * p
    edges = 2 * pull * (q * (1 - q) + p - q**2) - 4 * p * (1 - q)
    variance = a4 * fourth * p - X**2 + (a2 * k) ** 2 * pull * edges
    covariance = (a4 * fourth - tied * a2**2) * p - (1 - tied) * (a2 * q) ** 2
    mean = X + a2 * k * pairs.bias / net.width
    sphere = hidden_sphere(net)
    if sphere is not None:
        y = _energies(net, gate, pre, pairs, modulators, sphere)
        both = y.mixed + y.mixed.T
        spread = y.variance[:, None] + y.variance[None, :]
        curved = X * (0.375 * spread + 0.25 * y.covariance) - both / 2
        shift = X * (y.bias[:, None] + y.bias[None, :]) / 2
        mean = mean + (curved - shift - y.projection) / net.width
        variance = variance - X * both + X**2 * (spread + 2 * y.covariance) / 4
        crossed = a2 * q * y.diagonal
        covariance = covariance - crossed - crossed.T + (a2 * q) ** 2 * y.covariance
    rows = row_gain(net, gate, pre)
    coefficient = outer(rows, rows) * pre.gradient
    ends = rows**2 * pre.gradient_squares
    return KernelLaw(
        coefficient * mean, coefficient**2 * variance / net.width, outer(ends, ends) * covariance / net.width
    )


def _energies(
    net: TwoLayerNetwork,
    gate: Threshold,
    pre: Preactivations,
    pairs: GatedPairs,
    modulators: list[Modulator],
    sphere: Sphere,
) -> _Energies:
    a2, q, tied = readout_moment(net, 2), gate.fraction, float(gate.exact)
    k = product((m.kernel for m in modulators), pre.c)
    # TopK-SP normalises before the modulators enter, so its norms know nothing of them.
    normed = [] if net.sparsity is not None and net.sparsity.mode == "sphere" else modulators
    fourth = product((1 + m.kernel**4 / 2 for m in normed), pre.c)
    fourth_end = 1.5 ** len(normed)  # E g^4, and E g_i^3 g_j over k
    p, square = pairs.overlap, pairs.square
    pull = tied * pairs.conditional
    b = _inverse_square(sphere, gate, pre.std) * pre.std**2
    either, both = b[:, None] + b[None, :], outer(b, b)
    if sphere.placement == "hidden_pre":
        edge = gate.energy - q
        return _Energies(
            bias=jnp.zeros_like(b),
            variance=2 * b**2,
            covariance=both * 2 * pre.c**2,
            mixed=a2 * k * b[:, None] * (square - p - pull * edge * (1 + pre.c**2)),
            diagonal=jnp.zeros_like(both),
            projection=a2 * k * (either * square - both * pre.c * pairs.second),
        )
    level = tied * gate.t**2  # with k fixed, a unit that enters displaces one at t
    mean, square_in = gate.energy - level * q, square - level * p
    pulled = pull * (mean * (1 - 2 * q) + square_in)
    return _Energies(
        bias=b * gate.energy_bias,
        variance=b**2 * (fourth_end * gate.fourth_moment - 2 * level * gate.energy + level**2 * q - mean**2),
        covariance=both * (fourth * pairs.squares - 2 * level * square + level**2 * p - mean**2),
        mixed=a2 * k * b[:, None] * ((fourth_end - 1) * square + square_in - p * mean - pulled),
        diagonal=a2 * b[None, :] * ((fourth - tied) * square - (1 - tied) * q * gate.energy),
        projection=a2 * k * (fourth_end * either * square - both * pairs.second**2 * fourth),
    )
