"""Mean and variance of the kernel's eigenvalues of a two-layer network, in closed form (T2 to T7)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.closed_forms import inputs, scales, tied_laws, unit_laws
from ntk_inr.closed_forms.factors import TwoLayerFactors, two_layer_factors
from ntk_inr.closed_forms.gates import RELU, Threshold
from ntk_inr.closed_forms.inputs import Modulator, Pairs
from ntk_inr.infinite.soft_gates import SoftGates, soft_gates
from ntk_inr.networks.modulation import FourierModulation
from ntk_inr.networks.normalization import Sphere
from ntk_inr.networks.sparsity import TopK
from ntk_inr.networks.two_layer import Group, Readout, TwoLayerNetwork, two_layer_network
from ntk_inr.spectra.dense import moments

Status = Literal["expectation", "asymptotic", "limit"]
_Route = Literal["units", "first order", "limit"]
_SOFT = {
    "shrinkage": "thresholds are constants of the gradient",
    "gated": "as the temperature falls the diagonal diverges, (7.11), and the rest tends to (7.12), not to hard TopK's",
    "straight_through": "the kernel of gradients that hold the gate constant, not the Gram matrix of the Jacobian",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoLayerMoments:
    """Moments of the eigenvalues of a two-layer network's kernel, and where they come from.

    Attributes:
        mean: mean of the eigenvalues, in expectation over the initialisation.
        variance: their population variance, in expectation over the initialisation.
        cv: ``sqrt(variance) / mean``; not the expectation of the cv of one network.
        effective_rank: ``n / (1 + cv**2)``.
        status: "expectation", exact at this width; "asymptotic", to first order in 1/m (or in one over the
            frequencies of a random encoding); "limit", the value of infinite width.
        formula: numbers of the formulas used.
        condition: what the numbers assume or leave out, in words; "" where nothing.
        kernel: (n, n) expectation of the kernel.
        factors: the first layer's :class:`TwoLayerFactors`; None where only later groups are trained.
        proxy: ``factors.proxy``, to compare with the variance; None where there are no factors.
        proxy_ratio: proxy / variance.
    """

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    cv: Float[Array, ""]
    effective_rank: Float[Array, ""]
    status: Status = dataclasses.field(metadata={"static": True})
    formula: str = dataclasses.field(metadata={"static": True})
    condition: str = dataclasses.field(metadata={"static": True})
    kernel: Float[Array, "n n"]
    factors: TwoLayerFactors | None
    proxy: Float[Array, ""] | None
    proxy_ratio: Float[Array, ""] | None


class _Computed(NamedTuple):
    mean: Array
    variance: Array
    cv: Array
    kernel: Array
    factors: TwoLayerFactors | None
    proxy_ratio: Array | None


class _Entries(NamedTuple):
    """What the result is made of: functions of each entry of the Gram matrix alone, so that their means add up.

    All in :class:`Scales`.
    """

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
    limit = limit or width is None
    _check_width(width, normalization, sparsity)
    net = two_layer_network(
        1 if width is None else width,  # nothing that is left depends on it
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
    _check_covered(net)
    sphere = normalization if normalization is not None and normalization.placement == "input" else None
    pairs, spread = inputs.encoded(x, encoding, sphere, key)
    inputs.check_directions(pairs, has_bias=bias_std is not None)
    route = _route(net, limit=limit)
    modulators = [inputs.modulator(factors, x) for factors in net.modulation]
    found = _computed(_outline(net), route, pairs, spread, modulators, _numbers(net))
    factors = found.factors
    if factors is not None and width is not None:
        factors = dataclasses.replace(factors, active_units=factors.active_fraction * width)
    proxy = None if factors is None else factors.proxy
    return TwoLayerMoments(
        mean=found.mean,
        variance=found.variance,
        cv=found.cv,
        effective_rank=x.shape[0] / (1 + found.cv**2),
        status=_status(route, averaged=spread is not None),
        formula=_formula(net, route, averaged=spread is not None),
        condition=_condition(net, route, limit=limit, averaged=spread is not None),
        kernel=found.kernel,
        factors=factors,
        proxy=proxy,
        proxy_ratio=found.proxy_ratio,
    )


def _numbers(net: TwoLayerNetwork) -> dict[str, Any]:
    """Return what may change without another compilation; widths, where k doesn't count units."""
    numbers = {name: getattr(net, name) for name in ("scale", "weight_std", "bias_std", "output_bias")}
    return numbers if net.sparsity is not None else numbers | {"width": net.width}


def _outline(net: TwoLayerNetwork) -> TwoLayerNetwork:
    """Return the network less its numbers and its encoding: what a compiled program is for."""
    blank: dict[str, Any] = dict.fromkeys(_numbers(net), 1)
    modulation = tuple(factors.clone(omega=1.0) for factors in net.modulation)
    return net.clone(**blank, encoding=None, modulation=modulation)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _computed(
    outline: TwoLayerNetwork,
    route: _Route,
    pairs: Pairs,
    spread: Array | None,
    modulators: list[Modulator],
    numbers: dict[str, Any],
) -> _Computed:
    """Return the moments and factors of the network of this outline and these numbers."""
    net = outline.clone(**numbers)
    gate = _gate(net, pairs)

    size = scales.scales(net, gate, inputs.preactivations(net, pairs))

    def entries(pairs: Pairs) -> _Entries:
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

    found = inputs.averaged(entries, pairs, spread)
    n = pairs.squares.shape[0]
    spectrum = moments(found.kernel)
    fluctuation = (found.square - found.kernel**2).sum() / n - found.diagonal_covariance.sum() / n**2
    variance = spectrum.variance + fluctuation
    pre = inputs.preactivations(net, pairs)
    squares = found.gradient_square, found.overlap_square
    factors = two_layer_factors(net, gate, pre, *squares, modulators, gradient_unit=size.gradient)
    ratio = None
    if factors is not None:
        ratio = dataclasses.replace(factors, scale=factors.scale / size.kernel).proxy / variance
    return _Computed(
        mean=spectrum.mean * size.kernel,
        variance=variance * size.kernel * size.kernel,
        cv=jnp.sqrt(variance) / spectrum.mean,
        kernel=found.kernel * size.kernel,
        factors=factors,
        proxy_ratio=ratio,
    )


