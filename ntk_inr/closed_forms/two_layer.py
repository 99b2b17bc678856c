"""Mean and variance of the kernel's eigenvalues of a two-layer network, in closed form (T2 to T7)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ntk_inr import _checks
from ntk_inr._results import result, static
from ntk_inr.closed_forms import coverage, inputs, scales, tied_laws, unit_laws
from ntk_inr.closed_forms.coverage import Route, Status
from ntk_inr.closed_forms.factors import TwoLayerFactors, two_layer_factors
from ntk_inr.closed_forms.gates import RELU, Threshold
from ntk_inr.closed_forms.inputs import Modulator, Pairs
from ntk_inr.closed_forms.scales import Scales
from ntk_inr.infinite.soft_gates import SoftGates, soft_gates
from ntk_inr.networks.modulation import FourierModulation
from ntk_inr.networks.normalization import Sphere
from ntk_inr.networks.sparsity import TopK
from ntk_inr.networks.two_layer import Group, Readout, TwoLayerNetwork, two_layer_network
from ntk_inr.spectra import dense
from ntk_inr.spectra.dense import ScaleFree


@result
class TwoLayerMoments(ScaleFree):
    """Moments of the eigenvalues of a two-layer network's kernel, and where they come from.

    Its ``cv`` is ``deviation / mean``, not the expectation of the cv of one network.

    Attributes:
        mean: mean of the eigenvalues, in expectation over the initialisation.
        variance: their population variance, in expectation over the initialisation.
        deviation: square root of ``variance``; right also where that leaves the range of its dtype.
        kernel: (n, n) expectation of the kernel.
        factors: the first layer's :class:`TwoLayerFactors`; None where only later groups are trained.
        proxy_ratio: ``proxy`` / variance; None where there are no factors.
        status: "expectation", exact at this width; "asymptotic", to first order in 1/m (or in one over the
            frequencies of a random encoding); "limit", the value of infinite width.
        formula: numbers of the formulas used.
        condition: what the numbers assume or leave out, in words; "" where nothing.
        n: number of eigenvalues.
    """

    mean: Any
    variance: Any
    deviation: Any
    kernel: Any
    factors: TwoLayerFactors | None
    proxy_ratio: Any
    status: Status = static()
    formula: str = static()
    condition: str = static()
    n: int = static()

    @property
    def proxy(self) -> Any:
        """The factors' :attr:`~TwoLayerFactors.proxy`, to compare with the variance; None where there are none."""
        return None if self.factors is None else self.factors.proxy

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: the figures, the proxy beside them, and how they were found."""
        rows = {name: getattr(self, name) for name in ("mean", "variance", "cv", "effective_rank", "n")}
        if self.factors is not None:
            rows |= {"proxy": self.proxy, "proxy_ratio": self.proxy_ratio}
        return rows | {"status": self.status, "formula": self.formula, "condition": self.condition or "none"}


class _Entries(NamedTuple):
    """Functions of each entry of the inputs' Gram matrix alone, in units of :class:`Scales`, all (n, n)."""

    kernel: Array  # E H
    square: Array  # E H²
    diagonal_covariance: Array  # Cov(H_ii, H_jj)
    gradient_square: Array
    overlap_square: Array


