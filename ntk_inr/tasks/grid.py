"""Regular grids of coordinates in [-1, 1], and networks evaluated on them in microbatches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

MICROBATCH = 2**16

Progress = Callable[[int, int], None]
"""Called with what is done and the whole, of which the unit is told by who calls it: rows, or steps."""


def axis_centres(size: int) -> np.ndarray:
    """Return the centres of ``size`` equal cells of [-1, 1], (size,) float64."""
    return (2 * np.arange(size) + 1) / size - 1


class GridPoints:
    """The cell centres of a grid of [-1, 1]^d in raster order: as an array (n, d), but made where they are asked for.

    Example:
        >>> points = GridPoints((2, 3))
        >>> len(points), points.shape, points[4].tolist(), points[:1].tolist()
        (6, (6, 2), [0.5, 0.0], [[-0.5, -0.6666666865348816]])
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.sides = tuple(int(side) for side in shape)
        self.shape = (math.prod(self.sides), len(self.sides))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: Any) -> np.ndarray:
        """Return the centres (..., d) of places, float32; a slice or integers of any shape."""
        if isinstance(places, slice):
            start, stop, step = places.indices(len(self))
            if step == 1 and len(self.sides) > 1 and stop - start >= self.sides[-1]:
                return self._range(start, stop)
            places = np.arange(start, stop, step)
        rest = np.asarray(places)
        points = np.empty((*rest.shape, len(self.sides)), np.float32)
        for axis, side in reversed(list(enumerate(self.sides))):
            rest, place = np.divmod(rest, side) if axis else (rest, rest)
            points[..., axis] = (2 * place + 1) / side - 1
        return points

    def _range(self, start: int, stop: int) -> np.ndarray:
        """Return the centres from one place to another, in whole rows of the last axis."""
        side = self.sides[-1]
        first, last = start // side, -(-stop // side)
        points = np.empty((last - first, side, len(self.sides)), np.float32)
        points[..., :-1] = GridPoints(self.sides[:-1])[np.arange(first, last)][:, None]
        points[..., -1] = axis_centres(side)
        return points.reshape(-1, len(self.sides))[start - first * side : stop - first * side]


def grid_coordinates(shape: Sequence[int]) -> np.ndarray:
    """Return the cell centres (n, d) of a grid of [-1, 1]^d in raster order, one column an axis of ``shape``."""
    points = np.empty((*shape, len(shape)), np.float32)
    for axis, size in enumerate(shape):
        points[..., axis] = axis_centres(size).reshape(-1, *[1] * (len(shape) - 1 - axis))
    return points.reshape(-1, len(shape))


def in_batches(
    predict: Callable[[Any], Any],
    x: np.ndarray | GridPoints,
    c: int,
    *,
    batch: int = MICROBATCH,
    out: np.ndarray | None = None,
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return ``predict(x)`` (n, c) float32, at most ``batch`` rows at a time.

    The last batch is filled up with its last row. Where there are several, ``predict`` is traced once and compiled,
    unless it is no function of JAX's.

    Args:
        predict: coordinates (rows, d) -> (rows, c).
        x: (n, d).
        c: number of outputs.
        batch: most rows at a time.
        out: where to write, (n, c), such as a part of a file mapped into memory; None makes an array.
        finish: applied to the values (rows, c) of each batch, such as a clip.
        progress: called with the rows that are done, and n.
    """
    n = len(x)
    out = np.empty((n, c), np.float32) if out is None else out
    rows = min(n, batch)
    predict = compiled(predict, (rows, x.shape[1])) if n > batch else predict
    waiting: tuple[int, Any] | None = None

    def store(start: int, values: Any) -> None:
        values = np.asarray(values)
        stop = min(start + rows, n)
        out[start:stop] = (values if finish is None else finish(values))[: stop - start]
        if progress is not None:
            progress(stop, n)

    for start in range(0, n, batch):
        places = x[start : start + batch]
        missing = rows - len(places)
        values = predict(np.concatenate([places, np.repeat(places[-1:], missing, 0)]) if missing else places)
        if np.shape(values) != (rows, c):
            raise ValueError(
                f"predict gives shape {np.shape(values)} for coordinates {(rows, x.shape[1])}; expected (n, {c}): a "
                f"network with {c} output{'s' if c > 1 else ''}."
            )
        # A device computes this batch while the one before is written.
        if waiting is not None:
            store(*waiting)
        waiting = start, values
    if waiting is not None:
        store(*waiting)
    return out


def compiled(predict: Callable[[Any], Any], shape: tuple[int, int]) -> Callable[[Any], Any]:
    """Return ``predict`` compiled for coordinates of a shape, or as it is where JAX can't trace it.

    What it holds, such as parameters, goes in as arguments: as constants, XLA would compute with them as it compiles.
    """
    try:
        closed = jax.make_jaxpr(predict)(jax.ShapeDtypeStruct(shape, np.float32))
    except Exception:
        # A function of NumPy, or a mistake, which shows as the function is called.
        return predict
    if len(closed.jaxpr.outvars) != 1:
        return predict
    program = jax.jit(lambda held, x: jax.core.eval_jaxpr(closed.jaxpr, held, x)[0])
    held = jax.device_put(closed.consts)
    return lambda x: program(held, x)