def _gate(net: TwoLayerNetwork, pairs: Pairs) -> Threshold | SoftGates:
    if net.sparsity is None:
        return RELU
    k, temperature = net.sparsity.settled()
    if temperature is None:
        return Threshold(k / net.width, exact=True)
    std = tied_laws.gated_std(net, inputs.preactivations(net, pairs))
    return soft_gates(k / net.width, net.sparsity.soft, temperature / std)


def _route(net: TwoLayerNetwork, *, limit: bool) -> _Route:
    sphere = tied_laws.hidden_sphere(net)
    if limit:
        return "limit"
    if net.sparsity is None and sphere is None:
        return "units"
    soft = net.sparsity is not None and net.sparsity.mode == "soft"
    later = "readout" in net.trained or any(factors.trained for factors in net.modulation)
    projected = sphere is not None and unit_laws.effective_readout(net) == "constant"
    return "limit" if soft or later or projected else "first order"


def _check_width(width: int | None, normalization: Any, sparsity: Any) -> None:
    if width is not None:
        _checks.check_positive(width, "width", integer=True)
        return
    if isinstance(sparsity, TopK):
        raise ValueError(
            f"sparsity keeps k = {sparsity.k} units of an unknown number; pass width=m, and limit=True for the limit "
            "of that share k/m."
        )
    if isinstance(normalization, Sphere) and normalization.placement != "input" and normalization.radius is not None:
        raise ValueError(
            f"normalization has radius {normalization.radius}, beside which the kernel of an infinite width vanishes; "
            "pass width=m and limit=True, or radius=None, which is sqrt(m)."
        )


def _check_covered(net: TwoLayerNetwork) -> None:
    """Raise where no formula covers this combination."""
    if net.sparsity is None:
        return
    k, _ = net.sparsity.settled()
    if 2 * k > net.width:
        raise ValueError(
            f"sparsity keeps {k} of {net.width} units; the formulas of T7 take at most half, since TopK "
            f"stands in place of the ReLU and more would let negative units through. Choose k up to {net.width // 2}, "
            f"or a width from {2 * k}."
        )
    sphere = None if net.normalization is None or net.normalization.placement == "input" else net.normalization
    if sphere is not None and net.sparsity.mode == "sphere":
        raise ValueError(
            f'TopK(mode="sphere") normalises already, and {sphere.placement} normalization would do so again; drop one '
            'of them. TopK(mode="hard") with Sphere(placement="hidden_post") normalises after any modulators.'
        )
    if sphere is not None and net.sparsity.mode == "soft" and unit_laws.effective_readout(net) == "constant":
        raise ValueError(
            "no formula covers a soft TopK with hidden normalization and a constant readout; the nearest is "
            'readout="signs", or mode="hard" in place of "soft".'
        )


def _status(route: _Route, *, averaged: bool) -> Status:
    if averaged or route == "first order":
        return "asymptotic"
    return "expectation" if route == "units" else "limit"


def _formula(net: TwoLayerNetwork, route: _Route, *, averaged: bool) -> str:
    sphere, sparsity = tied_laws.hidden_sphere(net), net.sparsity
    affine = "readout" in net.trained or net.bias_std is not None
    used = ["(4.2)"] if averaged else []
    if net.normalization is not None and net.normalization.placement == "input":
        used.append("(5.1)")
    if sparsity is not None:
        gated = sparsity.mode == "soft" and sparsity.soft == "gated"
        used.append("(7.7)" if sparsity.mode == "sphere" else "(7.12)" if gated else "(7.2)")
    if net.normalization is not None and net.normalization is sphere:
        used.append("(5.8)" if sphere.placement == "hidden_pre" else "(5.6)")
    if route == "first order":
        used += [] if sparsity is None else ["(7.5)", "(7.6)"]
        used += [] if sphere is None else ["(5.7)"] if sparsity is None else ["(5.7)", "(7.10)"]
    if affine:
        used.append("(3.4)" if route == "units" else "(3.2)")
    elif sparsity is None and sphere is None and not net.modulation:
        used.append("(2.3)" if route == "units" else "(2.2)")
    if any(factors.trained for factors in net.modulation):
        used.append("(6.5)")
    elif net.modulation:
        used.append("(6.1)" if route == "limit" else "(6.3)")
    return ", ".join(used)


def _condition(net: TwoLayerNetwork, route: _Route, *, limit: bool, averaged: bool) -> str:
    said = []
    if averaged:
        said.append("to second order in the spread of the random encoding's similarities")
    if route == "first order":
        said.append("to first order in 1/m" + ("" if net.sparsity is None else " and 1/k"))
    elif route == "limit" and not limit:
        said.append("the leading value: what a finite width adds, O(1/m), is left out")
    if net.sparsity is not None and net.sparsity.mode == "soft":
        said.append(_SOFT[net.sparsity.soft])
    return "; ".join(said)