def two_layer_moments(
    x: Any,
    *,
    width: int | None = None,
    limit: bool = False,
    key: Any = None,
    # What follows are the settings of two_layer_network, spelled out for readers of the signature.
    encoding: nn.Module | None = None,
    normalization: Sphere | None = None,
    modulation: FourierModulation | Iterable[FourierModulation] | None = None,
    sparsity: TopK | None = None,
    readout: Readout = "signs",
    trained: Iterable[Group] = ("weights",),
    scale: Any = 1.0,
    weight_std: Any = 1.0,
    bias_std: Any = None,
    output_bias: Any = None,
) -> TwoLayerMoments:
    r"""Return the moments of the kernel's eigenvalues of :func:`.two_layer_network`, without drawing one.

    .. math:: E\mu = \tfrac1n\sum_i E H_{ii},\qquad E v = v(E H) + \tfrac1n\sum_{ij}\operatorname{Var}H_{ij}
        - \tfrac1{n^2}\sum_{ij}\operatorname{Cov}(H_{ii}, H_{jj})

    which is lemma (2.1) where units are independent. What is known of H, by network:

    ================================================  =============================  ==================
    network                                           at a width                     at infinite width
    ================================================  =============================  ==================
    any groups and modulators trained, any readout    exact: (2.3), (3.4), (6.3)     (2.2), (3.2), (6.5)
    hidden sphere, zero-mean readout                  to O(1/m): (5.7)               (5.6)
    hidden sphere, constant readout                   limit                          (5.6), (5.8)
    TopK, "hard" or "sphere"                          to O(1/m): (7.5), (7.6)        (7.2), (7.7)
    TopK, "soft"                                      limit                          T7, (7.12)
    ================================================  =============================  ==================

    Encodings and ``Sphere(placement="input")`` enter by exact substitution, (4.1) and (5.1). With a hidden sphere
    or TopK, training the readout or a modulator leaves the limit only. A constant readout of a modulated network
    has the law of random signs.

    Cost: entrywise operations on (n, n) arrays. For n = 1024 in float64 on two cores 0.3 s, 1 s with TopK, and 3 to
    12 s with a "soft" one; half of that in float32.

    Args:
        x: coordinates (n, d), floating point.
        width: units m; None is the limit.
        limit: take the limit with k / width, and the sphere's radius over sqrt(width), as given.
        key: draws a random encoding once, as ``encoding.init(key, x)`` does. None averages a
            :class:`GaussianFourier` over its frequencies to second order, (4.2).
        encoding: as of :func:`ntk_inr.networks.two_layer_network`, like all that follow; without parameters of its own.
        normalization: a :class:`Sphere`.
        modulation: a :class:`FourierModulation`, or several.
        sparsity: a :class:`TopK` of at most half of the units.
        readout: "signs", "normal" or "constant".
        trained: of "weights", "bias", "readout".
        scale: a, of the readout.
        weight_std: standard deviation of the weights.
        bias_std: standard deviation of the biases, or None.
        output_bias: beta, or None.

    Returns:
        :class:`TwoLayerMoments`, in the dtype of ``x``, float32 for half precision.

    Raises:
        TypeError: x holds integers, or a part is of another kind.
        ValueError: bad sizes or settings, a limit that needs a width, a row of zeros without a bias, or a
            combination that no formula covers; the message names the nearest that one does.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jax.random.normal(jax.random.key(0), (16, 3))
        >>> plain = two_layer_moments(x, width=64)
        >>> modulated = two_layer_moments(x, width=64, modulation=ni.FourierModulation(omega=2.0))
        >>> plain.status, plain.formula, bool(modulated.cv < plain.cv)
        ('expectation', '(2.3)', True)

    Source: T2 to T7.
    """
    x = _checks.as_floating(_checks.as_coordinates(x), "x")
    coverage.check_width(width, normalization, sparsity)
    net = two_layer_network(
        1 if width is None else width,  # no number of the limit depends on it
        encoding=encoding,
        normalization=normalization,
        modulation=modulation,
        sparsity=sparsity,
        readout=readout,
        trained=trained,
        scale=scale,
        weight_std=weight_std,
        bias_std=bias_std,
        output_bias=output_bias,
    )
    coverage.check_covered(net)
    moments = _moments_of(net, x, key, limit=limit or width is None)
    if width is None or moments.factors is None:
        return moments
    factors = dataclasses.replace(moments.factors, active_units=moments.factors.active_fraction * width)
    return dataclasses.replace(moments, factors=factors)


def _moments_of(net: TwoLayerNetwork, x: Array, key: Any, *, limit: bool) -> TwoLayerMoments:
    """Return the moments of a network that formulas cover, at coordinates x (n, d)."""
    sphere = net.normalization if net.normalization is not None and net.normalization.placement == "input" else None
    pairs, spread = inputs.encoded(x, net.encoding, sphere, key)
    inputs.check_directions(pairs, has_bias=net.bias_std is not None)
    route, averaged = coverage.route_of(net, limit=limit), spread is not None
    modulators = [inputs.modulator(modulation, x) for modulation in net.modulation]
    return TwoLayerMoments(
        **_computed(_outline(net), route, pairs, spread, modulators, _numbers(net)),
        status=coverage.status_of(route, averaged=averaged),
        formula=coverage.formulas_of(net, route, averaged=averaged),
        condition=coverage.condition_of(net, route, limit=limit, averaged=averaged),
        n=len(x),
    )


