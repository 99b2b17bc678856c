"""Disjoint random principal submatrices of a kernel, what they estimate, and how well (9.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array


def draw(key: Array, n: int, size: int, count: int, *, otherwise: str) -> np.ndarray:
    """Return ``count`` disjoint random subsets (count, size) of n coordinates, or say that there are too few.

    ``otherwise`` ends the error's sentence: what to do in place of drawing.
    """
    if count * size > n:
        raise ValueError(
            f"{count} disjoint submatrices of {size} rows need {count * size} coordinates, x has {n}. "
            f"Make them fewer or smaller, or {otherwise}."
        )
    return np.asarray(jax.random.permutation(key, n)[: count * size]).reshape(count, size)


class Sums(NamedTuple):
    """What estimates need of S submatrices of one size, for a kernel that is the sum of L terms.

    Attributes:
        size: rows of each.
        shift: near the means of the terms' diagonals (L,), so that sums of squares about it don't cancel.
        pairs: sums over different rows and columns of the products of two terms, (S, L, L).
        diagonal: sums of the terms' diagonals less ``shift``, (S, L).
        squares: sums of the products of two of these, (S, L, L).
    """

    size: int
    shift: np.ndarray
    pairs: np.ndarray
    diagonal: np.ndarray
    squares: np.ndarray

    def of(self, kept: np.ndarray) -> Sums:
        """Return the sums of those submatrices that the mask ``kept`` (S,) has."""
        return Sums(self.size, self.shift, self.pairs[kept], self.diagonal[kept], self.squares[kept])


class Estimate(NamedTuple):
    """Unbiased estimates for the whole kernel, exact where one submatrix is all of it.

    Attributes:
        means: of the terms' diagonals, (L,).
        off_diagonal: the part of the variance of the eigenvalues that pairs of coordinates make, (L, L).
        diagonal: the covariances of the terms' diagonals, (L, L).
    """

    means: np.ndarray
    off_diagonal: np.ndarray
    diagonal: np.ndarray


def sums_of(pairs: Sequence[np.ndarray], diagonals: Sequence[np.ndarray]) -> Sums:
    """Return the sums of submatrices whose pairs add up to ``pairs`` (L, L) and that have ``diagonals`` (size, L)."""
    shift = diagonals[0].mean(axis=0)
    centred = [own - shift for own in diagonals]
    sums = [own.sum(axis=0) for own in centred], [own.T @ own for own in centred]
    return Sums(len(diagonals[0]), shift, np.stack(pairs), *map(np.stack, sums))


def estimate(n: int, sums: Sums) -> Estimate:
    """Return what submatrices of n coordinates, drawn without replacement, estimate, (9.4)."""
    rows = sums.size * len(sums.pairs)
    centre = sums.diagonal.sum(axis=0) / rows
    squares = sums.squares.sum(axis=0) - rows * centre[:, None] * centre
    # One coordinate has no pairs and no spread.
    pairs, freedom = rows * max(sums.size - 1, 1), max(rows - 1, 1)
    off_diagonal = sums.pairs.sum(axis=0) * (n - 1) / pairs
    return Estimate(sums.shift + centre, off_diagonal, squares / freedom * (n - 1) / n)


def standard_errors(figures: Callable[[np.ndarray], dict[str, Any]], count: int) -> dict[str, Any]:
    """Return the jackknife's standard errors of ``figures(kept)`` over the masks that leave out one of ``count`` parts.

    They are 0 for one part, which is all there is.
    """
    every = np.ones(count, bool)
    if count == 1:
        return {name: np.zeros_like(value) for name, value in figures(every).items()}
    without = [figures(every & (np.arange(count) != i)) for i in range(count)]
    return {name: np.sqrt((count - 1) * np.var([each[name] for each in without], axis=0)) for name in without[0]}


def unseen(n: int, rows: int) -> float:
    """Return what the standard error of a mean shrinks by where ``rows`` of n are drawn: it is known once all are.

    That of a variance does not, since pairs across submatrices stay unseen.
    """
    return math.sqrt(1 - rows / n)
