"""Sparse activations: only the largest units of each example pass (T7 of the theory)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr._roots import bisect
from ntk_inr.networks.fields import REAL, WHOLE, real
from ntk_inr.networks.normalization import Sphere

Mode = Literal["hard", "sphere", "soft"]
Soft = Literal["shrinkage", "gated", "straight_through"]
Schedule = Callable[[Any], Any]
"""A function from the number of training steps to a value, such as optax's schedules."""


@dataclasses.dataclass(frozen=True)
class TopK:
    r"""Keep the k largest of the m units of each example.

    "hard" gates, :math:`h = u\,1\{u \ge u_{(k)}\}`; its derivative is the gate (T7.1).
    "sphere" (TopK-SP) projects the survivors to the sphere of radius C, :math:`C\,h/\lVert h\rVert` (T7.7).
    "soft" uses :math:`s = \mathrm{sigmoid}((u - t)/T)`, with t such that :math:`\sum_r s_r = k`, taken as a
    constant by the gradient (so that training follows :func:`training_kernel`), in one of three ways:

    * "shrinkage" :math:`T\,\mathrm{softplus}((u-t)/T)`, whose derivative is s; its kernel tends to the hard
      gate's as T falls. The default. It takes the threshold off, so that the signal shrinks layer by layer: in
      deep networks with few units put a sphere before the gate, or take another way.
    * "gated" :math:`u\,s`, whose kernel's diagonal diverges as T falls (T7.11).
    * "straight_through" :math:`u\,\mathrm{stop\_gradient}(s)`.

    Args:
        k: units that pass; or a schedule, a function of the training step such as optax's, whose value is rounded.
            :func:`ntk_inr.fit` counts the steps.
        mode: "hard", "sphere" or "soft".
        temperature: T of "soft", in units of u; or a schedule.
        soft: how "soft" uses its gate.
        radius: C of "sphere"; None is sqrt(m).

    Raises:
        ValueError: k below 1 or above the number of units (when called), a temperature that is not above 0 or
            is missing or unused, an unknown mode, a schedule without a step.

    Example:
        >>> import jax.numpy as jnp
        >>> TopK(k=2)(jnp.array([[3.0, 0.5, 2.0, 1.0]])).tolist()
        [[3.0, 0.0, 2.0, 0.0]]

        Dense at first, sparse at the end of training:

        >>> import optax
        >>> TopK(k=optax.linear_schedule(256, 32, 1000)).at(500).k
        144
    """

    k: int | Schedule = dataclasses.field(metadata=WHOLE)
    mode: Mode = "hard"
    temperature: float | Schedule | None = dataclasses.field(default=None, metadata=REAL)
    soft: Soft = "shrinkage"
    radius: float | None = real(None)

    def __post_init__(self) -> None:
        if not callable(self.k):
            _checks.check_positive(self.k, "k", integer=True)
        _checks.check_choice(self.mode, get_args(Mode), "mode")
        _checks.check_choice(self.soft, get_args(Soft), "soft")
        if self.radius is not None:
            _checks.check_positive(self.radius, "radius")
        if self.mode == "soft":
            if self.temperature is None:
                raise ValueError('mode="soft" needs a temperature, in units of the activations; 0.1 is a start.')
            if not callable(self.temperature):
                _checks.check_positive(self.temperature, "temperature")
        elif self.temperature is not None:
            raise ValueError(f'temperature={self.temperature} has no effect with mode={self.mode!r}; use mode="soft".')

    @property
    def scheduled(self) -> bool:
        """Whether k or the temperature follows a schedule."""
        return callable(self.k) or callable(self.temperature)

    def settled(self) -> tuple[int, float | None]:
        """Return k and the temperature, which must both be numbers.

        Raises:
            ValueError: one of them follows a schedule.
        """
        if callable(self.k) or callable(self.temperature):
            raise ValueError(f"sparsity={self!r} follows a schedule; take it at a step of training, by .at(step).")
        return self.k, self.temperature

    def at(self, step: int) -> TopK:
        """Return the gate with its settings as they are after ``step`` training steps."""
        k, temperature = self._settings(step)
        fixed = None if temperature is None else float(temperature)
        return dataclasses.replace(self, k=round(float(k)), temperature=fixed)

    def __call__(self, u: Float[Array, "*batch m"], step: Any = None) -> Float[Array, "*batch m"]:
        """Return ``u`` with all but the k largest of each last-axis row suppressed; ``step`` is of the schedules."""
        m = u.shape[-1]
        k, temperature = self.settled() if step is None else self._settings(step)
        if isinstance(k, int):
            if k > m:
                raise ValueError(f"k is {k} but there are only {m} units; choose k up to {m}.")
            if temperature is not None and k == m:
                raise ValueError(f"k is {k}, all units; a soft gate then has no finite threshold. Choose less.")
        if temperature is not None:
            # A schedule may start with all units: with one less, then.
            return self._soft(u, k if isinstance(k, int) else jnp.clip(jnp.round(k), 1, m - 1), temperature)
        count = k if isinstance(k, int) else jnp.clip(jnp.round(k).astype(int), 1, m)
        kept = u * (u >= kth_largest(jax.lax.stop_gradient(u), count))
        return Sphere(radius=self.radius)(kept) if self.mode == "sphere" else kept

    def _settings(self, step: Any) -> tuple[Any, Any]:
        k, temperature = self.k, self.temperature
        return k(step) if callable(k) else k, temperature(step) if callable(temperature) else temperature

    def _soft(self, u: Array, k: Any, temperature: Any) -> Array:
        z = u / temperature
        threshold = soft_threshold(jax.lax.stop_gradient(z), k)
        if self.soft == "shrinkage":
            return temperature * jax.nn.softplus(z - threshold)
        gate = jax.nn.sigmoid(z - threshold)
        return u * (gate if self.soft == "gated" else jax.lax.stop_gradient(gate))


