"""The infinite-width kernels by neural-tangents' ``stax``, to compare with."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from ntk_inr import _neural_tangents
from ntk_inr.infinite.duals import Dual, Erf, Rectifier, Sine, Wavelet
from ntk_inr.infinite.quadrature import Quadrature

if TYPE_CHECKING:
    from ntk_inr.infinite.description import Description, Layer


def kernel(description: Description) -> Callable[..., tuple[Array, Array]]:
    """Return the function of (x1, x2, {}, fixed arrays) to the covariance and the neural tangent kernel of an output.

    Raises:
        ValueError: the activation has no layer in ``stax``.
        ModuleNotFoundError: neural-tangents is not installed.
    """
    stax = _neural_tangents.load().stax
    layers = [
        _activation(stax, description.dual(description.parts, first=first), description.parts["activation"])
        for first in (True, False)
    ]
    return jax.jit(functools.partial(_forward, description, stax, layers))


def _forward(
    description: Description, stax: Any, activations: list[Any], x1: Array, x2: Array | None, hyper: dict, fixed: Any
) -> tuple[Array, Array]:
    description = dataclasses.replace(description, fixed=fixed)
    net, parts = description.net, description.parts
    modulation, normalization = parts["modulation"], parts["normalization"]
    h1, h2 = description.points(parts, x1).h, None if x2 is None else description.points(parts, x2).h
    assert h1 is not None
    # Its layers warn that they count branches as independent, which these are.
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"):
        warnings.simplefilter("ignore")
        k = _start(stax, h1, h2)
        if modulation is not None:
            # The bias stands for the trained phase: it leaves Rbf's kernel and adds 1 to omega**2 <x, x'> (T6.5).
            spread = _dense(stax, net.features, x1.shape[1], modulation.omega**-2, "ntk")
            modulator = stax.Rbf(modulation.omega**2 / 2)[2](spread(_start(stax, x1, x2)))
            modulator = modulator if modulation.trained else modulator.replace(ntk=jnp.zeros_like(modulator.ntk))
        for depth in range(net.depth):
            first = depth == 0
            layer = description.layer(parts, h1.shape[1] if first else net.features, first=first)
            k = _layer(stax, layer, net.features, net.parameterization)(k)
            if normalization is not None and normalization.placement == "hidden_pre":
                k = stax.LayerNorm(eps=normalization.epsilon)[2](k)
            k = activations[0 if first else 1](k)
            if modulation is not None:
                k = stax.FanInProd()[2]([k, modulator])
        readout = description.layer(parts, net.features, readout=True)
        k = _layer(stax, readout, net.out, net.parameterization)(k)
    return k.nngp, k.ntk


def _start(stax: Any, x1: Array, x2: Array | None) -> Any:
    return stax.Identity()[2](x1, x2, None)


def _layer(stax: Any, layer: Layer, units: int, parameterization: str) -> Callable:
    return _dense(stax, units, layer.gain, layer.bias, parameterization)


def _dense(stax: Any, units: int, gain: float, bias: float, parameterization: str) -> Callable:
    std = None if bias == 0 else bias**0.5
    return stax.Dense(units, gain**0.5, std, parameterization=parameterization)[2]


def _activation(stax: Any, dual: Dual, activation: Any) -> Callable:
    match dual:
        case Rectifier():
            return stax.ABRelu(-dual.r, dual.p)[2]
        case Sine():
            return stax.Sin(1.0, dual.omega, dual.phase)[2]
        case Erf():
            return stax.Erf(1.0, dual.slope, 0.0)[2]
        case Wavelet(omega=0.0, phase=0.0):
            return stax.Gaussian(1.0, -(dual.scale**2))[2]
        case Quadrature():
            return stax.ElementwiseNumerical(activation, dual.order)[2]
    raise ValueError(f"activation {activation!r} is no layer of stax's with these settings; {_OWN}")


_OWN = 'use backend="own".'


def check(description: Description) -> None:
    """Raise ``ValueError`` for the first part that has no layer in stax, except the activation."""
    parts, net = description.parts, description.net
    first = description.layer(parts, 1, first=True)
    normalization = parts["normalization"]
    radius = getattr(normalization, "radius", None)
    inputs_only = normalization is None or normalization.placement == "input"
    for refused, reason in (
        (first.weights != "normal", f"the first layer's weights are {first.weights} by {parts['activation']!r}"),
        (
            first.uniform is not None,
            f"bias_law={net.bias_law!r} is uniform; stax's are normal, such as initializers.Law(1.0)",
        ),
        (parts["sparsity"] is not None, "sparsity"),
        (net.residual, "residual=True adds units that are not normal"),
        (not inputs_only and normalization.placement != "hidden_pre", f"normalization={normalization!r}"),
        (getattr(normalization, "trained", False), f"normalization={normalization!r} has a trained gain and bias"),
        (not inputs_only and radius is not None, f"normalization's radius {radius}"),
        (
            type(net.encoding).__name__ == "GaussianFourier" and description.fixed is None,
            "encoding GaussianFourier has its frequencies in constants, which are missing",
        ),
    ):
        if refused:
            raise ValueError(f"stax has no layer for this network: {reason}; {_OWN}")
