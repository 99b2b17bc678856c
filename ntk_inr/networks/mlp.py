"""The coordinate network that every variant describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks import activations, initializers, normalization
from ntk_inr.networks.dense import PARAMETERIZATIONS, Dense
from ntk_inr.networks.fields import whole, word
from ntk_inr.networks.film import FiLM
from ntk_inr.networks.initializers import Law, Scheme
from ntk_inr.networks.modulation import FourierModulation, GaborModulation, MLPModulation
from ntk_inr.networks.normalization import BatchNorm, LayerNorm, Normalization, WeightNorm
from ntk_inr.networks.products import Precision, check_precision
from ntk_inr.networks.sparsity import TopK

SCHEDULE = "schedule"
"""The collection that holds the number of training steps, where a setting follows a schedule."""

HEADS: dict[str, Callable[[Array], Array]] = {"sigmoid": nn.sigmoid, "tanh": nn.tanh}


class CoordinateMLP(nn.Module):
    """A multilayer perceptron from coordinates (n, d) to values (n, out).

    Each hidden layer is dense, activation, sparsity, modulation, normalization, in that order ("hidden_pre"
    normalization stands before the activation). The readout is dense.

    Attributes:
        features: width of each hidden layer.
        depth: number of hidden layers.
        out: number of outputs c.
        encoding: a module (n, d) -> (n, k), such as :class:`NeRFEncoding`; None feeds raw coordinates.
        activation: "relu", "sine", "gauss", "quadratic", "gabor", "finer", "spder", "sinc", "hosc", "erf", "tanh" or
            "gelu"; one of the classes, such as :class:`Sine`; or any elementwise callable.
        normalization: a :class:`Sphere`, :class:`LayerNorm`, :class:`BatchNorm` or :class:`WeightNorm`; "sphere",
            "layer", "batch" or "weight" for their defaults; or None.
        modulation: factors of each hidden layer's activations, a :class:`FourierModulation`,
            :class:`GaborModulation` or :class:`MLPModulation`; a :class:`FiLM` of their pre-activations; or None.
        sparsity: a :class:`TopK` on the activations of each hidden layer, or None.
        residual: add what enters each hidden layer but the first to what leaves it.
        initializer: a :class:`Scheme`, or "he", "lecun", "glorot", "pytorch", "siren" or "geometric"; None is the
            activation's own.
        bias_law: law of the biases; "own" is what the initializer or the activation asks for, by default
            U(±1/sqrt(fan_in)); None leaves them out.
        head: what the readout passes through: "sigmoid", "tanh", any callable, or None.
        parameterization: "standard" or "ntk"; see :class:`Dense`.
        param_dtype: dtype that parameters are drawn in.
        precision: of the products of hidden layers after the first, and of the readout. "default", "high" and
            "highest" are JAX's; None is what ``jax.default_matmul_precision`` says. "bfloat16" rounds what enters
            these products to it, and hidden layers' sums, while parameters, activations and the readout's sums stay in
            float32. What takes the coordinates (encoding, first layer, modulation) is in full precision always.

    Raises:
        ValueError: a size below 1, an unknown name, or an initializer of means other than 0 in the "ntk"
            parameterization.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> net = ni.CoordinateMLP(features=64, depth=2, encoding=ni.NeRFEncoding(bands=4))
        >>> apply, params = ni.init(net, jax.random.key(0), jnp.zeros((1, 2)))
        >>> apply(params, jnp.zeros((5, 2))).shape
        (5, 1)
    """

    features: int = whole(256)
    depth: int = whole(4)
    out: int = 1
    encoding: nn.Module | None = None
    activation: str | Callable[[Array], Array] = "relu"
    normalization: Normalization | str | None = None
    modulation: FourierModulation | GaborModulation | MLPModulation | FiLM | None = None
    sparsity: TopK | None = None
    residual: bool = False
    initializer: Scheme | str | None = None
    bias_law: Law | Literal["own"] | None = "own"
    head: str | Callable[[Array], Array] | None = None
    parameterization: Literal["standard", "ntk"] = "standard"
    param_dtype: Any = jnp.float32
    precision: Precision | None = word(None, Precision)

    def __post_init__(self) -> None:
        for name in ("features", "depth", "out"):
            _checks.check_positive(getattr(self, name), name, integer=True)
        activations.resolve(self.activation)
        normalization.resolve(self.normalization)
        if isinstance(self.initializer, str):
            _checks.check_choice(self.initializer, initializers.SCHEMES, "initializer")
        if isinstance(self.head, str):
            _checks.check_choice(self.head, HEADS, "head")
        _checks.check_choice(self.parameterization, PARAMETERIZATIONS, "parameterization")
        check_precision(self.precision)
        if self.parameterization == "ntk" and any(law.shift or not law.gain for law in self.every_law()):
            raise ValueError(
                f"initializer={self.initializer!r} draws from laws of nonzero mean or no variance, which the "
                '"ntk" parameterization does not have; use parameterization="standard".'
            )
        super().__post_init__()

    def laws(self, *, first: bool = False, readout: bool = False) -> tuple[Law, Law | None]:
        """Return the laws of the weights and of the biases of a layer."""
        source: Any = self.initializer or activations.resolve(self.activation)
        if isinstance(source, str):
            source = initializers.SCHEMES[source]
        bias_law = self.bias_law
        if isinstance(bias_law, str):
            own = getattr(source, "bias_law", None)
            bias_law = initializers.BIAS_UNIFORM if own is None else own(first=first, readout=readout)
        return source.law(first=first, readout=readout), bias_law

    def every_law(self) -> list[Law]:
        """Return the laws of the weights and of the biases of every layer."""
        layers = self.laws(first=True), self.laws(), self.laws(readout=True)
        return [law for layer in layers for law in layer if law is not None]

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], train: bool = False) -> Float[Array, "n out"]:
        """Return the network's values at coordinates ``x``, shape (n, out); ``train`` is for batch normalization."""
        activation = activations.resolve(self.activation)
        norm = normalization.resolve(self.normalization)
        weight_norm = isinstance(norm, WeightNorm)

        def normalized(h: Array, at: str, layer: int = 0) -> Array:
            if norm is None or isinstance(norm, WeightNorm) or norm.placement != at:
                return h
            if isinstance(norm, BatchNorm):
                return norm.module(train=train, name=f"batch_norm_{layer}")(h)
            if isinstance(norm, LayerNorm) and norm.trained:
                return norm.module(param_dtype=self.param_dtype, name=f"layer_norm_{layer}")(h)
            return norm(h)

        def dense(features: int, name: str, **layer: bool) -> Dense:
            return Dense(
                features,
                *self.laws(**layer),
                parameterization=self.parameterization,
                param_dtype=self.param_dtype,
                weight_norm=weight_norm,
                precision="highest" if layer.get("first") else self.precision,
                readout=layer.get("readout", False),
                name=name,
            )

        step = None
        if self.sparsity is not None and self.sparsity.scheduled:
            step = self.variable(SCHEDULE, "step", jnp.zeros, (), jnp.int32).value
        h = normalized(x if self.encoding is None else self.encoding(x), "input")
        film, factors = None, None
        if isinstance(self.modulation, FiLM):
            film = self.modulation(self.features, self.depth)
        elif self.modulation is not None:
            factors = jnp.split(self.modulation(x, self.features, self.depth), self.depth, axis=-1)
        for layer in range(self.depth):
            entered = h
            u = normalized(dense(self.features, f"hidden_{layer}", first=layer == 0)(h), "hidden_pre", layer)
            if film is not None:
                u = film.scale[layer][None, :] * u + film.shift[layer][None, :]
            h = activations.of_layer(activation, first=layer == 0)(u)
            if self.sparsity is not None:
                h = self.sparsity(h, step)
            if factors is not None:
                h = h * factors[layer]
            h = normalized(h, "hidden_post", layer)
            if self.residual and layer > 0:
                h = entered + h
        values = dense(self.out, "readout", readout=True)(h)
        head = HEADS[self.head] if isinstance(self.head, str) else self.head
        return values if head is None else head(values)