def _numbers(net: TwoLayerNetwork) -> dict[str, Any]:
    """Return the numbers that may change without another compilation; the width is one unless TopK keeps k of it."""
    numbers = {name: getattr(net, name) for name in ("scale", "weight_std", "bias_std", "output_bias")}
    return numbers if net.sparsity is not None else numbers | {"width": net.width}


def _outline(net: TwoLayerNetwork) -> TwoLayerNetwork:
    """Return the network with blanks for its numbers and no encoding, the key of a compiled program."""
    blank: dict[str, Any] = dict.fromkeys(_numbers(net), 1)
    modulation = tuple(modulator.clone(omega=1.0) for modulator in net.modulation)
    return net.clone(**blank, encoding=None, modulation=modulation)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _computed(
    outline: TwoLayerNetwork,
    route: Route,
    pairs: Pairs,
    spread: Array | None,
    modulators: list[Modulator],
    numbers: dict[str, Any],
) -> dict[str, Any]:
    """Return the fields of :class:`TwoLayerMoments` that are arrays, for this outline and these numbers."""
    net = outline.clone(**numbers)
    gate, pre = _gate(net, pairs), inputs.preactivations(net, pairs)
    size = scales.scales(net, gate, pre)
    means = inputs.averaged(functools.partial(_entries, net, route, gate, size, modulators), pairs, spread)
    spectrum = dense.moments(means.kernel)
    variance = spectrum.variance + _fluctuation(means)
    squares = means.gradient_square, means.overlap_square
    factors = two_layer_factors(net, gate, pre, *squares, modulators, gradient_unit=size.gradient)
    ratio = None
    if factors is not None:
        ratio = dataclasses.replace(factors, scale=factors.scale / size.kernel).proxy / variance
    return {
        "mean": spectrum.mean * size.kernel,
        "variance": variance * size.kernel * size.kernel,
        "deviation": jnp.sqrt(variance) * size.kernel,
        "kernel": means.kernel * size.kernel,
        "factors": factors,
        "proxy_ratio": ratio,
    }


def _entries(
    net: TwoLayerNetwork,
    route: Route,
    gate: Threshold | SoftGates,
    size: Scales,
    modulators: list[Modulator],
    pairs: Pairs,
) -> _Entries:
    """Return the entries that the moments are means of, at these inner products of the inputs."""
    pre = inputs.preactivations(net, pairs)
    overlap = tied_laws.gate_overlap(net, gate, pre)
    if route == "limit":
        law = tied_laws.limit_law(net, gate, pre, overlap, modulators)
        law = law._replace(mean=law.mean / size.kernel)
    elif route == "units":
        law = unit_laws.unit_law(*size.divide(net, pre), modulators, readout_gain=size.readout**-2)
    else:
        assert isinstance(gate, Threshold)
        divided, by_inputs = size.divide(net, pre)
        law = tied_laws.first_order_law(divided, gate, by_inputs._replace(std=pre.std), modulators)
    gradient_square = (pre.gradient / size.gradient) ** 2
    return _Entries(law.mean, law.mean**2 + law.variance, law.diagonal_covariance, gradient_square, overlap**2)


def _fluctuation(means: _Entries) -> Array:
    """Return what the fluctuations of H add to the variance of the eigenvalues, the last two terms of E v."""
    n = means.kernel.shape[0]
    return (means.square - means.kernel**2).sum() / n - means.diagonal_covariance.sum() / n**2


def _gate(net: TwoLayerNetwork, pairs: Pairs) -> Threshold | SoftGates:
    if net.sparsity is None:
        return RELU
    k, temperature = net.sparsity.settled()
    if temperature is None:
        return Threshold(k / net.width, exact=True)
    std = tied_laws.gated_std(net, inputs.preactivations(net, pairs))
    return soft_gates(k / net.width, net.sparsity.soft, temperature / std)
