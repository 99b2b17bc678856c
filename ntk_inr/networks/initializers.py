"""Laws that weights and biases are drawn from, and schemes, which give each layer its laws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr import _checks
from ntk_inr.networks.fields import REAL, real, whole

Mode = Literal["fan_in", "fan_out", "fan_avg"]

# Standard deviations, and points there, that means over a normal variable are summed over.
_REACH, _POINTS = 8.0, 16001
_BISECTIONS = 60


@dataclasses.dataclass(frozen=True)
class Law:
    r"""A law of mean ``shift / fan**(power / 2)`` and variance ``gain / fan**power``.

    Keeping the standard deviation apart from the unit draw lets one law serve both
    parameterizations: "standard" stores ``std * draw``, "ntk" stores ``draw`` and multiplies in the
    forward pass, so the function has the same law at initialisation and another kernel.

    Args:
        gain: variance at ``fan = 1``.
        distribution: "normal" or "uniform".
        power: 1 keeps the variance of a sum over inputs fixed; SIREN's first layer has 2, a law that does not
            depend on the layer's size 0.
        mode: what fan counts: inputs, outputs, or their mean.
        shift: mean at ``fan = 1``.

    Example:
        >>> Law(2.0).std(fan_in=8)
        0.5
    """

    gain: float = dataclasses.field(metadata=REAL)
    distribution: Literal["normal", "uniform"] = "normal"
    power: int = whole(1)
    mode: Mode = "fan_in"
    shift: float = real(0.0)

    def variance(self, fan_in: int, fan_out: int | None = None) -> Any:
        """Return the variance in a layer of ``fan_in`` inputs and ``fan_out`` outputs, by default as many."""
        return self.gain / self._fan(fan_in, fan_out) ** self.power

    def std(self, fan_in: int, fan_out: int | None = None) -> Any:
        """Return the standard deviation in a layer of ``fan_in`` inputs and ``fan_out`` outputs."""
        return self.variance(fan_in, fan_out) ** 0.5

    def mean(self, fan_in: int, fan_out: int | None = None) -> float:
        """Return the mean in a layer of ``fan_in`` inputs and ``fan_out`` outputs."""
        return self.shift / self._fan(fan_in, fan_out) ** (self.power / 2)

    def draw(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        """Return an array of ``shape`` with mean 0 and variance 1."""
        if self.distribution == "normal":
            return jax.random.normal(key, shape, dtype)
        bound = math.sqrt(3.0)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    def _fan(self, fan_in: int, fan_out: int | None) -> float:
        fan_out = fan_in if fan_out is None else fan_out
        return {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]


HE_NORMAL = Law(2.0)
"""He et al. 2015, arXiv 1502.01852: keeps the second moment through ReLU."""

LECUN_NORMAL = Law(1.0)
"""LeCun et al. 1998: unit gain, for linear readouts and smooth activations."""

GLOROT_UNIFORM = Law(1.0, "uniform", mode="fan_avg")
"""Glorot and Bengio 2010: keeps both values and gradients where the activation is near the identity."""

BIAS_UNIFORM = Law(1 / 3, "uniform")
"""U(±1/sqrt(fan_in)): the law of weights and biases of the field's reference code (PyTorch's ``Linear``)."""


def check_frequencies(omega: Any, first_omega: Any = None) -> None:
    """Raise where a frequency, or that of the first layer where it has one of its own, is not above 0."""
    for name, value in (("omega", omega), ("first_omega", first_omega)):
        if value is not None:
            _checks.check_positive(value, name)


def siren_first() -> Law:
    """Return SIREN's first-layer law U(±1/d) (Sitzmann et al. 2020, arXiv 2006.09661, section 3.2)."""
    return Law(1 / 3, "uniform", power=2)


def siren_hidden(omega: float) -> Law:
    """Return SIREN's hidden law U(±sqrt(6/n)/omega) (Sitzmann et al. 2020, section 3.2)."""
    return Law(2 / omega**2, "uniform")


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Give the weights and biases of each layer their laws; for the ``initializer`` of a network.

    Attributes:
        hidden: law of the hidden layers' weights.
        first: of the first layer's; None is ``hidden``.
        readout: of the readout's; None is ``hidden``.
        bias: law of the biases.
        first_bias: of the first layer's; None is ``bias``.
        readout_bias: of the readout's; None is ``bias``.

    Example:
        >>> import ntk_inr as ni
        >>> ni.networks.Scheme(ni.networks.Law(2.0), readout=ni.networks.Law(1.0)).law(first=False, readout=True).gain
        1.0
    """

    hidden: Law
    first: Law | None = None
    readout: Law | None = None
    bias: Law = BIAS_UNIFORM
    first_bias: Law | None = None
    readout_bias: Law | None = None

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return the law of a layer's weights."""
        return (self.first if first else self.readout if readout else None) or self.hidden

    def bias_law(self, *, first: bool, readout: bool) -> Law:
        """Return the law of a layer's biases."""
        return (self.first_bias if first else self.readout_bias if readout else None) or self.bias


def siren(omega: float = 30.0, bias_spread: float | None = None) -> Scheme:
    r"""Return SIREN's scheme, for any activation of frequency ``omega``.

    Args:
        omega: angular frequency of the activation.
        bias_spread: k, for first biases in :math:`U(\pm k)`, by which FINER selects its frequencies; None is
            U(±1/sqrt(d)).

    Raises:
        ValueError: omega or bias_spread is not a finite number above 0.

    Source: Sitzmann et al. 2020, arXiv 2006.09661, section 3.2; Liu et al. 2024, arXiv 2312.02434, section 4.2.
    """
    _checks.check_positive(omega, "omega")
    wide = None
    if bias_spread is not None:
        _checks.check_positive(bias_spread, "bias_spread")
        wide = Law(bias_spread**2 / 3, "uniform", power=0)
    return Scheme(siren_hidden(omega), first=siren_first(), first_bias=wide)