def kth_largest(u: Float[Array, "*batch m"], k: Any) -> Float[Array, "*batch 1"]:
    """Return the k-th largest entry of each row; ``k`` from 1 to m may be traced.

    Exact, by bisection of the bit pattern, whose order as an integer is that of the numbers: on CPU 20 times faster
    than ``jax.lax.top_k``, which sorts. NaN counts as the largest.
    """
    bits = 8 * u.dtype.itemsize
    whole, sign = jnp.dtype(f"uint{bits}"), 1 << (bits - 1)
    code = jax.lax.bitcast_convert_type(u, whole)
    negative = (code & whole.type(sign)) != 0
    order = jnp.where(negative, ~code, code | whole.type(sign))

    def add_bit(place: Any, largest: Array) -> Array:
        candidate = largest | (whole.type(1) << (bits - 1 - place).astype(whole))
        return jnp.where((order >= candidate).sum(-1, keepdims=True) >= k, candidate, largest)

    # A loop over bits, so that each pass over the entries stays one fused count.
    largest = jax.lax.fori_loop(0, bits, add_bit, jnp.zeros_like(order[..., :1]))
    largest = jnp.where((largest & whole.type(sign)) != 0, largest & whole.type(sign - 1), ~largest)
    return jax.lax.bitcast_convert_type(largest, u.dtype)


@jax.custom_jvp
def soft_threshold(z: Float[Array, "*batch m"], k: Any) -> Float[Array, "*batch 1"]:
    r"""Return t with :math:`\sum_r \mathrm{sigmoid}(z_r - t) = k < m` for each row, by bisection.

    Its derivative is that of t, :math:`\sum_r w_r\,dz_r` with weights in proportion to the slopes of the sigmoids.
    That of k, which is a whole number, is not taken.
    """
    m = z.shape[-1]
    # With all entries at the largest, or at the smallest, the sum is k at these two.
    shift = jnp.log((m - k) / jnp.asarray(k, z.dtype))
    low, high = z.min(-1, keepdims=True) + shift, z.max(-1, keepdims=True) + shift

    def above(threshold: Array) -> Array:
        return jax.nn.sigmoid(z - threshold).sum(-1, keepdims=True) > k

    # The bracket is about twice as wide as the largest entry; halved so often, it is within that one's last digit.
    return bisect(above, low, high, jnp.finfo(z.dtype).nmant + 5)


@soft_threshold.defjvp
def _of_soft_threshold(values: tuple[Array, Any], changes: tuple[Array, Any]) -> tuple[Array, Array]:
    threshold = soft_threshold(*values)
    away = jnp.abs(values[0] - threshold)
    # By logarithms, since far from the threshold the slopes underflow.
    weights = jax.nn.softmax(-away - 2 * jax.nn.softplus(-away))
    return threshold, (weights * changes[0]).sum(-1, keepdims=True)
