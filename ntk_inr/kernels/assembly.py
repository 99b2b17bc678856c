"""Computes a kernel in tiles of its upper half, driven from the host so that no size recompiles.

Why from the host: on CPUs, small products inside a compiled loop run slowly, and tiles dispatched one
after the other keep all cores busy; on accelerators the next tiles are computed while one is stored.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial

from ntk_inr._dtypes import at_precision
from ntk_inr._typing import Params, Progress
from ntk_inr.kernels import grams, memory, structured
from ntk_inr.kernels.memory import Cut
from ntk_inr.kernels.model import Model
from ntk_inr.kernels.request import Request

T = TypeVar("T")
# What the rows that a program computes at a time may take.
_PANEL_BYTES = 64 * 2**20
# Into how many parts a program with all tiles cuts rows: each tile has its own place in the program.
_MOST_PARTS = 8


@functools.partial(jax.jit, static_argnames=("c", "outputs", "precision", "fixed"))
@at_precision
def factors(
    apply: Partial, params: Params, x: Any, *, c: int, outputs: str, precision: str, fixed: structured.Fixed = ()
) -> list[grams.Factor]:
    """Return the factors of one chunk of examples."""
    return structured.factors(apply, params, x, c, outputs, fixed=fixed)


@functools.partial(jax.jit, static_argnames=("outputs", "precision"))
@at_precision
def _tile(rows: Any, columns: Any, *, outputs: str, precision: str) -> Array:
    return grams.tile(rows, columns, outputs, in_turn=True)


@functools.partial(jax.jit, static_argnames=("outputs", "precision"))
@at_precision
def _halves(rows: Any, *, outputs: str, precision: str) -> tuple[Array, Array]:
    """Return the upper half of the rows of a tile on the diagonal, and the lower right quarter."""
    half = (len(rows[0].delta) + 1) // 2
    if any(array.nbytes >= memory.LARGE_BYTES for array in jax.tree.leaves(rows)):
        # Halves of so large factors would be copies.
        whole = grams.tile(rows, rows, outputs, in_turn=True)
        return whole[:half], whole[half:, half:]
    below = _part(rows, slice(half, None))
    upper = grams.tile(_part(rows, slice(half)), rows, outputs, in_turn=True)
    return upper, grams.tile(below, below, outputs, in_turn=True)


def _part(rows: list[grams.Factor], span: slice) -> list[grams.Factor]:
    return [row.map(lambda array: array[span]) for row in rows]


@jax.jit
def _mirrored(upper: Array, lower: Array) -> Array:
    # In a program of its own: fused with the products it would walk through each of them across its rows. Products
    # of a matrix with itself may round differently above and below the diagonal, so both sides are averaged.
    left, right = upper[:, : len(upper)], upper[:, len(upper) :]
    left, lower = (left + transposed(left)) / 2, (lower + transposed(lower)) / 2
    return jnp.concatenate([jnp.concatenate([left, right], 1), jnp.concatenate([transposed(right), lower], 1)])


def transposed(kernel: Any) -> Any:
    """Return the kernel with the two examples of each entry exchanged."""
    kernel = kernel.swapaxes(0, 1)
    return kernel.swapaxes(2, 3) if kernel.ndim == 4 else kernel


def held_back(items: Iterable[T], ahead: int) -> Iterator[T]:
    """Yield each item only once ``ahead`` more have been started, so that the device is never without work."""
    waiting: collections.deque[T] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def reported(parts: Iterable[T], total: int, progress: Progress | None) -> Iterator[T]:
    """Yield ``parts``, and tell ``progress`` of each that the consumer is done with."""
    for done, part in enumerate(parts, 1):
        yield part
        if progress:
            progress(done, total)


def tiles(
    request: Request, cut: Cut, full: Partial | None = None, fixed: structured.Fixed = ()
) -> Iterator[tuple[slice, slice, Array]]:
    """Yield (rows, columns, tile), a few tiles computed ahead; only the upper half where x2 is None.

    Tiles at the end have more rows and columns than their slices; the rest is to be left out. With ``full``, whose
    factors fit under ``fixed``, rows are of its derivative.
    """
    model, products = request.model, {"outputs": request.outputs, "precision": request.precision}
    # Sliced by NumPy: each slice of a JAX array would be a program of its own.
    left = np.asarray(model.x1)
    right = None if model.x2 is None else np.asarray(model.x2)
    rows, columns = (-(-n // cut.block) for n in (model.n1, model.n2))
    total = rows * (rows + 1) // 2 if right is None else rows * columns

    def chunk(function: Partial, x: np.ndarray) -> list[grams.Factor]:
        return factors(function, model.params, x, c=model.c, fixed=fixed, **products)

    chunks = [functools.partial(chunk, function) for function in (full or model.apply, model.apply)]
    return reported(held_back(_dispatched(left, right, cut, chunks, products), cut.ahead), total, request.progress)


def _dispatched(
    left: np.ndarray, right: np.ndarray | None, cut: Cut, chunks: Sequence[Callable[..., Any]], products: dict[str, Any]
) -> Iterator[tuple[slice, slice, Array]]:
    """Start one tile after the other, without waiting for any."""
    for rows, columns, above, beside in pairs(left, right, cut, *chunks):
        if right is None and rows == columns:
            tile = _mirrored(*_halves(above, **products))
        else:
            tile = _tile(above, beside, **products)
        del above, beside  # or they would be kept while the next ones are computed
        yield rows, columns, tile


def pairs(
    left: np.ndarray,
    right: np.ndarray | None,
    cut: Cut,
    chunk: Callable[[np.ndarray], T],
    other_chunk: Callable[[np.ndarray], T] | None = None,
) -> Iterator[tuple[slice, slice, T, T]]:
    """Yield (rows, columns, chunk of the rows, chunk of the columns) for each tile.

    Where ``right`` is None it is ``left``, and only the upper half is yielded. ``chunk`` is given ``cut.block``
    coordinates, the last ones filled up; what it returns for ``cut.panel`` blocks of rows is kept at a time.
    ``other_chunk`` is that of ``right``, if not the same.
    """
    other = left if right is None else right
    beside_of = other_chunk or chunk
    rows, columns = (-(-len(x) // cut.block) for x in (left, other))

    def made(of: Callable[[np.ndarray], T], x: np.ndarray, index: int) -> T:
        return of(_filled(x[index * cut.block : (index + 1) * cut.block], cut.block))

    symmetric = right is None
    kept: dict[int, T] = {}
    for start in range(0, rows, cut.panel):
        panel = range(start, min(rows, start + cut.panel))
        for i in panel:
            kept[i] = kept[i] if i in kept else made(chunk, left, i)
        # Backwards, so that of a symmetric kernel the last one is the first that the next panel keeps.
        for j in reversed(range(start if symmetric else 0, columns)):
            beside = kept[j] if symmetric and j in kept else made(beside_of, other, j)
            for i in panel:
                if symmetric and i > j:
                    break
                yield _span(i, cut.block, len(left)), _span(j, cut.block, len(other)), kept[i], beside
            if symmetric and j == panel.stop:
                kept[j] = beside
            del beside
        for i in panel:
            del kept[i]


def _filled(part: np.ndarray, block: int) -> np.ndarray:
    # Filled up with a coordinate that the function is known to take, so that one program serves all chunks.
    return np.concatenate([part, np.broadcast_to(part[:1], (block - len(part), part.shape[1]))])


def _span(index: int, block: int, n: int) -> slice:
    return slice(index * block, min(n, (index + 1) * block))


@functools.partial(jax.jit, static_argnames=("outputs", "precision", "block"))
@at_precision
def _traceable(model: Model, full: Partial | None, *, outputs: str, precision: str, block: int | None) -> Array:
    options: dict[str, Any] = {"params": model.params, "c": model.c, "outputs": outputs, "differentiable": True}
    if full is not None:
        options["fixed"] = structured.fitting(full, model.apply, x_i=model.x1[0], **options)[1]
    rows = structured.factors(full or model.apply, x=model.x1, **options)
    columns = rows if model.x2 is None else structured.factors(model.apply, x=model.x2, **options)
    if block is not None:
        kernel = grams.blocked(rows, columns, outputs, block)
        return (kernel + transposed(kernel)) / 2 if model.x2 is None else kernel
    side = memory.side(max(model.n1, model.n2))
    parts = _parts(rows, side)
    if model.x2 is None:
        others = parts if full is None else _parts(columns, side)
        return _symmetric(parts, others, outputs)
    others = _parts(columns, max(side, -(-model.n2 // 2)))
    return jnp.concatenate(
        [jnp.concatenate([grams.tile(above, beside, outputs, in_turn=True) for beside in others], 1) for above in parts]
    )


def _parts(rows: list[grams.Factor], side: int) -> list[list[grams.Factor]]:
    """Cut factors to at most eight parts, of rows for a tile of this side or more."""
    n = len(rows[0].delta)
    side = max(side, -(-n // _MOST_PARTS))
    return [_part(rows, slice(start, start + side)) for start in range(0, n, side)]


def _symmetric(parts: Sequence[list[grams.Factor]], others: Sequence[Any], outputs: str) -> Array:
    """Return a kernel from tiles of its upper half, inside one program."""
    upper, lower = {}, {}
    for i, j in itertools.combinations_with_replacement(range(len(parts)), 2):
        tile = grams.tile(parts[i], others[j], outputs, in_turn=True)
        upper[i, j], lower[i, j] = tile, transposed(tile)
        if i == j:
            upper[i, i] = (tile + lower[i, i]) / 2
    # Both halves are complete before they are put together, or XLA's CPU would read each tile across its rows.
    upper, lower = lax.optimization_barrier((upper, lower))
    places = range(len(parts))
    return jnp.concatenate(
        [jnp.concatenate([upper[i, j] if i <= j else lower[j, i] for j in places], 1) for i in places]
    )


def traceable(request: Request, full: Partial | None = None) -> Array:
    """Return the kernel inside a user's transformation, in one program: by tiles, or some whole rows at a time.

    With ``full``, rows are of its derivative.
    """
    return _traceable(request.model, full, outputs=request.outputs, precision=request.precision, block=request.block)


def rows_at_once(request: Request) -> int:
    """Return how many rows of the kernel one program computes at a time, where these are whole rows."""
    return min(request.shape[0], request.block or max(1, _PANEL_BYTES * request.shape[0] // request.nbytes))
