"""Instant-NGP's multiresolution hash grid."""

from __future__ import annotations

import itertools
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks.fields import real, whole, word

Interpolation = Literal["linear", "smoothstep"]

# One for each coordinate; the first is 1, so that neighbours along it stay neighbours in memory.
_PRIMES = np.array([1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737], np.uint32)


class HashGrid(nn.Module):
    r"""Interpolate trained features from the corners of grids of growing resolution.

    Level l has :math:`N_l = \lfloor N_0 b^l\rfloor` cells a side over [-1, 1] and a table of
    :math:`\min((N_l + 1)^d, 2^T)` feature vectors. Where that is every corner, each has its own, without hashing; where
    there are more, they share by the hash :math:`(\bigoplus_t c_t\pi_t) \bmod 2^T`. Coordinates outside [-1, 1] are
    clipped to it. The tables are one parameter "table", level after level, (rows, F), drawn from U(±1e-4).

    The table is a parameter that is looked up: :func:`ntk_inr.ntk` takes it by the rows that both coordinates of a
    pair look up, exact, at a cost that does not grow with the table.

    Attributes:
        levels: number of grids L.
        features: entries F at each corner; the encoding has L F.
        log2_size: T; None hashes nothing, so that ``levels=1`` is a plain grid.
        base: cells a side of the coarsest grid, N_0, the paper's N_min.
        growth: b, from one level to the next; without effect where ``finest`` is given.
        finest: cells a side of the finest grid, the paper's N_max, from which
            :math:`b = e^{(\ln N_{max} - \ln N_{min})/(L - 1)}`; None takes ``growth``.
        interpolation: "linear" in each coordinate, or "smoothstep", :math:`t^2(3 - 2t)` of the linear weight t, whose
            first derivative is continuous.
        param_dtype: dtype that the table is drawn in.

    Raises:
        ValueError: a size below 1, growth below 1, a finest grid coarser than the coarsest, an unknown interpolation,
            a table of more than 2**31 entries, or more than 7 coordinates.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> grid = HashGrid(levels=4, log2_size=8, base=4, finest=32)
        >>> encoded, variables = grid.init_with_output(jax.random.key(0), jnp.zeros((5, 2)))
        >>> encoded.shape, variables["params"]["table"].shape      # 25 + 81 + 256 + 256 rows
        ((5, 8), (618, 2))

    Source: Müller et al. 2022, arXiv 2201.05989, section 3 and appendix A.
    """

    levels: int = whole(16)
    features: int = whole(2)
    log2_size: int | None = whole(14)
    base: int = whole(16)
    growth: float = real(1.5)
    param_dtype: Any = jnp.float32
    finest: int | None = whole(None)
    interpolation: Interpolation = word("linear", Interpolation)

    def __post_init__(self) -> None:
        for name in ("levels", "features", "base"):
            _checks.check_positive(getattr(self, name), name, integer=True)
        _checks.check_positive(self.growth, "growth", least=1)
        _checks.check_choice(self.interpolation, get_args(Interpolation), "interpolation")
        if self.finest is not None:
            _checks.check_positive(self.finest, "finest", integer=True, least=self.base)
        if self.log2_size is not None:
            _checks.check_positive(self.log2_size, "log2_size", integer=True)
            if self.log2_size > 30:
                raise ValueError(f"log2_size is {self.log2_size}; expected at most 30, a table of 2**30 rows a level.")
        super().__post_init__()

    @property
    def cells(self) -> tuple[int, ...]:
        """The cells a side of each level."""
        growth = self.growth
        if self.finest is not None:
            growth = (self.finest / self.base) ** (1 / max(1, self.levels - 1))
        # The last level's power may round to just under a whole number.
        return tuple(int(self.base * growth**level * (1 + 1e-12)) for level in range(self.levels))

    def sizes(self, d: int) -> tuple[int, ...]:
        """Return the rows of each level's table for ``d`` coordinates."""
        corners = [(count + 1) ** d for count in self.cells]
        sizes = corners if self.log2_size is None else [min(count, 2**self.log2_size) for count in corners]
        if sum(sizes) * self.features > 2**31:
            raise ValueError(
                f"the tables have {sum(sizes) * self.features:.3g} entries; expected at most 2**31. Choose a smaller "
                "log2_size, fewer levels, or a coarser grid."
            )
        return tuple(sizes)

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n features"]:
        """Return the encoding, shape (n, L F), level by level."""
        d = x.shape[1]
        if d > len(_PRIMES):
            raise ValueError(f"x has {d} coordinates a row; the hash has primes for at most {len(_PRIMES)}.")
        sizes = self.sizes(d)

        def draw(key: Array) -> Array:
            return jax.random.uniform(key, (sum(sizes), self.features), self.param_dtype, -1e-4, 1e-4)

        table = self.param("table", draw).astype(x.dtype)
        corners = np.array(list(itertools.product((0, 1), repeat=d)))
        unit = jnp.clip((x + 1) / 2, 0, 1)
        encoded, start = [], 0
        for count, size in zip(self.cells, sizes, strict=True):
            place = unit * count
            # The last cell includes its upper edge.
            low = jnp.minimum(jnp.floor(jax.lax.stop_gradient(place)), count - 1)
            within = place - low
            if self.interpolation == "smoothstep":
                within = within * within * (3 - 2 * within)
            corner = low.astype(jnp.uint32)[:, None, :] + corners.astype(np.uint32)[None]
            weights = jnp.where(corners[None] == 1, within[:, None, :], 1 - within[:, None, :]).prod(-1)
            rows = table[start : start + size][_rows(corner, count, size)]
            encoded.append((weights[:, :, None] * rows).sum(1))
            start += size
        return jnp.concatenate(encoded, axis=-1)


def _rows(corner: Array, cells: int, size: int) -> Array:
    """Return the row (n, 2**d) of a level's table of each corner (n, 2**d, d)."""
    d = corner.shape[-1]
    if (cells + 1) ** d <= size:
        strides = np.array([(cells + 1) ** t for t in range(d)], np.uint32)
        return (corner * strides[None, None]).sum(-1, dtype=jnp.uint32)
    hashed = corner * _PRIMES[None, None, :d]
    mixed = hashed[..., 0]
    for t in range(1, d):
        mixed = mixed ^ hashed[..., t]
    return mixed % np.uint32(size)
