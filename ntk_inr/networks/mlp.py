"""The coordinate network that every variant describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks import activations, initializers
from ntk_inr.networks.initializers import FanIn
from ntk_inr.networks.modulation import FourierModulation
from ntk_inr.networks.normalization import NORMALIZATIONS, LayerNorm, Sphere
from ntk_inr.networks.sparsity import TopK

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

    Example:
        >>> import jax, jax.numpy as jnp
        >>> u, _ = Dense(3).init_with_output(jax.random.key(0), jnp.ones((5, 2)))
        >>> u.shape
        (5, 3)
    """

    features: int
    law: FanIn = initializers.LECUN_NORMAL
    bias_law: FanIn | None = initializers.BIAS_UNIFORM
    parameterization: Literal["standard", "ntk"] = "standard"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "n fan_in"]) -> Float[Array, "n features"]:
        """Return the affine map of each row."""
        fan_in = h.shape[-1]
        stored = self.parameterization == "standard"

        def entered(name: str, law: FanIn, shape: tuple[int, ...]) -> tuple[Array, float]:
            """Return the parameter, and what it is multiplied by in the forward pass."""
            scale = law.std(fan_in)
            drawn = self.param(name, lambda key: (scale if stored else 1.0) * law.draw(key, shape, self.param_dtype))
            return drawn, 1.0 if stored else scale

        kernel, alpha = entered("kernel", self.law, (fan_in, self.features))
        h, kernel = nn.dtypes.promote_dtype(h, kernel, dtype=None)
        u = (h if stored else alpha * h) @ kernel
        if self.bias_law is None:
            return u
        bias, beta = entered("bias", self.bias_law, (self.features,))
        u, bias = nn.dtypes.promote_dtype(u, bias, dtype=None)
        return u + (bias if stored else beta * bias)[None, :]


class CoordinateMLP(nn.Module):
    """A multilayer perceptron from coordinates (n, d) to values (n, out).

    Each hidden layer is dense, activation, sparsity, modulation, normalization, in that order ("hidden_pre"
    normalization stands before the activation). The readout is dense.

    Attributes:
        features: width of each hidden layer.
        depth: number of hidden layers.
        out: number of outputs c.
        encoding: a module (n, d) -> (n, k), such as :class:`NeRFEncoding`; None feeds raw coordinates.
        activation: a name ("relu", "sine"), or any elementwise callable.
        normalization: a :class:`Sphere` or :class:`LayerNorm`, "sphere" or "layer" for their defaults, or None.
        modulation: a :class:`FourierModulation`, independent factors for each hidden layer, or None.
        sparsity: a :class:`TopK` on the activations of each hidden layer, or None.
        residual: add what enters each hidden layer but the first to what leaves it.
        bias_law: law of the biases; None leaves them out.
        parameterization: "standard" or "ntk"; see :class:`Dense`.
        param_dtype: dtype that parameters are drawn in.

    Raises:
        ValueError: a size below 1, or an unknown activation, normalization or parameterization.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> net = ni.CoordinateMLP(features=64, depth=2, encoding=ni.NeRFEncoding(bands=4))
        >>> apply, params = ni.init(net, jax.random.key(0), jnp.zeros((1, 2)))
        >>> apply(params, jnp.zeros((5, 2))).shape
        (5, 1)
    """

    features: int = 256
    depth: int = 4
    out: int = 1
    encoding: nn.Module | None = None
    activation: str | Callable[[Array], Array] = "relu"
    normalization: Sphere | LayerNorm | str | None = None
    modulation: FourierModulation | None = None
    sparsity: TopK | None = None
    residual: bool = False
    bias_law: FanIn | None = initializers.BIAS_UNIFORM
    parameterization: Literal["standard", "ntk"] = "standard"
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        for name in ("features", "depth", "out"):
            _checks.check_positive(getattr(self, name), name, integer=True)
        activations.resolve(self.activation)
        if isinstance(self.normalization, str):
            _checks.check_choice(self.normalization, NORMALIZATIONS, "normalization")
        _checks.check_choice(self.parameterization, PARAMETERIZATIONS, "parameterization")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n out"]:
        """Return the network's values at coordinates ``x``, shape (n, out)."""
        activation = activations.resolve(self.activation)
        normalization = self.normalization
        if isinstance(normalization, str):
            normalization = NORMALIZATIONS[normalization]

        def normalized(h: Array, at: str) -> Array:
            return h if normalization is None or normalization.placement != at else normalization(h)

        def dense(features: int, name: str, **layer: bool) -> Dense:
            law = activation.law(**layer)
            return Dense(features, law, self.bias_law, self.parameterization, self.param_dtype, name=name)

        h = normalized(x if self.encoding is None else self.encoding(x), "input")
        if self.modulation is not None:
            factors = jnp.split(self.modulation(x, self.features * self.depth), self.depth, axis=-1)
        for layer in range(self.depth):
            entered = h
            u = dense(self.features, f"hidden_{layer}", first=layer == 0, readout=False)(h)
            h = activation(normalized(u, "hidden_pre"))
            if self.sparsity is not None:
                h = self.sparsity(h)
            if self.modulation is not None:
                h = h * factors[layer]
            h = normalized(h, "hidden_post")
            if self.residual and layer > 0:
                h = entered + h
        return dense(self.out, "readout", first=False, readout=True)(h)
