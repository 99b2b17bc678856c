"""A kernel in tiles that stay in cache, which bounds its temporaries, and only the upper half of a symmetric one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Rows and columns of a tile: some hundred kilobytes for each array of a layer. Larger ones leave the cache.
_SIDE = 128

Tile = Callable[[Any, Any], tuple[Array, ...]]


def tiled(tile: Tile, left: Any, right: Any) -> tuple[Array, ...]:
    """Return the matrices that ``tile`` gives, computed tile by tile in one program.

    The backward pass computes each tile again, so that no tile's temporaries are kept.

    Args:
        tile: from points (a pytree of (n1, ...) arrays) and points (n2, ...), None for the same, to matrices (n1, n2).
        left: points (n1, ...).
        right: points (n2, ...); None is ``left``, and the matrices are then symmetric to the bit.
    """
    run = jax.checkpoint(tile)
    n1, rows = _blocks(left)
    if right is None:
        count = len(jax.tree.leaves(rows)[0])
        if count == 1:
            return tuple(_symmetric(matrix) for matrix in run(left, None))
        above = np.triu_indices(count, 1)
        on = jax.lax.map(lambda block: tuple(_symmetric(matrix) for matrix in run(block, None)), rows)
        off = jax.lax.map(lambda at: run(_at(rows, at[0]), _at(rows, at[1])), np.stack(above, 1))
        return tuple(_mirrored(*parts, above)[:n1, :n1] for parts in zip(on, off, strict=True))
    n2, columns = _blocks(right)
    counts = [len(jax.tree.leaves(blocks)[0]) for blocks in (rows, columns)]
    if counts == [1, 1]:
        return run(left, right)
    places = np.stack([axis.ravel() for axis in np.indices(counts)], 1)
    parts = jax.lax.map(lambda at: run(_at(rows, at[0]), _at(columns, at[1])), places)
    return tuple(_laid(part.reshape(*counts, *part.shape[1:]))[:n1, :n2] for part in parts)


def _blocks(points: Any) -> tuple[int, Any]:
    """Return the number of points, and the points in equal blocks, the last one filled up with the last point."""
    n = len(jax.tree.leaves(points)[0])
    count = -(-n // _SIDE)
    side = -(-n // count)
    fill = count * side - n

    def cut(array: Array) -> Array:
        rest = [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, [(0, fill), *rest], mode="edge").reshape(count, side, *array.shape[1:])

    return n, jax.tree.map(cut, points)


def _at(blocks: Any, index: Array) -> Any:
    return jax.tree.map(lambda array: array[index], blocks)


def _mirrored(on: Array, off: Array, above: tuple[np.ndarray, np.ndarray]) -> Array:
    """Return the symmetric matrix of the tiles on and above the diagonal."""
    count = len(on)
    index = np.diag(np.arange(count))
    index[above] = index.T[above] = count + np.arange(len(off))
    grid = jnp.concatenate([on, off])[index]
    below = np.tril(np.ones((count, count), bool), -1)[:, :, None, None]
    return _laid(jnp.where(below, grid.swapaxes(2, 3), grid))


def _laid(grid: Array) -> Array:
    rows, columns, height, width = grid.shape
    return grid.swapaxes(1, 2).reshape(rows * height, columns * width)


def _symmetric(matrix: Array) -> Array:
    """Return the symmetric matrix with the upper half of ``matrix`` on both sides of the diagonal.

    The mean of the two would not do: the compiler may compute each where it is used, and round them apart.
    """
    i, j = np.indices(matrix.shape)
    return matrix[np.minimum(i, j), np.maximum(i, j)]
