"""Positional encodings of coordinates (T4 of the theory)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks import trig
from ntk_inr.networks.fields import real, whole
from ntk_inr.networks.products import of_coordinates

CONSTANTS = "constants"
"""The collection of fixed matrices: initialised with the network, never trained."""


class Identity(nn.Module):
    r"""Multiply the coordinates by a factor.

    Before sines it multiplies the frequencies of the first layer, but not its biases; ``Sine(first_omega=...)``
    multiplies both.

    Attributes:
        scale: the factor.

    Raises:
        ValueError: scale is not a finite number above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> Identity(scale=2.0).apply({}, jnp.array([[0.5]])).tolist()
        [[1.0]]
    """

    scale: float = real(1.0)

    def __post_init__(self) -> None:
        _checks.check_positive(self.scale, "scale")
        super().__post_init__()

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Return the encoding, shape (n, d)."""
        return self.scale * x


class NeRFEncoding(nn.Module):
    r"""NeRF's log-linear encoding, (T4.1).

    .. math:: \gamma(x) = (\sin 2^k \pi x_t, \cos 2^k \pi x_t)_{k < L,\, t \le d}

    Its similarity :math:`\langle\gamma(x), \gamma(x')\rangle = \sum_{t,k}\cos(2^k\pi(x_t - x'_t))`
    depends only on x - x', with constant norm sqrt(L d). The period is 2 per coordinate. On a grid
    of N pixels over [-1, 1] bands above log2(N) alias.

    Attributes:
        bands: number of octaves L.
        include_input: append the raw coordinates, which breaks stationarity and constant norm.

    Raises:
        ValueError: fewer than one band.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoding = NeRFEncoding(bands=4)
        >>> encoding.apply({}, jnp.zeros((5, 2))).shape
        (5, 16)

    Source: Mildenhall et al. 2020, arXiv 2003.08934, eq. (4).
    """

    bands: int = whole(6)
    include_input: bool = False

    def __post_init__(self) -> None:
        _checks.check_positive(self.bands, "bands", integer=True)
        super().__post_init__()

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n features"]:
        """Return the encoding, shape (n, 2 L d), or (n, 2 L d + d) with the input."""
        frequencies = jnp.asarray(jnp.pi * 2.0 ** jnp.arange(self.bands), x.dtype)
        angles = (x[:, :, None] * frequencies[None, None, :]).reshape(x.shape[0], -1)
        parts = trig.sincos(angles)
        return jnp.concatenate([*parts, x] if self.include_input else parts, axis=-1)


class GaussianFourier(nn.Module):
    r"""Random Fourier features, (T4.2).

    .. math:: \gamma(x) = (\cos 2\pi Bx, \sin 2\pi Bx), \qquad B_{ij} \sim N(0, \sigma^2)

    with :math:`\lVert\gamma\rVert^2 = M` and :math:`E\,\tfrac1M\langle\gamma,\gamma'\rangle =
    e^{-2\pi^2\sigma^2\lVert x - x'\rVert^2}`. B is fixed and lives in the "constants" collection, or is trained.

    Attributes:
        features: number of frequencies M; the encoding has 2 M entries.
        scale: standard deviation sigma of the frequencies, in cycles per unit length of coordinates in [-1, 1]. On
            [0, 1], as Tancik et al. have images, the same frequencies have twice that: their 10 is 5 here.
        trained: True puts B among the parameters, as learnable Fourier features do.
        param_dtype: dtype that the frequencies are drawn in.

    Raises:
        ValueError: features below 1, or scale not above 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoding = GaussianFourier(features=128, scale=10.0)
        >>> gamma, _ = encoding.init_with_output(jax.random.key(0), jnp.zeros((5, 2)))
        >>> gamma.shape
        (5, 256)

    Source: Tancik et al. 2020, arXiv 2006.10739, section 6; trained, Li et al. 2021, arXiv 2106.02795.
    """

    features: int = whole(128)
    scale: float = real(10.0)
    trained: bool = False
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _checks.check_positive(self.features, "features", integer=True)
        _checks.check_positive(self.scale, "scale")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n features"]:
        """Return the encoding, shape (n, 2 M)."""

        def draw(key: Array) -> Array:
            return self.scale * jax.random.normal(key, (x.shape[-1], self.features), self.param_dtype)

        if self.trained:
            matrix = self.param("frequencies", draw)
        else:
            matrix = self.variable(CONSTANTS, "frequencies", lambda: draw(self.make_rng("params"))).value
        sine, cosine = trig.sincos(2 * jnp.pi * of_coordinates(x, matrix.astype(x.dtype)))
        return jnp.concatenate([cosine, sine], axis=-1)


class TriangleWave(nn.Module):
    r"""Encode coordinates by triangle waves of doubling frequency, NeRF's encoding without its sines.

    .. math:: \gamma(x) = (\mathrm{tri}(2^{k-1}(x_t+1)))_{k < L,\,t \le d},
        \qquad \mathrm{tri}(s) = 2\,|s \bmod 2 - 1| - 1

    On [-1, 1] the first wave is the coordinate itself, -x, so that no two places share a code.

    Attributes:
        bands: number of octaves L.

    Raises:
        ValueError: fewer than one band.

    Example:
        >>> import jax.numpy as jnp
        >>> TriangleWave(bands=2).apply({}, jnp.array([[0.0], [0.25]])).tolist()
        [[0.0, -1.0], [-0.25, -0.5]]

    Source: Müller et al. 2021, Real-time Neural Radiance Caching, arXiv 2106.12372, section 4, on [0, 1].
    """

    bands: int = whole(6)

    def __post_init__(self) -> None:
        _checks.check_positive(self.bands, "bands", integer=True)
        super().__post_init__()

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n features"]:
        """Return the encoding, shape (n, L d)."""
        octaves = jnp.asarray(2.0 ** (jnp.arange(self.bands) - 1), x.dtype)
        turns = ((x[:, :, None] + 1) * octaves[None, None, :]).reshape(x.shape[0], -1)
        return 2 * jnp.abs(jnp.mod(turns, 2.0) - 1) - 1


class OneBlob(nn.Module):
    r"""Encode each coordinate by Gaussian bumps at the centres of k bins of [-1, 1], a soft one-hot code.

    .. math:: \gamma(x)_{t,r} = e^{-(x_t-c_r)^2/2s^2}, \qquad s = 2/k

    Attributes:
        bins: k.

    Raises:
        ValueError: fewer than two bins.

    Example:
        >>> import jax.numpy as jnp
        >>> OneBlob(bins=16).apply({}, jnp.zeros((5, 2))).shape
        (5, 32)

    Source: Müller et al. 2019, Neural Importance Sampling, arXiv 1808.03856, section 4.3.
    """

    bins: int = whole(32)

    def __post_init__(self) -> None:
        _checks.check_positive(self.bins, "bins", integer=True, least=2)
        super().__post_init__()

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n features"]:
        """Return the encoding, shape (n, k d)."""
        width = 2 / self.bins
        centres = jnp.asarray(-1 + width * (jnp.arange(self.bins) + 0.5), x.dtype)
        return jnp.exp(-(((x[:, :, None] - centres[None, None, :]) / width) ** 2) / 2).reshape(x.shape[0], -1)
