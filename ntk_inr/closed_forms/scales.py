"""Powers of two that a two-layer network's kernel is divided by, so that its square stays in the range of floats."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ntk_inr._dtypes import unit_of
from ntk_inr.closed_forms.gates import Threshold
from ntk_inr.closed_forms.inputs import Preactivations
from ntk_inr.closed_forms.tied_laws import row_gain
from ntk_inr.infinite.soft_gates import SoftGates
from ntk_inr.networks.two_layer import TwoLayerNetwork


class Scales(NamedTuple):
    """Powers of two near the sizes of the readout, of what it reads and of the squared gradient of u."""

    readout: Array
    inputs: Array
    gradient: Array

    @property
    def kernel(self) -> Array:
        """The unit of the kernel."""
        return (self.readout * self.inputs) ** 2

    def divide(self, net: TwoLayerNetwork, pre: Preactivations) -> tuple[TwoLayerNetwork, Preactivations]:
        """Return a network and pre-activations whose kernel is this network's over ``kernel``.

        The part of the kernel that comes from training the readout is divided by ``inputs**2`` only.
        """
        bias = None if net.output_bias is None else net.output_bias / (self.readout * self.inputs)
        pre = pre._replace(
            std=pre.std / self.inputs,
            gradient=pre.gradient / self.inputs**2,
            gradient_squares=pre.gradient_squares / self.inputs**2,
        )
        return net.clone(scale=net.scale / self.readout, output_bias=bias), pre


def scales(net: TwoLayerNetwork, gate: Threshold | SoftGates, pre: Preactivations) -> Scales:
    """Return the scales of a network at these pre-activations."""
    rows = row_gain(net, gate, pre)
    inputs = unit_of(rows * jnp.maximum(pre.std, jnp.sqrt(pre.gradient_squares)))
    readouts = [net.scale, float("readout" in net.trained)]
    if net.output_bias is not None and "readout" in net.trained:
        readouts.append(net.output_bias / inputs)
    return Scales(unit_of(jnp.array(readouts, inputs.dtype)), inputs, unit_of(pre.gradient_squares))
