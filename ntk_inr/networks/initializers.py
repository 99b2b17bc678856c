"""Laws that weights are drawn from, by their variance as a function of fan-in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array


@dataclasses.dataclass(frozen=True)
class FanIn:
    r"""A zero-mean law of variance ``gain / fan_in**power``.

    Keeping the standard deviation apart from the unit draw lets one law serve both
    parameterizations: "standard" stores ``std * draw``, "ntk" stores ``draw`` and multiplies in the
    forward pass, so the function has the same law at initialisation and another kernel.

    Args:
        gain: variance at ``fan_in = 1``.
        distribution: "normal" or "uniform".
        power: 1 keeps the variance of a sum over inputs fixed; SIREN's first layer has 2.

    Example:
        >>> FanIn(2.0).std(fan_in=8)
        0.5
    """

    gain: float
    distribution: Literal["normal", "uniform"] = "normal"
    power: int = 1

    def std(self, fan_in: int) -> float:
        """Return the standard deviation at ``fan_in`` inputs."""
        return math.sqrt(self.gain / fan_in**self.power)

    def draw(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        """Return an array of ``shape`` with mean 0 and variance 1."""
        if self.distribution == "normal":
            return jax.random.normal(key, shape, dtype)
        bound = math.sqrt(3.0)
        return jax.random.uniform(key, shape, dtype, -bound, bound)


HE_NORMAL = FanIn(2.0)
"""He et al. 2015, arXiv 1502.01852: keeps the second moment through ReLU."""

LECUN_NORMAL = FanIn(1.0)
"""LeCun et al. 1998: unit gain, for linear readouts and smooth activations."""

BIAS_UNIFORM = FanIn(1 / 3, "uniform")
"""U(±1/sqrt(fan_in)): the bias law of the field's reference code (PyTorch's ``Linear``)."""


def siren_first() -> FanIn:
    """Return SIREN's first-layer law U(±1/d) (Sitzmann et al. 2020, arXiv 2006.09661, section 3.2)."""
    return FanIn(1 / 3, "uniform", power=2)


def siren_hidden(omega: float) -> FanIn:
    """Return SIREN's hidden law U(±sqrt(6/n)/omega) (Sitzmann et al. 2020, section 3.2)."""
    return FanIn(2 / omega**2, "uniform")
