"""Regular grids of coordinates in [-1, 1], and networks evaluated on them in microbatches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MICROBATCH = 2**16


def axis_centres(size: int) -> np.ndarray:
    """Return the centres of ``size`` equal cells of [-1, 1], (size,) float64."""
    return (2 * np.arange(size) + 1) / size - 1


def grid_coordinates(shape: Sequence[int]) -> np.ndarray:
    """Return cell centres (n, d) float32 in raster order, one column an axis of ``shape``."""
    axes = [axis_centres(size) for size in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(shape)).astype(np.float32)


def in_batches(predict: Callable[[Any], Any], x: np.ndarray, c: int, *, batch: int = MICROBATCH) -> np.ndarray:
    """Return ``predict(x)`` (n, c) float32, at most ``batch`` rows at a time.

    The last batch is filled up with its last row, so that one compilation of ``predict`` serves all.
    """
    n = len(x)
    out = np.empty((n, c), np.float32)
    for start in range(0, n, batch):
        rows = x[start : start + batch]
        missing = batch - len(rows) if n > batch else 0
        values = np.asarray(predict(np.concatenate([rows, np.repeat(rows[-1:], missing, 0)]) if missing else rows))
        if values.shape != (len(rows) + missing, c):
            raise ValueError(
                f"predict gives shape {values.shape} for coordinates {(len(rows) + missing, x.shape[1])}; expected "
                f"(n, {c}): a network with {c} output{'s' if c > 1 else ''}."
            )
        out[start : start + batch] = values[: len(rows)]
    return out