def geometric(radius: float = 0.5) -> Scheme:
    r"""Return the scheme by which a ReLU network on raw coordinates starts as the distance to a sphere.

    .. math:: f(x) \approx \lVert x\rVert - r: \qquad W \sim N(0, 2/d_{out}),\ b = 0,
        \quad w \sim N(\sqrt{\pi/m}, 10^{-6}/m),\ b = -r

    Args:
        radius: r.

    Raises:
        ValueError: radius is not a finite number above 0.

    Returns:
        A :class:`Scheme`, for the ``initializer`` of a :class:`CoordinateMLP`.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> net = ni.CoordinateMLP(features=1024, initializer=ni.networks.geometric(0.5))
        >>> apply, params = ni.init(net, jax.random.key(0), jnp.zeros((1, 3)))
        >>> inside, outside = apply(params, jnp.array([[0.0, 0.0, 0.0], [0.0, 0.6, 0.8]]))[:, 0]
        >>> bool(inside < -0.4), bool(outside > 0.4)
        (True, True)

    Source: Atzmon and Lipman 2020, arXiv 1911.10414, theorem 1.
    """
    _checks.check_positive(radius, "radius")
    return Scheme(
        Law(2.0, mode="fan_out"),
        readout=Law(1e-6, shift=math.sqrt(math.pi)),
        bias=Law(0.0),
        readout_bias=Law(0.0, power=0, shift=-radius),
    )


def vi3nr(
    activation: Callable[[Array], Array],
    *,
    sigma: float | None = None,
    inputs: float = 1 / 3,
    distribution: Literal["normal", "uniform"] = "uniform",
) -> Scheme:
    r"""Return the scheme that keeps pre-activations at standard deviation sigma, for any activation.

    .. math:: \mathrm{Var}\,W = \frac{\sigma^2}{m\,E\,\phi(\sigma g)^2}, \qquad g \sim N(0, 1)

    by quadrature, with biases at 0. Gradients keep their variance too where
    :math:`\sigma^2 E\,\phi'(\sigma g)^2 = E\,\phi(\sigma g)^2`, an equation for sigma.

    Args:
        activation: elementwise.
        sigma: standard deviation of the pre-activations; None solves the equation above, at its largest root
            between 0.01 and 100.
        inputs: mean square of what enters the first layer; 1/3 for coordinates uniform in [-1, 1], 1/2 for
            Fourier features.
        distribution: of the weights.

    Raises:
        ValueError: sigma or inputs is not a finite number above 0; sigma is None and no root was found, as for
            ReLU, where every sigma solves the equation, and for tanh, where only 0 does.

    Example:
        >>> import jax
        >>> round(vi3nr(jax.nn.relu, sigma=1.0).hidden.gain, 3)
        2.0

    Source: Koneputugodage et al. 2025, arXiv 2504.19270, sections 3 and 4.
    """
    _checks.check_positive(inputs, "inputs")
    if sigma is None:
        sigma = _balanced(activation)
    _checks.check_positive(sigma, "sigma")
    value, _ = _gaussian_squares(activation, np.array([sigma]))
    return Scheme(
        Law(sigma**2 / float(value[0]), distribution), first=Law(sigma**2 / inputs, distribution), bias=Law(0.0)
    )


def _gaussian_squares(activation: Callable[[Array], Array], sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean squares of the activation and of its derivative at normal arguments, for each sigma."""
    # An even grid sees bumps far narrower than sigma, which Gauss-Hermite's nodes miss.
    nodes = np.linspace(-_REACH, _REACH, _POINTS)
    weights = np.exp(-nodes * nodes / 2)
    with jax.ensure_compile_time_eval():
        u = jnp.asarray(sigma[:, None] * nodes, jnp.float32)
        both = jax.jvp(activation, (u,), (jnp.ones_like(u),))
    value, slope = (np.asarray(part, float) ** 2 @ weights / weights.sum() for part in both)
    return value, slope


def _balanced(activation: Callable[[Array], Array]) -> float:
    """Return the largest sigma at which values and gradients keep their variance together."""

    def excess(sigma: np.ndarray) -> np.ndarray:
        value, slope = _gaussian_squares(activation, sigma)
        return np.log(np.maximum(sigma**2 * slope, 1e-30) / np.maximum(value, 1e-30))

    grid = np.geomspace(0.01, 100, 161)
    ratios = excess(grid)
    # A touch of zero, or rounding about it, is no crossing.
    crossings = np.flatnonzero((np.sign(ratios[1:]) != np.sign(ratios[:-1])) & (np.abs(np.diff(ratios)) > 1e-3))
    if not len(crossings):
        raise ValueError(
            "no sigma in [0.01, 100] keeps the variance of both values and gradients through this activation; give "
            "sigma, the standard deviation that its pre-activations should have, such as sigma=1.0."
        )
    low, high = grid[crossings[-1]], grid[crossings[-1] + 1]
    sign = np.sign(ratios[crossings[-1]])
    for _ in range(_BISECTIONS):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if np.sign(excess(np.array([middle]))[0]) == sign else (low, middle)
    return float(low)


SCHEMES: dict[str, Scheme] = {
    "he": Scheme(HE_NORMAL, readout=LECUN_NORMAL),
    "lecun": Scheme(LECUN_NORMAL),
    "glorot": Scheme(GLOROT_UNIFORM),
    "pytorch": Scheme(BIAS_UNIFORM),
    "siren": siren(),
    "geometric": geometric(),
}
"""The schemes that have no settings of their own to choose, by name."""
