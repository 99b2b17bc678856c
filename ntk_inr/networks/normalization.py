"""Normalize each example to a sphere (T5 of the theory) or to mean 0 and variance 1, or batches, or weights."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks.fields import real

PLACEMENTS = ("input", "hidden_post", "hidden_pre")


@dataclasses.dataclass(frozen=True)
class Sphere:
    r"""Project each row to the sphere of radius C, (T5.4).

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
    radius: float | None = real(None)
    epsilon: float = real(1e-6, tuned=False)

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
    r"""Shift each row to mean zero and scale it to variance one, and by a trained gain and bias where asked.

    .. math:: z = \gamma\,(h - \bar h) / \sqrt{\mathrm{Var}(h) + \epsilon} + \beta

    Layer normalization as it is published has a gain and a bias for each unit, 1 and 0 at first, which
    ``trained=True`` gives. The default, and ``normalization="layer"``, leave them out: at infinite width this is the
    sphere of radius sqrt(m) where h has mean zero, as pre-activations do.

    Args:
        placement: as of :class:`Sphere`.
        epsilon: added to the variance.
        trained: train a gain and a bias for each unit; in :class:`CoordinateMLP`, which holds them as "layer_norm_0"
            and so on.

    Raises:
        ValueError: unknown placement, or epsilon not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> z = LayerNorm()(jnp.array([[1.0, 3.0]]))
        >>> [round(float(v), 3) for v in z[0]]
        [-1.0, 1.0]

    Source: Ba et al. 2016, arXiv 1607.06450.
    """

    placement: Literal["input", "hidden_post", "hidden_pre"] = "hidden_pre"
    epsilon: float = real(1e-6, tuned=False)
    trained: bool = False

    def __post_init__(self) -> None:
        _checks.check_choice(self.placement, PLACEMENTS, "placement")
        _checks.check_positive(self.epsilon, "epsilon")

    def __call__(self, h: Float[Array, "*batch m"]) -> Float[Array, "*batch m"]:
        """Return ``h`` with each last-axis row standardised, which a gain of 1 and a bias of 0 leave as it is."""
        centred = h - jnp.mean(h, axis=-1, keepdims=True)
        return centred / jnp.sqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.epsilon)

    def module(self, *, param_dtype: Any, name: str) -> nn.LayerNorm:
        """Return the Flax module of one layer, with gain and bias."""
        return nn.LayerNorm(self.epsilon, param_dtype=param_dtype, use_fast_variance=False, name=name)


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    r"""Shift and scale each unit to mean zero and variance one over the batch, then by a trained gain and bias.

    .. math:: z = \gamma\,(u - E\,u) / \sqrt{\mathrm{Var}(u) + \epsilon} + \beta

    In training the mean and variance are the batch's, so examples mix, and running averages of them are kept in
    the collection "batch_stats" (:func:`ntk_inr.fit` carries them along); in evaluation these averages stand in.

    Args:
        placement: as of :class:`Sphere`, "hidden_pre" or "hidden_post".
        momentum: share of the old in a running average.
        epsilon: added to the variance.

    Raises:
        ValueError: unknown placement, momentum outside [0, 1), or epsilon not above 0.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> net = ni.CoordinateMLP(features=32, depth=2, normalization=ni.networks.BatchNorm(momentum=0.8))
        >>> apply, params = ni.init(net, jax.random.key(0), jnp.zeros((1, 2)))
        >>> run = ni.fit(apply, params, jnp.eye(2), jnp.ones((2, 1)), steps=5)
        >>> run.apply(run.params, jnp.eye(2)).shape         # with the averages of the training
        (2, 1)

    Source: Ioffe and Szegedy 2015, arXiv 1502.03167; for coordinate networks Cai et al. 2024, arXiv 2407.17834.
    """

    placement: Literal["hidden_post", "hidden_pre"] = "hidden_pre"
    momentum: float = real(0.9)
    epsilon: float = real(1e-5, tuned=False)

    def __post_init__(self) -> None:
        _checks.check_choice(self.placement, PLACEMENTS[1:], "placement")
        _checks.check_positive(self.epsilon, "epsilon")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; expected a share in [0, 1), such as 0.9.")

    def module(self, *, train: bool, name: str) -> nn.BatchNorm:
        """Return the Flax module of one layer."""
        return nn.BatchNorm(not train, momentum=self.momentum, epsilon=self.epsilon, name=name)


@dataclasses.dataclass(frozen=True)
class WeightNorm:
    r"""Train each unit's weights as a length times a direction, :math:`w = g\,v/\lVert v\rVert`.

    At initialisation g is the length of v, so that the function and its kernel are those of the plain network:
    the derivatives of w by g and v together have :math:`JJ^\top = I` there. They part as training changes the length
    of v. v has the shape (fan_in, fan_out) of the layer's weights, g has (fan_out,).

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> key, x = jax.random.key(0), jnp.eye(2)
        >>> kinds = None, ni.networks.WeightNorm()
        >>> nets = [ni.CoordinateMLP(features=32, depth=2, normalization=kind) for kind in kinds]
        >>> (plain, a), (normed, b) = [ni.init(net, key, x) for net in nets]
        >>> bool(jnp.allclose(plain(a, x), normed(b, x), atol=1e-5))
        True
        >>> bool(jnp.allclose(ni.ntk(plain, a, x), ni.ntk(normed, b, x), rtol=1e-4))
        True

    Source: Salimans and Kingma 2016, arXiv 1602.07868.
    """


Normalization = Sphere | LayerNorm | BatchNorm | WeightNorm
NORMALIZATIONS: dict[str, Normalization] = {
    "sphere": Sphere(),
    "layer": LayerNorm(),
    "batch": BatchNorm(),
    "weight": WeightNorm(),
}


def resolve(normalization: Normalization | str | None) -> Normalization | None:
    """Return a normalization from its name; others are returned as they are."""
    if not isinstance(normalization, str):
        return normalization
    _checks.check_choice(normalization, NORMALIZATIONS, "normalization")
    return NORMALIZATIONS[normalization]
