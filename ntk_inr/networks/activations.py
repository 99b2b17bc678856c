"""Elementwise nonlinearities and the weight laws that go with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ntk_inr import _checks
from ntk_inr.networks import initializers, trig
from ntk_inr.networks.fields import real
from ntk_inr.networks.initializers import Law
from ntk_inr.networks.modulated_sines import Finer, Hosc, Sinc, Spder


@runtime_checkable
class Activation(Protocol):
    """What :class:`CoordinateMLP` needs of an activation beyond calling it elementwise.

    One that wants biases of its own has a method ``bias_law`` too, like ``law``.
    """

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        ...

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return the law of the weights of a layer; ``first`` and ``readout`` say which layer."""
        ...


@dataclasses.dataclass(frozen=True)
class ReLU:
    """``max(u, 0)``, with He-normal weights and a LeCun-normal readout.

    Example:
        >>> import jax.numpy as jnp
        >>> float(ReLU()(jnp.float32(-2.0)))
        0.0
    """

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        return nn.relu(u)

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return He-normal, LeCun-normal for the readout."""
        return initializers.LECUN_NORMAL if readout else initializers.HE_NORMAL


@dataclasses.dataclass(frozen=True)
class Sine:
    """SIREN's ``sin(omega * u + phase)`` (Sitzmann et al. 2020, arXiv 2006.09661); phase pi/2 is the cosine.

    Weights follow section 3.2 there: U(±1/d) in the first layer, then U(±sqrt(6/n)/omega).

    Args:
        omega: angular frequency inside the sine; 30 suits images scaled to [-1, 1].
        phase: added inside the sine, in radians.
        first_omega: angular frequency of the first layer; None is omega. It multiplies the layer's biases as well as
            its weights: SIREN's ``first_omega_0``, 3000 for sound.

    Raises:
        ValueError: omega or first_omega is not a finite number above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(Sine(omega=2.0)(jnp.float32(0.5))), 4)
        0.8415
    """

    omega: float = real(30.0)
    phase: float = real(0.0)
    first_omega: float | None = real(None)

    def __post_init__(self) -> None:
        initializers.check_frequencies(self.omega, self.first_omega)

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        return trig.sin(self.omega * u + self.phase)

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return U(±1/d) for the first layer, U(±sqrt(6/n)/omega) for the others."""
        return initializers.siren_first() if first else initializers.siren_hidden(self.omega)


@dataclasses.dataclass(frozen=True)
class Gauss:
    r"""The bump :math:`e^{-u^2/(2s^2)}`, with PyTorch's default weights U(±1/sqrt(n)), as its authors use.

    Args:
        width: s.

    Raises:
        ValueError: width is not a finite number above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(Gauss(width=0.5)(jnp.float32(0.5))), 4)
        0.6065

    Source: Ramasinghe and Lucey 2022, arXiv 2111.15135.
    """

    width: float = real(0.1)

    def __post_init__(self) -> None:
        _checks.check_positive(self.width, "width")

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        return jnp.exp(-((u / self.width) ** 2) / 2)

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return U(±1/sqrt(n))."""
        return initializers.BIAS_UNIFORM


@dataclasses.dataclass(frozen=True)
class Quadratic:
    r"""The bump with long tails :math:`1/(1 + (u/s)^2)`, with weights U(±1/sqrt(n)).

    Args:
        width: s.

    Raises:
        ValueError: width is not a finite number above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> float(Quadratic(width=0.5)(jnp.float32(0.5)))
        0.5

    Source: Ramasinghe and Lucey 2022, arXiv 2111.15135, table 1.
    """

    width: float = real(0.1)

    def __post_init__(self) -> None:
        _checks.check_positive(self.width, "width")

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        return 1 / (1 + (u / self.width) ** 2)

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return U(±1/sqrt(n))."""
        return initializers.BIAS_UNIFORM


@dataclasses.dataclass(frozen=True)
class Gabor:
    r"""The wave under a window :math:`e^{-s^2u^2}\cos(\omega u + \varphi)`, with weights U(±1/sqrt(n)).

    It is the real part of WIRE's wavelet at one real pre-activation u. WIRE's networks take complex ones, or, where
    they are real, two for each unit, one for the wave and one for the window: :class:`ntk_inr.networks.Wire`.

    Args:
        scale: s, the inverse width of the window.
        omega: angular frequency of the wave.
        phase: :math:`\varphi`, in radians.
        first_omega: angular frequency in the first layer; None is omega.

    Raises:
        ValueError: scale, omega or first_omega is not a finite number above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> float(Gabor()(jnp.float32(0.0)))
        1.0

    Source: Saragadam et al. 2023, arXiv 2301.05187.
    """

    scale: float = real(10.0)
    omega: float = real(20.0)
    phase: float = real(0.0)
    first_omega: float | None = real(None)

    def __post_init__(self) -> None:
        _checks.check_positive(self.scale, "scale")
        initializers.check_frequencies(self.omega, self.first_omega)

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        return jnp.exp(-((self.scale * u) ** 2)) * trig.cos(self.omega * u + self.phase)

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return U(±1/sqrt(n))."""
        return initializers.BIAS_UNIFORM


@dataclasses.dataclass(frozen=True)
class Erf:
    """``erf(w u)``, a sigmoid whose infinite-width kernel is closed, with LeCun-normal weights.

    Args:
        slope: w.

    Raises:
        ValueError: slope is not a finite number above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(Erf()(jnp.float32(1.0))), 4)
        0.8427
    """

    slope: float = real(1.0)

    def __post_init__(self) -> None:
        _checks.check_positive(self.slope, "slope")

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        return jax.scipy.special.erf(self.slope * u)

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return LeCun-normal."""
        return initializers.LECUN_NORMAL


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """Apply any elementwise callable, with LeCun-normal weights."""

    function: Callable[[Array], Array]

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        return self.function(u)

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return LeCun-normal."""
        return initializers.LECUN_NORMAL


ACTIVATIONS: dict[str, Activation] = {
    "relu": ReLU(),
    "sine": Sine(),
    "gauss": Gauss(),
    "quadratic": Quadratic(),
    "gabor": Gabor(),
    "finer": Finer(),
    "spder": Spder(),
    "sinc": Sinc(),
    "hosc": Hosc(),
    "erf": Erf(),
    "tanh": Elementwise(jnp.tanh),
    "gelu": Elementwise(nn.gelu),
}


def resolve(activation: str | Callable[[Array], Array]) -> Activation:
    """Return an activation from its name, or from a callable, which gets LeCun-normal weights if it has no law."""
    if isinstance(activation, str):
        _checks.check_choice(activation, ACTIVATIONS, "activation")
        return ACTIVATIONS[activation]
    if not callable(activation):
        raise TypeError(f"activation is {activation!r}; expected a name ({', '.join(ACTIVATIONS)}) or a callable.")
    return activation if isinstance(activation, Activation) else Elementwise(activation)


def of_layer(activation: Any, *, first: bool) -> Any:
    """Return the activation of a layer: in the first one the frequency is ``first_omega``, where that is given."""
    omega = getattr(activation, "first_omega", None)
    return dataclasses.replace(activation, omega=omega) if first and omega is not None else activation
