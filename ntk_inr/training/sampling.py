"""Choose the rows of a step: a shuffled share of them, any, or those with large scores more often."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# Half of each draw is uniform, so that no weight is above 2 and rows that got worse unseen are found again.
_UNIFORM = 0.5
_ROUNDS = 8


def shuffled_rows(key: Array, t: Any, n: int, size: int) -> Array:
    """Return the rows (size,) of step t, which in an epoch of n // size steps are without replacement.

    Nothing of the size n is made, and a step's rows are the same whatever steps came before in this process.
    """
    batches = n // size
    places = (t % batches) * size + jnp.arange(size)
    return permuted(epoch_words(key, t // batches), places, n)


def uniform_rows(key: Array, t: Any, n: int, size: int) -> Array:
    """Return the rows (size,) of step t, each drawn from all."""
    return jax.random.randint(jax.random.fold_in(key, t), (size,), 0, n)


def epoch_words(key: Array, epoch: Any) -> Array:
    """Return the random words that choose the order of an epoch's rows in :func:`permuted`."""
    return jax.random.bits(jax.random.fold_in(key, epoch), (_ROUNDS,), jnp.uint32)


def permuted(words: Any, places: Any, n: int) -> Any:
    r"""Return the images of ``places`` in a random order of 0, ..., n - 1, which is a bijection for any ``words``.

    With n <= a b, a place i = l b + r is a pair (l, r), which rounds of a generalised Feistel network mix in turn:
    l + F(r) mod a, then r + F(l) mod b. An image that is not below n goes through them again.

    Args:
        words: (rounds,) uint32, the random choice among orders.
        places: integers (m,) in 0, ..., n - 1: of JAX (n below 2**31), or of NumPy in int64 (any n).
        n: how many there are.

    Returns:
        The images (m,) in the dtype of ``places``; NumPy's and JAX's are the same.

    Source:
        Black & Rogaway 2002, Ciphers with arbitrary finite domains (doi 10.1007/3-540-45760-7_9).
    """
    width = math.isqrt(n - 1) + 1
    height = -(-n // width)

    def mixed(places: Any) -> Any:
        left, right = (part.astype(np.uint32) for part in (places // width, places % width))
        for i in range(0, _ROUNDS, 2):
            left = (left + _hash(right ^ words[i]) % np.uint32(height)) % np.uint32(height)
            right = (right + _hash(left ^ words[i + 1]) % np.uint32(width)) % np.uint32(width)
        return left.astype(places.dtype) * width + right.astype(places.dtype)

    if isinstance(places, np.ndarray):
        images = mixed(places)
        while (outside := images >= n).any():
            images[outside] = mixed(images[outside])
        return images
    return lax.while_loop(
        lambda images: (images >= n).any(), lambda images: jnp.where(images < n, images, mixed(images)), mixed(places)
    )


def _hash(words: Any) -> Any:
    """Return well mixed uint32 words, by the last steps of MurmurHash3 (Appleby, public domain)."""
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))


def important_rows(key: Array, last: Array, t: Array, size: int) -> tuple[Array, Array]:
    r"""Draw rows by their last known losses or other scores, with replacement; weights keep the mean loss unbiased.

    .. math:: p_i = \frac{1}{2n} + \frac{|\ell_i|}{2\sum_j|\ell_j|},\qquad w_i = \frac{1}{n p_i} \le 2

    Args:
        key: random key of the run.
        last: scores (n,), such as the losses when each row was last seen.
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
