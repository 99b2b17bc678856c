"""Draw the rows of a step: a shuffled share of them, or those with large losses more often."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# Half of each draw is uniform, so that no weight is above 2 and rows that got worse unseen are found again.
_UNIFORM = 0.5


def shuffle(key: Array, epoch: Any, n: int) -> Array:
    """Return the order (n,) of the rows in an epoch, the same whenever it is asked for."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), n)


def next_rows(key: Array, order: Array, t: Array, size: int) -> tuple[Array, Array]:
    """Return the rows (size,) of step t without replacement, and the order of its epoch."""
    n = len(order)
    batches = n // size
    order = lax.cond(t % batches == 0, lambda: shuffle(key, t // batches, n), lambda: order)
    return lax.dynamic_slice_in_dim(order, (t % batches) * size, size), order


def important_rows(key: Array, last: Array, t: Array, size: int) -> tuple[Array, Array]:
    r"""Draw rows by their last known losses, with replacement; weights keep the mean loss unbiased.

    .. math:: p_i = \frac{1}{2n} + \frac{|\ell_i|}{2\sum_j|\ell_j|},\qquad w_i = \frac{1}{n p_i} \le 2

    Args:
        key: random key of the run.
        last: losses (n,) when each row was last seen.
        t: step.
        size: how many rows.

    Returns:
        rows (size,) and their weights (size,): the mean of w_i l_i over draws is the mean of l over all rows.

    Source:
        Loshchilov & Hutter 2015 (arXiv 1511.06343), draws by last known loss; Katharopoulos & Fleuret 2018
        (arXiv 1803.00942), unbiased weights.
    """
    n = len(last)
    losses = jnp.abs(last)
    losses = jnp.where(losses.sum() > 0, losses, 1)
    coin, anywhere, by_loss = jax.random.split(jax.random.fold_in(key, t), 3)
    rows = jnp.where(
        jax.random.bernoulli(coin, _UNIFORM, (size,)),
        jax.random.randint(anywhere, (size,), 0, n),
        _drawn(by_loss, losses, size),
    )
    p = _UNIFORM / n + (1 - _UNIFORM) * losses[rows] / losses.sum()
    return rows, 1 / (n * p)


def _drawn(key: Array, losses: Array, size: int) -> Array:
    """Return rows (size,) drawn in proportion to their losses: a block of rows, then a row of it.

    In one go the 2**23 numbers that a uniform float32 can be would not tell the rows of large data apart.
    """
    n = len(losses)
    width = math.isqrt(n - 1) + 1
    blocks = jnp.zeros(width * width, losses.dtype).at[:n].set(losses).reshape(width, width)
    sums = jnp.cumsum(blocks.sum(axis=1))
    which, within = jax.random.uniform(key, (2, size), losses.dtype)
    block = jnp.searchsorted(sums, which * sums[-1], side="right").clip(max=width - 1)
    inside = jnp.cumsum(blocks[block], axis=1)
    row = (inside <= within[:, None] * inside[:, -1:]).sum(axis=1)
    return jnp.minimum(block * width + row, n - 1)
