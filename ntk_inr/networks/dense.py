"""The affine layer that networks are made of."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr.networks import initializers
from ntk_inr.networks.fields import WHOLE
from ntk_inr.networks.initializers import Law
from ntk_inr.networks.products import Precision, product

PARAMETERIZATIONS = ("standard", "ntk")


class Dense(nn.Module):
    r"""An affine map in either parameterization, (T8.1).

    .. math:: u = \alpha W^\top h + \beta b

    "standard": alpha = beta = 1 and W is drawn with variance gain / fan_in. "ntk": W and b are
    drawn with unit variance, and alpha and beta are the standard deviations instead, so the
    function has the same law at initialisation while its kernel stays bounded as the width grows.

    Attributes:
        features: number of outputs.
        law: law of the weights.
        bias_law: law of the biases; None leaves them out.
        parameterization: "standard" or "ntk".
        param_dtype: dtype that parameters are drawn in.
        weight_norm: train length and direction of each unit's weights apart; see :class:`WeightNorm`.
        precision: of the product: "default", "high" or "highest", as JAX names them; "bfloat16", whose parameters stay
            as they are drawn; or None, JAX's own choice. "highest" is for a layer that takes coordinates.
        readout: the last layer, whose sums stay in float32 where ``precision`` is "bfloat16".

    Example:
        >>> import jax, jax.numpy as jnp
        >>> u, _ = Dense(3).init_with_output(jax.random.key(0), jnp.ones((5, 2)))
        >>> u.shape
        (5, 3)
    """

    features: int = dataclasses.field(metadata=WHOLE)
    law: Law = initializers.LECUN_NORMAL
    bias_law: Law | None = initializers.BIAS_UNIFORM
    parameterization: Literal["standard", "ntk"] = "standard"
    param_dtype: Any = jnp.float32
    weight_norm: bool = False
    precision: Precision | None = None
    readout: bool = False

    @nn.compact
    def __call__(self, h: Float[Array, "n fan_in"]) -> Float[Array, "n features"]:
        """Return the affine map of each row."""
        fan_in = h.shape[-1]
        stored = self.parameterization == "standard"

        def entered(name: str, law: Law, shape: tuple[int, ...]) -> tuple[Array, float]:
            """Return the parameter ``name``, and the factor that the forward pass multiplies it by."""
            scale = law.std(fan_in, self.features)
            if not stored:
                return self.param(name, law.draw, shape, self.param_dtype), scale
            mean = law.mean(fan_in, self.features)
            return self.param(name, lambda key: mean + scale * law.draw(key, shape, self.param_dtype)), 1.0

        kernel, alpha = entered("kernel", self.law, (fan_in, self.features))
        h, kernel = nn.dtypes.promote_dtype(h, kernel, dtype=None)
        u = product(h if stored else alpha * h, kernel, self.precision, sums=self.readout)
        shift = None
        if self.bias_law is not None:
            bias, beta = entered("bias", self.bias_law, (self.features,))
            u, bias = nn.dtypes.promote_dtype(u, bias, dtype=None)
            shift = (bias if stored else beta * bias)[None, :]
        if self.weight_norm:
            # Drawn last, so that the other parameters are those of the plain layer.
            length = jnp.sqrt((kernel * kernel).sum(0))
            u = u * (self.param("length", lambda key: length) / length)[None, :]
        return u if shift is None else u + shift
