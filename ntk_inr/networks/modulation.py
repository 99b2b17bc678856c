"""Hadamard modulation of hidden layers by functions of the coordinates (T6 of the theory)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks import trig
from ntk_inr.networks.encodings import CONSTANTS


class FourierModulation(nn.Module):
    r"""Unit-energy sine factors with random direction and phase, (T6.2).

    .. math:: g_r(x) = \sqrt2\,\sin(\omega v_r^\top x + b_r),\quad v_r \sim N(0, I),\ b_r \sim U[0, 2\pi)

    so that :math:`E\,g^2 = 1` and :math:`E\,g_r(x)g_r(x') = e^{-\omega^2\lVert x-x'\rVert^2/2}`. Fixed,
    these factors multiply the kernel entry by entry and can't raise its variance in the limit of
    infinite width (T6.4); trained, they add a term proportional to omega squared (T6.5).

    :class:`CoordinateMLP` draws independent factors for each hidden layer and multiplies them into
    the activations.

    Attributes:
        omega: angular frequency, radians per unit length.
        trained: True puts v and b among the parameters; False in the "constants" collection.
        param_dtype: dtype that v and b are drawn in.

    Raises:
        ValueError: omega is not a finite number above 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> g, _ = FourierModulation(omega=4.0).init_with_output(jax.random.key(0), jnp.zeros((5, 2)), 64)
        >>> g.shape
        (5, 64)
    """

    omega: float = 10.0
    trained: bool = False
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _checks.check_positive(self.omega, "omega")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], features: int) -> Float[Array, "n features"]:
        """Return ``features`` independent factors at coordinates ``x`` (n, d), shape (n, features)."""
        shape = (x.shape[-1], features)

        def phase(key: Array) -> Array:
            return jax.random.uniform(key, (features,), self.param_dtype, maxval=2 * jnp.pi)

        def direction(key: Array) -> Array:
            return jax.random.normal(key, shape, self.param_dtype)

        if self.trained:
            v = self.param("v", direction)
            b = self.param("b", phase)
        else:
            v = self.variable(CONSTANTS, "v", lambda: direction(self.make_rng("params"))).value
            b = self.variable(CONSTANTS, "b", lambda: phase(self.make_rng("params"))).value
        angle = (self.omega * x) @ v.astype(x.dtype) + b.astype(x.dtype)[None, :]
        return 2**0.5 * trig.sin(angle)
