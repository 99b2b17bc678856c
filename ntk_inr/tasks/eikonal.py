"""Signed distance learnt from points and normals alone, through the eikonal equation."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from ntk_inr import _checks


@dataclasses.dataclass(frozen=True)
class EikonalLoss:
    r"""The loss of a signed distance f that is known only where it is zero, per example.

    .. math:: \lambda_e(\lVert\nabla f\rVert-1)^2 + \begin{cases}
        \lambda_s |f| + \lambda_n\lVert\nabla f-n\rVert & \text{on the surface}\\
        \lambda_a\exp(-\alpha|f|) + \lambda_o\max(0, b - f) & \text{off it}\end{cases}

    where b is a distance that f is known to have at least, as outside the box around the surface; it keeps
    networks that do not begin as a ball from taking far places for inside.

    Equal settings make equal losses, so that compiled training steps are found again.

    Args:
        surface: :math:`\lambda_s`.
        normal: :math:`\lambda_n`; 0 where normals are not to be trusted.
        eikonal: :math:`\lambda_e`.
        away: :math:`\lambda_a`, which keeps f from being zero elsewhere; 0 leaves it out, as in IGR.
        outside: :math:`\lambda_o`; it counts where y says that a place is outside.
        sharpness: :math:`\alpha`, per unit of length.

    Raises:
        ValueError: a negative weight, or sharpness not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> prediction = jnp.array([[0.5, 1.0, 0.0, 0.0]])  # a value, and a gradient
        >>> on_surface = jnp.array([[1.0, 1.0, 0.0, 0.0]])  # a flag, and a normal
        >>> [float(loss) for loss in EikonalLoss(surface=2.0)(prediction, on_surface)]
        [1.0]

    Source: Gropp et al., "Implicit Geometric Regularization for Learning Shapes" (ICML 2020),
    arXiv 2002.10099; the term off the surface is of Sitzmann et al., "Implicit Neural Representations with Periodic
    Activation Functions" (2020), arXiv 2006.09661.
    """

    surface: float = 1.0
    normal: float = 1.0
    eikonal: float = 0.1
    away: float = 0.1
    outside: float = 1.0
    sharpness: float = 50.0

    def __post_init__(self) -> None:
        for name in ("surface", "normal", "eikonal", "away", "outside"):
            _checks.check_positive(getattr(self, name), name, least=0)
        _checks.check_positive(self.sharpness, "sharpness")

    def __call__(self, prediction: Array, y: Array) -> Array:
        """Return the loss of each example (n,).

        Args:
            prediction: (n, 1 + d), f and its gradient, as ``observe`` of a shape task gives it.
            y: (n, 1 + d): 1 and the normal on the surface; 0 and zeros off it; -1 and b, with zeros, outside.
        """
        value, slope = prediction[:, 0], prediction[:, 1:]
        on, known, normal = y[:, 0] > 0, y[:, 0] < 0, y[:, 1:]
        unit = (_norm(slope) - 1) ** 2
        there = self.surface * jnp.abs(value) + self.normal * _norm(slope - normal)
        elsewhere = self.away * jnp.exp(-self.sharpness * jnp.abs(value))
        elsewhere += known * self.outside * jnp.maximum(y[:, 1] - value, 0)
        return self.eikonal * unit + jnp.where(on, there, elsewhere)


def _norm(v: Array) -> Array:
    """Return the lengths (n,) of rows (n, d), whose derivative at 0 is 0 rather than NaN."""
    square = (v**2).sum(axis=1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
