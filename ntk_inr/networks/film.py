"""Feature-wise linear modulation of hidden layers by a latent code."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks.fields import real, whole


class Affine(NamedTuple):
    """The factors and summands of the pre-activations of all hidden layers.

    Attributes:
        scale: (layers, features).
        shift: (layers, features).
    """

    scale: Float[Array, "layers features"]
    shift: Float[Array, "layers features"]


class FiLM(nn.Module):
    r"""Scale and shift each hidden unit's pre-activation by linear functions of a latent code z.

    .. math:: u \mapsto (1 + A_lz)\circ u + B_lz

    The code is a parameter among the others, so one signal is fitted by all of them; for a set of signals share
    everything but "latent", fit that alone to a new signal, and set it with ``params["modulation"]["latent"]``.

    Attributes:
        latent: number of entries of z.
        scale: standard deviation of z's entries, and of A's and B's times sqrt(latent), at initialisation.
        param_dtype: dtype that parameters are drawn in.

    Raises:
        ValueError: latent below 1, or scale not above 0.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> net = ni.CoordinateMLP(features=32, depth=2, activation="sine", modulation=ni.networks.FiLM(latent=8))
        >>> apply, params = ni.init(net, jax.random.key(0), jnp.zeros((1, 2)))
        >>> params["modulation"]["latent"].shape
        (8,)

    Source: Perez et al. 2018, arXiv 1709.07871; for sine networks Chan et al. 2021, arXiv 2012.00926.
    """

    latent: int = whole(64)
    scale: float = real(0.1)
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _checks.check_positive(self.latent, "latent", integer=True)
        _checks.check_positive(self.scale, "scale")
        super().__post_init__()

    @nn.compact
    def __call__(self, features: int, layers: int) -> Affine:
        """Return the scales and shifts of ``layers`` layers of ``features`` units."""
        z = self.param("latent", nn.initializers.normal(self.scale), (self.latent,), self.param_dtype)
        law = nn.initializers.normal(self.scale / self.latent**0.5)
        shape = (self.latent, layers * features)
        gain, shift = (
            # In full precision: it is one row, that all coordinates share.
            jnp.matmul(z[None, :], self.param(name, law, shape, self.param_dtype), precision="highest").reshape(
                layers, features
            )
            for name in ("gain", "shift")
        )
        return Affine(1 + gain, shift)
