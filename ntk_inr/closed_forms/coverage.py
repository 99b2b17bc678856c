"""Which formulas cover a two-layer network, and what they assume (T2 to T7)."""

from __future__ import annotations

from typing import Any, Literal

from ntk_inr import _checks
from ntk_inr.closed_forms import tied_laws, unit_laws
from ntk_inr.networks.normalization import Sphere
from ntk_inr.networks.sparsity import TopK
from ntk_inr.networks.two_layer import TwoLayerNetwork

Status = Literal["expectation", "asymptotic", "limit"]
Route = Literal["units", "first order", "limit"]
"""From independent units, exact; from units tied by a norm or by k, to first order in 1/m; infinite width."""

_SOFT = {
    "shrinkage": "thresholds are constants of the gradient",
    "gated": "as the temperature falls the diagonal diverges, (7.11), and the rest tends to (7.12), not to hard TopK's",
    "straight_through": "the kernel of gradients that hold the gate constant, not the Gram matrix of the Jacobian",
}


def route_of(net: TwoLayerNetwork, *, limit: bool) -> Route:
    """Return which law the kernel is taken from; ``limit`` asks for that of infinite width."""
    sphere = tied_laws.hidden_sphere(net)
    if limit:
        return "limit"
    if net.sparsity is None and sphere is None:
        return "units"
    soft = net.sparsity is not None and net.sparsity.mode == "soft"
    later = "readout" in net.trained or any(modulator.trained for modulator in net.modulation)
    projected = sphere is not None and unit_laws.effective_readout(net) == "constant"
    return "limit" if soft or later or projected else "first order"


def check_width(width: int | None, normalization: Any, sparsity: Any) -> None:
    """Raise where the width is not a positive whole number, or is missing and needed."""
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


def check_covered(net: TwoLayerNetwork) -> None:
    """Raise where no formula covers this combination, with the nearest that one does."""
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


def status_of(route: Route, *, averaged: bool) -> Status:
    """Return how exact the moments are; ``averaged`` over a random encoding."""
    if averaged or route == "first order":
        return "asymptotic"
    return "expectation" if route == "units" else "limit"


def formulas_of(net: TwoLayerNetwork, route: Route, *, averaged: bool) -> str:
    """Return the numbers of the formulas that the moments are made of."""
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
    if any(modulator.trained for modulator in net.modulation):
        used.append("(6.5)")
    elif net.modulation:
        used.append("(6.1)" if route == "limit" else "(6.3)")
    return ", ".join(used)


def condition_of(net: TwoLayerNetwork, route: Route, *, limit: bool, averaged: bool) -> str:
    """Return what the moments assume or leave out, in words; "" where nothing."""
    parts = []
    if averaged:
        parts.append("to second order in the spread of the random encoding's similarities")
    if route == "first order":
        parts.append("to first order in 1/m" + ("" if net.sparsity is None else " and 1/k"))
    elif route == "limit" and not limit:
        parts.append("the leading value: what a finite width adds, O(1/m), is left out")
    if net.sparsity is not None and net.sparsity.mode == "soft":
        parts.append(_SOFT[net.sparsity.soft])
    return "; ".join(parts)
