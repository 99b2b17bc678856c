"""WIRE: complex Gabor wavelets between complex layers."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks import trig
from ntk_inr.networks.dense import PARAMETERIZATIONS, Dense
from ntk_inr.networks.fields import WHOLE, real, whole
from ntk_inr.networks.initializers import BIAS_UNIFORM


class ComplexDense(nn.Module):
    """A complex affine map, in real arithmetic: every product has a real parameter as an operand.

    Real and imaginary parts of weights and biases are U(±1/sqrt(fan_in)) each.

    Attributes:
        features: number of complex outputs.
        parameterization: "standard" or "ntk"; see :class:`Dense`.
        param_dtype: dtype that parameters are drawn in.
    """

    features: int = dataclasses.field(metadata=WHOLE)
    parameterization: Literal["standard", "ntk"] = "standard"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, real: Float[Array, "n m"], imaginary: Float[Array, "n m"]) -> tuple[Array, Array]:
        """Return the real and the imaginary part of the map of ``real + 1j * imaginary``."""
        fan_in = real.shape[-1]

        def drawn(name: str, shape: tuple[int, ...]) -> Array:
            scale, stored = BIAS_UNIFORM.std(fan_in), self.parameterization == "standard"

            def draw(key: Array) -> Array:
                return (scale if stored else 1.0) * BIAS_UNIFORM.draw(key, shape, self.param_dtype)

            return (1.0 if stored else scale) * self.param(name, draw).astype(real.dtype)

        a, b = (drawn(f"kernel_{part}", (fan_in, self.features)) for part in ("real", "imaginary"))
        c, d = (drawn(f"bias_{part}", (self.features,)) for part in ("real", "imaginary"))
        return real @ a - imaginary @ b + c[None, :], real @ b + imaginary @ a + d[None, :]


class Wire(nn.Module):
    r"""Complex Gabor wavelets :math:`\psi(z) = e^{i\omega z - s^2|z|^2}` between complex affine layers.

    The first layer's weights are real, the output is the real part of the last.
    :class:`ntk_inr.networks.Gabor` is the real wavelet, for :class:`ntk_inr.CoordinateMLP`.

    Attributes:
        features: width of the real network with as many parameters; there are features / sqrt(2) complex units.
        depth: number of hidden layers.
        out: number of outputs c.
        scale: s, the inverse width of the window.
        omega: angular frequency of the wave.
        parameterization: "standard" or "ntk"; see :class:`Dense`.
        param_dtype: dtype that parameters are drawn in.

    Raises:
        ValueError: a size below 1, or scale or omega not above 0.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> apply, params = ni.init(Wire(features=64, depth=2), jax.random.key(0), jnp.zeros((1, 2)))
        >>> apply(params, jnp.zeros((5, 2))).shape
        (5, 1)

    Source: Saragadam et al. 2023, arXiv 2301.05187, and its reference code.
    """

    features: int = whole(256)
    depth: int = whole(4)
    out: int = 1
    scale: float = real(10.0)
    omega: float = real(20.0)
    parameterization: Literal["standard", "ntk"] = "standard"
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        for name in ("features", "depth", "out"):
            _checks.check_positive(getattr(self, name), name, integer=True)
        _checks.check_positive(self.scale, "scale")
        _checks.check_positive(self.omega, "omega")
        _checks.check_choice(self.parameterization, PARAMETERIZATIONS, "parameterization")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n out"]:
        """Return the network's values at coordinates ``x``, shape (n, out)."""
        units, how = max(1, int(self.features / 2**0.5)), (self.parameterization, self.param_dtype)
        u = Dense(units, BIAS_UNIFORM, BIAS_UNIFORM, *how, name="hidden_0")(x)
        sine, cosine = trig.sincos(self.omega * u)
        window = jnp.exp(-((self.scale * u) ** 2))
        real, imaginary = window * cosine, window * sine
        for layer in range(1, self.depth):
            a, b = ComplexDense(units, *how, name=f"hidden_{layer}")(real, imaginary)
            sine, cosine = trig.sincos(self.omega * a)
            window = jnp.exp(-self.omega * b - self.scale**2 * (a * a + b * b))
            real, imaginary = window * cosine, window * sine
        # Of the readout only what the real part needs.
        a = Dense(self.out, BIAS_UNIFORM, BIAS_UNIFORM, *how, name="readout_real")(real)
        return a - Dense(self.out, BIAS_UNIFORM, None, *how, name="readout_imaginary")(imaginary)
