"""Instant-NGP's multiresolution hash grid."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks.fields import real, whole

# One for each coordinate; the first is 1, so that neighbours along it stay neighbours in memory.
_PRIMES = np.array([1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737], np.uint32)


class HashGrid(nn.Module):
    r"""Interpolate trained features from the corners of grids of growing resolution.

    Level l has :math:`N_l = \lfloor N_0 b^l\rfloor` cells a side over [-1, 1] and at most :math:`2^T` features
    vectors. Where it has more corners than these, corners share by the hash
    :math:`(\bigoplus_t c_t\pi_t) \bmod 2^T`; where it has fewer, each has its own. Coordinates outside [-1, 1] are
    clipped to it.

    The table is a parameter that is looked up, not multiplied, so :func:`ntk_inr.ntk` takes its own Jacobian:
    exact, in memory n times the table's size; keep ``log2_size`` small for kernels.

    Attributes:
        levels: number of grids L.
        features: entries F at each corner; the encoding has L F.
        log2_size: T.
        base: cells a side of the coarsest grid, N_0.
        growth: b, from one level to the next.
        param_dtype: dtype that the table is drawn in.

    Raises:
        ValueError: a size below 1, growth below 1, a table of more than 2**31 entries, or more than 7 coordinates.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> grid = HashGrid(levels=4, log2_size=8)
        >>> encoded, variables = grid.init_with_output(jax.random.key(0), jnp.zeros((5, 2)))
        >>> encoded.shape, variables["params"]["table"].shape
        ((5, 8), (4, 256, 2))

    Source: Müller et al. 2022, arXiv 2201.05989, section 3.
    """

    levels: int = whole(16)
    features: int = whole(2)
    log2_size: int = whole(14)
    base: int = whole(16)
    growth: float = real(1.5)
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        for name in ("levels", "features", "log2_size", "base"):
            _checks.check_positive(getattr(self, name), name, integer=True)
        _checks.check_positive(self.growth, "growth", least=1)
        if self.log2_size > 30:
            raise ValueError(f"log2_size is {self.log2_size}; expected at most 30, a table of 2**30 rows a level.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n features"]:
        """Return the encoding, shape (n, L F), level by level."""
        d, size = x.shape[1], 2**self.log2_size
        if d > len(_PRIMES):
            raise ValueError(f"x has {d} coordinates a row; the hash has primes for at most {len(_PRIMES)}.")

        def draw(key: Array) -> Array:
            return jax.random.uniform(key, (self.levels, size, self.features), self.param_dtype, -1e-4, 1e-4)

        table = self.param("table", draw).astype(x.dtype)
        cells = [int(self.base * self.growth**level) for level in range(self.levels)]
        corners = np.array(list(itertools.product((0, 1), repeat=d)))
        unit = jnp.clip((x + 1) / 2, 0, 1)
        encoded = []
        for level, count in enumerate(cells):
            place = unit * count
            # The last cell includes its upper edge.
            low = jnp.minimum(jnp.floor(jax.lax.stop_gradient(place)), count - 1)
            within = place - low
            corner = low.astype(jnp.uint32)[:, None, :] + corners.astype(np.uint32)[None]
            weights = jnp.where(corners[None] == 1, within[:, None, :], 1 - within[:, None, :]).prod(-1)
            rows = table[level][self._rows(corner, count, size)]
            encoded.append((weights[:, :, None] * rows).sum(1))
        return jnp.concatenate(encoded, axis=-1)

    def _rows(self, corner: Array, cells: int, size: int) -> Array:
        """Return the row (n, 2**d) of the table of each corner (n, 2**d, d)."""
        d = corner.shape[-1]
        if (cells + 1) ** d <= size:
            strides = np.array([(cells + 1) ** t for t in range(d)], np.uint32)
            return (corner * strides[None, None]).sum(-1, dtype=jnp.uint32)
        hashed = corner * _PRIMES[None, None, :d]
        mixed = hashed[..., 0]
        for t in range(1, d):
            mixed = mixed ^ hashed[..., t]
        return mixed % np.uint32(size)
