"""WIRE: Gabor wavelets, complex between complex layers, or real."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks import trig
from ntk_inr.networks.dense import PARAMETERIZATIONS, Dense
from ntk_inr.networks.fields import WHOLE, real, whole, word
from ntk_inr.networks.initializers import BIAS_UNIFORM, Law, check_frequencies
from ntk_inr.networks.products import Precision, check_precision, product

Wavelet = Literal["complex", "complex2d", "real"]

# By which the units are fewer than in a real network with as many parameters.
_FEWER = {"complex": 2**0.5, "complex2d": 2.0, "real": 2**0.5}


class ComplexDense(nn.Module):
    """A complex affine map, in real arithmetic: every product has a real parameter as an operand.

    Real and imaginary parts of weights and biases are U(±1/sqrt(fan_in)) each.

    Attributes:
        features: number of complex outputs.
        parameterization: "standard" or "ntk"; see :class:`Dense`.
        param_dtype: dtype that parameters are drawn in.
        precision: of the products; see :class:`Dense`.
    """

    features: int = dataclasses.field(metadata=WHOLE)
    parameterization: Literal["standard", "ntk"] = "standard"
    param_dtype: Any = jnp.float32
    precision: Precision | None = None

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

        def times(h: Array, matrix: Array) -> Array:
            return product(h, matrix, self.precision)

        return (
            times(real, a) - times(imaginary, b) + c[None, :],
            times(real, b) + times(imaginary, a) + d[None, :],
        )


class Wire(nn.Module):
    r"""WIRE's networks, of Gabor wavelets: complex, complex under a window of two dimensions, or real.

    .. math:: \psi(z) = e^{i\omega z - s^2|z|^2}, \qquad \psi(z, y) = e^{i\omega z - s^2(|z|^2 + |y|^2)},
        \qquad \psi(z, y) = e^{-s^2y^2}\cos\omega z

    z and y are two affine maps of what enters the layer. "complex" has the first wavelet between complex maps, but
    real ones in the first layer; "complex2d" the second, with y of its own; "real" the third, all in real numbers.
    The output is the real part of the last, affine layer. Real and imaginary parts of weights and biases are
    U(±1/sqrt(n)). :class:`ntk_inr.networks.Gabor`, for :class:`ntk_inr.CoordinateMLP`, is the real wavelet with
    y = z.

    Attributes:
        features: width of the real network with as many parameters: there are features / sqrt(2) units, features / 2
            for "complex2d".
        depth: number of hidden layers; the reference code's ``hidden_layers`` is one less.
        out: number of outputs c.
        scale: s, the inverse width of the window.
        omega: angular frequency of the wave.
        first_omega: angular frequency in the first layer; None is omega.
        wavelet: "complex", "complex2d" (WIRE-2D) or "real".
        parameterization: "standard" or "ntk"; see :class:`Dense`.
        param_dtype: dtype that parameters are drawn in.
        precision: of the products of hidden layers and of the readout; see :class:`ntk_inr.CoordinateMLP`.

    Raises:
        ValueError: a size below 1, a scale or frequency not above 0, or an unknown wavelet or precision.

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
    first_omega: float | None = real(None)
    wavelet: Wavelet = word("complex", Wavelet)
    precision: Precision | None = word(None, Precision)

    def __post_init__(self) -> None:
        for name in ("features", "depth", "out"):
            _checks.check_positive(getattr(self, name), name, integer=True)
        _checks.check_positive(self.scale, "scale")
        check_frequencies(self.omega, self.first_omega)
        _checks.check_choice(self.parameterization, PARAMETERIZATIONS, "parameterization")
        _checks.check_choice(self.wavelet, get_args(Wavelet), "wavelet")
        check_precision(self.precision)
        super().__post_init__()

    @property
    def units(self) -> int:
        """The units of a hidden layer."""
        return max(1, int(self.features / _FEWER[self.wavelet]))

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n out"]:
        """Return the network's values at coordinates ``x``, shape (n, out)."""
        real, imaginary = self._hidden(0, x, None)
        for layer in range(1, self.depth):
            real, imaginary = self._hidden(layer, real, imaginary)
        if imaginary is None:
            return self._readout("readout")(real)
        # Of the readout only what the real part needs.
        return self._readout("readout_real")(real) - self._readout("readout_imaginary", None)(imaginary)

    def _dense(self, features: int, name: str, bias_law: Law | None = BIAS_UNIFORM, **how: Any) -> Dense:
        dtypes = {"parameterization": self.parameterization, "param_dtype": self.param_dtype}
        return Dense(features, BIAS_UNIFORM, bias_law, **dtypes, **how, name=name)

    def _readout(self, name: str, bias_law: Law | None = BIAS_UNIFORM) -> Dense:
        return self._dense(self.out, name, bias_law, precision=self.precision, readout=True)

    def _map(self, part: str, layer: int, real: Array, imaginary: Array | None) -> tuple[Array, Array | None]:
        """Return the real and the imaginary part of an affine map of real or of complex numbers."""
        name, precision = f"{part}_{layer}", self.precision if layer else "highest"
        if imaginary is None:
            return self._dense(self.units, name, precision=precision)(real), None
        return ComplexDense(self.units, self.parameterization, self.param_dtype, precision, name=name)(real, imaginary)

    def _hidden(self, layer: int, real: Array, imaginary: Array | None) -> tuple[Array, Array | None]:
        """Return the real and the imaginary part of a layer's wavelets; of real ones None is the latter."""
        omega = self.omega if layer or self.first_omega is None else self.first_omega
        a, b = self._map("hidden", layer, real, imaginary)
        windowed = [a, b]
        if self.wavelet != "complex":
            second = self._map("window", layer, real, imaginary)
            windowed = [*second] if self.wavelet == "real" else [a, b, *second]
        exponent = -(self.scale**2) * sum(part * part for part in windowed if part is not None)
        if b is not None:
            exponent = exponent - omega * b
        window = jnp.exp(exponent)
        sine, cosine = trig.sincos(omega * a)
        return window * cosine, None if self.wavelet == "real" else window * sine
