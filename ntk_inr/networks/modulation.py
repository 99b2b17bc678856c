"""Hadamard modulation of hidden layers by functions of the coordinates (T6 of the theory)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks import initializers, trig
from ntk_inr.networks.dense import Dense
from ntk_inr.networks.encodings import CONSTANTS
from ntk_inr.networks.fields import real
from ntk_inr.networks.products import of_coordinates


class FourierModulation(nn.Module):
    r"""Make factors of hidden units: sines of unit energy with random directions and phases, (T6.2).

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

    omega: float = real(10.0)
    trained: bool = False
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _checks.check_positive(self.omega, "omega")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], features: int, layers: int = 1) -> Float[Array, "n factors"]:
        """Return independent factors of ``layers`` layers at coordinates ``x`` (n, d), (n, layers * features)."""
        shape = (x.shape[-1], layers * features)

        def phase(key: Array) -> Array:
            return jax.random.uniform(key, shape[1:], self.param_dtype, maxval=2 * jnp.pi)

        def direction(key: Array) -> Array:
            return jax.random.normal(key, shape, self.param_dtype)

        if self.trained:
            v = self.param("v", direction)
            b = self.param("b", phase)
        else:
            v = self.variable(CONSTANTS, "v", lambda: direction(self.make_rng("params"))).value
            b = self.variable(CONSTANTS, "b", lambda: phase(self.make_rng("params"))).value
        angle = of_coordinates(self.omega * x, v.astype(x.dtype)) + b.astype(x.dtype)[None, :]
        return 2**0.5 * trig.sin(angle)


class GaborModulation(nn.Module):
    r"""Make factors of hidden units: sines under Gaussian windows anywhere in the domain, as a Gabor network's filters.

    .. math:: g_r(x) = \sqrt2\,e^{-\lVert x-\mu_r\rVert^2/2s^2}\sin(\omega v_r^\top x + b_r),
        \quad \mu_r \sim U[-1, 1]^d

    with v and b as of :class:`FourierModulation`.

    Attributes:
        omega: angular frequency, radians per unit length.
        width: s, in units of the coordinates.
        trained: True puts mu, v and b among the parameters; False in the "constants" collection.
        param_dtype: dtype that they are drawn in.

    Raises:
        ValueError: omega or width is not a finite number above 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> g, _ = GaborModulation(width=0.5).init_with_output(jax.random.key(0), jnp.zeros((5, 2)), 64)
        >>> g.shape
        (5, 64)

    Source: Fathony et al. 2021, Multiplicative Filter Networks (openreview OmtmcPkkhT), section 3.2.
    """

    omega: float = real(10.0)
    width: float = real(0.5)
    trained: bool = False
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _checks.check_positive(self.omega, "omega")
        _checks.check_positive(self.width, "width")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], features: int, layers: int = 1) -> Float[Array, "n factors"]:
        """Return independent factors of ``layers`` layers at coordinates ``x`` (n, d), (n, layers * features)."""
        shape = (layers * features, x.shape[-1])

        def centre(key: Array) -> Array:
            return jax.random.uniform(key, shape, self.param_dtype, -1.0, 1.0)

        if self.trained:
            mu = self.param("mu", centre)
        else:
            mu = self.variable(CONSTANTS, "mu", lambda: centre(self.make_rng("params"))).value
        waves = FourierModulation(self.omega, self.trained, self.param_dtype, name="waves")(x, features, layers)
        return waves * jnp.exp(-squared_distances(x, mu.astype(x.dtype)) / (2 * self.width**2))


def squared_distances(x: Float[Array, "n d"], centres: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Return the squared distances of all pairs, from differences, so that near pairs keep their digits.

    Coordinate by coordinate: no (n, m, d) array.
    """
    return sum((a[:, None] - b[None, :]) ** 2 for a, b in zip(x.T, centres.T, strict=True))


class MLPModulation(nn.Module):
    r"""Make factors of hidden units by a second network of the coordinates, the modulator: one a unit, layer by layer.

    .. math:: g_1 = \mathrm{relu}(V_1x + c_1), \quad g_{l+1} = \mathrm{relu}(V_{l+1}[g_l, x] + c_{l+1})

    The modulator is a ReLU network as wide and deep as the modulated one, with He-normal weights, and is trained
    with it. ``shift`` is added to its factors.

    Attributes:
        shift: added to each factor; 1 starts from a network little modulated.
        param_dtype: dtype that parameters are drawn in.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> g, _ = MLPModulation().init_with_output(jax.random.key(0), jnp.ones((5, 2)), 64, 3)
        >>> g.shape
        (5, 192)

    Source: Mehta et al. 2021, arXiv 2104.03960, section 3, with the coordinates in place of a latent code.
    """

    shift: float = real(1.0)
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], features: int, layers: int = 1) -> Float[Array, "n factors"]:
        """Return the factors of ``layers`` layers at coordinates ``x`` (n, d), (n, layers * features)."""
        h, factors = x, []
        for layer in range(layers):
            # In full precision, since every layer takes the coordinates.
            dense = Dense(
                features,
                initializers.HE_NORMAL,
                param_dtype=self.param_dtype,
                precision="highest",
                name=f"hidden_{layer}",
            )
            factors.append(nn.relu(dense(h)))
            h = jnp.concatenate([factors[-1], x], axis=-1)
        return jnp.concatenate(factors, axis=-1) + self.shift
