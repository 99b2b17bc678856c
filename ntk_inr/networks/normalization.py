"""Normalization of each example: to a sphere (T5 of the theory), or to mean zero and variance one."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks

PLACEMENTS = ("input", "hidden_post", "hidden_pre")


@dataclasses.dataclass(frozen=True)
class Sphere:
    r"""Projection of each row to the sphere of radius C, (T5.4).

    .. math:: z = C\,\frac{h}{\sqrt{\lVert h\rVert^2 + \epsilon m}}

    The epsilon is inside the norm, in units of the mean square of an entry, so a row of zeros gives
    zeros and a finite gradient.

    Args:
        placement: where :class:`CoordinateMLP` puts it: "input" normalises what enters the first
            layer (after any encoding); "hidden_post" each hidden layer after activation and
            modulation; "hidden_pre" each hidden layer's pre-activation.
        radius: C; None is sqrt(m), m the length of a row (root mean square 1).
        epsilon: added to the mean square.

    Raises:
        ValueError: unknown placement, or radius or epsilon not above 0.

    On raw coordinates "input" loses the radius: every point of a ray from the origin becomes one
    point. Encode first.

    Example:
        >>> import jax.numpy as jnp
        >>> z = Sphere(radius=1.0)(jnp.array([[3.0, 4.0]]))
        >>> [round(float(v), 3) for v in z[0]]
        [0.6, 0.8]
    """

    placement: Literal["input", "hidden_post", "hidden_pre"] = "hidden_post"
    radius: float | None = None
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _checks.check_choice(self.placement, PLACEMENTS, "placement")
        _checks.check_positive(self.epsilon, "epsilon")
        if self.radius is not None:
            _checks.check_positive(self.radius, "radius")

    def __call__(self, h: Float[Array, "*batch m"]) -> Float[Array, "*batch m"]:
        """Return ``h`` with each last-axis row scaled to norm C."""
        m = h.shape[-1]
        radius = m**0.5 if self.radius is None else self.radius
        mean_square = jnp.mean(h * h, axis=-1, keepdims=True) + self.epsilon
        return h * (radius / m**0.5 / jnp.sqrt(mean_square))


@dataclasses.dataclass(frozen=True)
class LayerNorm:
    r"""Each row shifted to mean zero and scaled to variance one, with nothing trained.

    .. math:: z = (h - \bar h) / \sqrt{\mathrm{Var}(h) + \epsilon}

    At infinite width this is the sphere of radius sqrt(m) where h has mean zero, as pre-activations do.

    Args:
        placement: as of :class:`Sphere`.
        epsilon: added to the variance.

    Raises:
        ValueError: unknown placement, or epsilon not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> z = LayerNorm()(jnp.array([[1.0, 3.0]]))
        >>> [round(float(v), 3) for v in z[0]]
        [-1.0, 1.0]

    Source: Ba et al. 2016, arXiv 1607.06450, without gain and bias.
    """

    placement: Literal["input", "hidden_post", "hidden_pre"] = "hidden_pre"
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _checks.check_choice(self.placement, PLACEMENTS, "placement")
        _checks.check_positive(self.epsilon, "epsilon")

    def __call__(self, h: Float[Array, "*batch m"]) -> Float[Array, "*batch m"]:
        """Return ``h`` with each last-axis row standardised."""
        centred = h - jnp.mean(h, axis=-1, keepdims=True)
        return centred / jnp.sqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.epsilon)


NORMALIZATIONS: dict[str, Sphere | LayerNorm] = {"sphere": Sphere(), "layer": LayerNorm()}
