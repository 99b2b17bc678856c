"""Sparse activations: only the largest units of each example pass (T7 of the theory)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks.normalization import Sphere

Mode = Literal["hard", "sphere", "soft"]
Soft = Literal["shrinkage", "gated", "straight_through"]
# Each halves the bracket of the threshold; this many reach float64's last digit.
_BISECTIONS = 60


@dataclasses.dataclass(frozen=True)
class TopK:
    r"""Keep the k largest of the m units of each example.

    "hard" gates, :math:`h = u\,1\{u \ge u_{(k)}\}`; its derivative is the gate (T7.1).
    "sphere" (TopK-SP) projects the survivors to the sphere of radius C, :math:`C\,h/\lVert h\rVert` (T7.7).
    "soft" uses :math:`s = \mathrm{sigmoid}((u - t)/T)`, with t such that :math:`\sum_r s_r = k`, taken as a
    constant by the gradient, in one of three ways:

    * "shrinkage" :math:`T\,\mathrm{softplus}((u-t)/T)`, whose derivative is s; its kernel tends to the hard
      gate's as T falls. The default.
    * "gated" :math:`u\,s`, whose kernel's diagonal diverges as T falls (T7.11).
    * "straight_through" :math:`u\,\mathrm{stop\_gradient}(s)`.

    Args:
        k: units that pass.
        mode: "hard", "sphere" or "soft".
        temperature: T of "soft", in units of u.
        soft: how "soft" uses its gate.
        radius: C of "sphere"; None is sqrt(m).

    Raises:
        ValueError: k below 1 or above the number of units (when called), a temperature that is not above 0 or
            is missing or unused, an unknown mode.

    Example:
        >>> import jax.numpy as jnp
        >>> TopK(k=2)(jnp.array([[3.0, 0.5, 2.0, 1.0]])).tolist()
        [[3.0, 0.0, 2.0, 0.0]]
    """

    k: int
    mode: Mode = "hard"
    temperature: float | None = None
    soft: Soft = "shrinkage"
    radius: float | None = None

    def __post_init__(self) -> None:
        _checks.check_positive(self.k, "k", integer=True)
        _checks.check_choice(self.mode, get_args(Mode), "mode")
        _checks.check_choice(self.soft, get_args(Soft), "soft")
        if self.radius is not None:
            _checks.check_positive(self.radius, "radius")
        if self.mode == "soft":
            if self.temperature is None:
                raise ValueError('mode="soft" needs a temperature, in units of the activations; 0.1 is a start.')
            _checks.check_positive(self.temperature, "temperature")
        elif self.temperature is not None:
            raise ValueError(f'temperature={self.temperature} has no effect with mode={self.mode!r}; use mode="soft".')

    def __call__(self, u: Float[Array, "*batch m"]) -> Float[Array, "*batch m"]:
        """Return ``u`` with all but the k largest of each last-axis row suppressed."""
        m = u.shape[-1]
        if self.k > m:
            raise ValueError(f"k is {self.k} but there are only {m} units; choose k up to {m}.")
        if self.temperature is not None:
            if self.k == m:
                raise ValueError(f"k is {self.k}, all units; a soft gate then has no finite threshold. Choose less.")
            return self._soft(u, self.temperature)
        least = jax.lax.top_k(jax.lax.stop_gradient(u), self.k)[0][..., -1:]
        kept = u * (u >= least)
        return Sphere(radius=self.radius)(kept) if self.mode == "sphere" else kept

    def _soft(self, u: Array, temperature: float) -> Array:
        z = u / temperature
        threshold = soft_threshold(jax.lax.stop_gradient(z), self.k)
        if self.soft == "shrinkage":
            return temperature * jax.nn.softplus(z - threshold)
        gate = jax.nn.sigmoid(z - threshold)
        return u * (gate if self.soft == "gated" else jax.lax.stop_gradient(gate))


def soft_threshold(z: Float[Array, "*batch m"], k: int) -> Float[Array, "*batch 1"]:
    r"""Return t with :math:`\sum_r \mathrm{sigmoid}(z_r - t) = k < m` for each row, by bisection."""
    m = z.shape[-1]
    # With all entries at the largest, or at the smallest, the sum is k at these two.
    shift = jnp.asarray(math.log((m - k) / k), z.dtype)
    low, high = z.min(-1, keepdims=True) + shift, z.max(-1, keepdims=True) + shift

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        above = jax.nn.sigmoid(z - middle).sum(-1, keepdims=True) > k
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return (low + high) / 2
