"""Activations that bend a sine: its frequency (FINER), its height (SPDER, sinc), or its shape (HOSC)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from ntk_inr import _checks
from ntk_inr.networks import initializers, trig
from ntk_inr.networks.fields import real
from ntk_inr.networks.initializers import Law

# Below this sin(z) / z is taken from its series.
_NEAR_ZERO = 1e-2


@dataclasses.dataclass(frozen=True)
class Finer:
    r"""FINER's :math:`\sin(\omega(|u| + 1)u)`, whose frequency grows with the pre-activation.

    Weights are SIREN's. Wide biases in the first layer, U(±k), give its units frequencies up to
    :math:`\omega(k + 1)`.

    Args:
        omega: angular frequency at u = 0.
        bias_spread: k; None is U(±1/sqrt(d)), as the reference code has it by default.
        frozen_scale: take :math:`|u| + 1` as a constant in derivatives, as the reference code does by default.
            Derivatives by the coordinates are then not those of the function: False for equations and eikonal losses.
            Nor is the kernel of :func:`ntk` the one that training follows, which is :func:`training_kernel`.
        first_omega: angular frequency in the first layer; None is omega.

    Raises:
        ValueError: omega, bias_spread or first_omega is not a finite number above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(Finer(omega=1.0)(jnp.float32(1.0))), 4)
        0.9093

    Source: Liu et al. 2024, arXiv 2312.02434.
    """

    omega: float = real(30.0)
    bias_spread: float | None = real(None)
    frozen_scale: bool = True
    first_omega: float | None = real(None)

    def __post_init__(self) -> None:
        initializers.siren(self.omega, self.bias_spread)
        initializers.check_frequencies(self.omega, self.first_omega)

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        scale = jnp.abs(u) + 1
        return trig.sin(self.omega * (jax.lax.stop_gradient(scale) if self.frozen_scale else scale) * u)

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return SIREN's laws."""
        return initializers.siren(self.omega).law(first=first, readout=readout)

    def bias_law(self, *, first: bool, readout: bool) -> Law:
        """Return U(±k) for the first layer."""
        return initializers.siren(self.omega, self.bias_spread).bias_law(first=first, readout=readout)


@dataclasses.dataclass(frozen=True)
class Spder:
    r"""SPDER's damped sine, :math:`\sin(\omega u)\sqrt{|\omega u|}`, with SIREN's weights.

    Its second derivative is infinite at 0; the first is 0 there.

    Args:
        omega: angular frequency.
        first_omega: angular frequency in the first layer; None is omega.

    Raises:
        ValueError: omega or first_omega is not a finite number above 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> float(jax.grad(Spder())(0.0))
        0.0

    Source: Shah and Sitawarin 2023, arXiv 2306.15242.
    """

    omega: float = real(30.0)
    first_omega: float | None = real(None)

    def __post_init__(self) -> None:
        initializers.check_frequencies(self.omega, self.first_omega)

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        z = self.omega * u
        # The root has no derivative at 0, where the product's is 0.
        away = jnp.abs(z) > jnp.finfo(z.dtype).tiny
        return trig.sin(z) * jnp.where(away, jnp.sqrt(jnp.where(away, jnp.abs(z), 1)), 0)

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return SIREN's laws."""
        return initializers.siren(self.omega).law(first=first, readout=readout)


@dataclasses.dataclass(frozen=True)
class Sinc:
    r"""The cardinal sine :math:`\sin(\omega u)/(\omega u)`, 1 at 0, with weights U(±1/sqrt(n)).

    Args:
        omega: angular frequency, the band limit.
        first_omega: angular frequency in the first layer; None is omega.

    Raises:
        ValueError: omega or first_omega is not a finite number above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(Sinc(omega=1.0)(jnp.float32(jnp.pi / 2))), 4)
        0.6366

    Source: Saratchandran et al. 2024, arXiv 2402.05427.
    """

    omega: float = real(30.0)
    first_omega: float | None = real(None)

    def __post_init__(self) -> None:
        initializers.check_frequencies(self.omega, self.first_omega)

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        z = self.omega * u
        near = jnp.abs(z) < _NEAR_ZERO
        z2 = z * z
        far = jnp.where(near, 1, z)
        return jnp.where(near, 1 - z2 / 6 * (1 - z2 / 20), trig.sin(far) / far)

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return U(±1/sqrt(n))."""
        return initializers.BIAS_UNIFORM


@dataclasses.dataclass(frozen=True)
class Hosc:
    r"""HOSC's :math:`\tanh(\beta\sin(\omega u))`: a sine at small beta, a square wave at large; SIREN's weights.

    Args:
        sharpness: beta.
        omega: angular frequency.
        first_omega: angular frequency in the first layer; None is omega.

    Raises:
        ValueError: sharpness, omega or first_omega is not a finite number above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(Hosc(sharpness=2.0, omega=1.0)(jnp.float32(jnp.pi / 2))), 4)
        0.964

    Source: Serrano et al. 2024, arXiv 2401.10967.
    """

    sharpness: float = real(8.0)
    omega: float = real(30.0)
    first_omega: float | None = real(None)

    def __post_init__(self) -> None:
        _checks.check_positive(self.sharpness, "sharpness")
        initializers.check_frequencies(self.omega, self.first_omega)

    def __call__(self, u: Array, /) -> Array:
        """Return the activation of each entry."""
        return jnp.tanh(self.sharpness * trig.sin(self.omega * u))

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return SIREN's laws."""
        return initializers.siren(self.omega).law(first=first, readout=readout)
