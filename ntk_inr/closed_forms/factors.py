"""The factors that the first layer's kernel is a product of, and the proxy made of them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr._results import result, static
from ntk_inr.closed_forms.gates import Threshold
from ntk_inr.closed_forms.inputs import Modulator, Preactivations
from ntk_inr.closed_forms.tied_laws import row_gain
from ntk_inr.closed_forms.unit_laws import outer, product
from ntk_inr.infinite.soft_gates import SoftGates
from ntk_inr.networks.two_layer import TwoLayerNetwork


@result
class TwoLayerFactors:
    r"""The factors of the first layer's kernel at infinite width, :math:`H^2_{ij}/H_{ii}H_{jj} = \tau_x\tau_s\tau_g`.

    Attributes:
        R_x2: mean squared norm of what enters the first layer, plus 1 where its biases are trained.
        scale: s, the mean of the kernel's diagonal, :math:`a^2R_x^2S/m` without hidden normalization.
        tau_x: (n, n) squared cosines of the inputs.
        tau_s: (n, n) squared overlaps of the gates over their diagonals.
        tau_g: (n, n) squared kernel of the modulators; None without any.
        active_fraction: share of the units whose gate is open.
        active_units: S, their number; None without a width.

    Source: (2.4), and T2 to T7.
    """

    R_x2: Any
    scale: Any
    tau_x: Any
    tau_s: Any
    tau_g: Any
    active_fraction: float = static()
    active_units: float | None = static()

    @property
    def mean_tau_x(self) -> Any:
        """Mean of tau_x over pairs of different coordinates."""
        return _pair_mean(self.tau_x)

    @property
    def mean_tau_s(self) -> Any:
        """Mean of tau_s over pairs of different coordinates."""
        return _pair_mean(self.tau_s)

    @property
    def mean_tau_g(self) -> Any:
        """Mean of tau_g over pairs of different coordinates; None without modulators."""
        return None if self.tau_g is None else _pair_mean(self.tau_g)

    @property
    def proxy(self) -> Any:
        r"""The variance with equal norms at infinite width, :math:`\frac{s^2}n\sum_{i\ne j}\tau_x\tau_s\tau_g`.

        Without hidden normalization :math:`s = a^2R_x^2S/m`, and this is the paper's proxy, of (2.4).
        """
        tau = self.tau_x * self.tau_s * (1.0 if self.tau_g is None else self.tau_g)
        return self.scale**2 * (tau.shape[0] - 1) * _pair_mean(tau)

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: scales, and the similarities' means over pairs."""
        names = ("R_x2", "active_fraction", "active_units", "scale", "mean_tau_x", "mean_tau_s", "mean_tau_g", "proxy")
        return {name: getattr(self, name) for name in names}


def two_layer_factors(
    net: TwoLayerNetwork,
    gate: Threshold | SoftGates,
    pre: Preactivations,
    gradient_square: Float[Array, "n n"],
    overlap_square: Float[Array, "n n"],
    modulators: list[Modulator],
    *,
    gradient_unit: Array,
) -> TwoLayerFactors | None:
    """Return the factors of the kernel of w and b from the squares of two of them; None if neither is trained.

    ``gradient_square`` is of the gradient's Gram matrix divided by ``gradient_unit``.
    """
    if not {"weights", "bias"} & set(net.trained):
        return None
    overlaps = jnp.sqrt(jnp.diagonal(overlap_square))
    rows = row_gain(net, gate, pre)
    norms = pre.gradient_squares / gradient_unit
    tau_x = gradient_square / outer(norms, norms)
    return TwoLayerFactors(
        R_x2=pre.gradient_squares.mean(),
        active_fraction=gate.fraction,
        active_units=None,
        scale=(net.scale**2 * pre.gradient_squares * overlaps * rows**2).mean(),
        tau_x=tau_x,
        tau_s=overlap_square / outer(overlaps, overlaps),
        tau_g=product((m.kernel**2 for m in modulators), tau_x) if modulators else None,
    )


def _pair_mean(values: Array) -> Array:
    """Return the mean off the diagonal, 0 for a single coordinate."""
    n = values.shape[0]
    return jnp.where(jnp.eye(n, dtype=bool), 0, values).sum() / max(n * (n - 1), 1)
