"""Assembles a kernel from tiles of its upper half, driven from the host so that no size recompiles.

Why from the host: on CPUs, small products inside a compiled loop run slowly, and tiles dispatched one
after the other keep all cores busy; on accelerators the next tiles are computed while one is stored.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ntk_inr.kernels import structured
from ntk_inr.kernels.memory import AHEAD, Cut

Progress = Callable[[int, int], None]
T = TypeVar("T")
# Rows that are written as columns at a time: about a cache line, three times faster than a whole tile.
_STRIP = 8
# Zero-copy from NumPy to JAX needs this alignment.
_ALIGNMENT = 64


@functools.partial(jax.jit, static_argnames=("c", "outputs", "precision", "fixed"))
def factors(
    apply: Partial, params: Any, x: Any, *, c: int, outputs: str, precision: str, fixed: structured.Fixed = ()
) -> list[structured.Factor]:
    """Return the factors of one chunk of examples."""
    with jax.default_matmul_precision(precision):
        return structured.factors(apply, params, x, c, outputs, fixed=fixed)


@functools.partial(jax.jit, static_argnames=("outputs", "precision"))
def _tile(rows: Any, columns: Any, *, outputs: str, precision: str) -> Array:
    with jax.default_matmul_precision(precision):
        return structured.tile(rows, columns, outputs, in_turn=True)


@functools.partial(jax.jit, static_argnames=("outputs", "precision"))
def _halves(rows: Any, *, outputs: str, precision: str) -> tuple[Array, Array]:
    """Return the upper half of the rows of a tile on the diagonal, and the lower right quarter."""
    half = (len(rows[0].delta) + 1) // 2

    def part(span: slice) -> list[structured.Factor]:
        return [row._replace(h=None if row.h is None else row.h[span], delta=row.delta[span]) for row in rows]

    with jax.default_matmul_precision(precision):
        upper = structured.tile(part(slice(half)), rows, outputs, in_turn=True)
        lower = structured.tile(part(slice(half, None)), part(slice(half, None)), outputs, in_turn=True)
    return upper, lower


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


def held_back(items: Iterable[T]) -> Iterator[T]:
    """Yield each item only once a few more have been started, so that the device is never without work."""
    waiting: collections.deque[T] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def reported(parts: Iterable[T], total: int, progress: Progress | None) -> Iterator[T]:
    """Yield ``parts``, and tell ``progress`` of each that the consumer is done with."""
    for done, part in enumerate(parts, 1):
        yield part
        if progress:
            progress(done, total)


def tiles(
    apply: Partial,
    params: Any,
    x1: Any,
    x2: Any,
    *,
    c: int,
    outputs: str,
    precision: str,
    cut: Cut,
    progress: Progress | None,
    full: Partial | None = None,
    fixed: structured.Fixed = (),
) -> Iterator[tuple[slice, slice, Array]]:
    """Yield (rows, columns, tile), a few tiles computed ahead; only the upper half where ``x2`` is None.

    Tiles at the end have more rows and columns than their slices; the rest is to be left out. With ``full``, whose
    factors fit under ``fixed``, rows are of its derivative.
    """
    # Sliced by NumPy: each slice of a JAX array would be a program of its own.
    left = np.asarray(x1)
    right = None if x2 is None else np.asarray(x2)
    rows, columns = (-(-len(x) // cut.block) for x in (left, left if right is None else right))
    total = rows * (rows + 1) // 2 if right is None else rows * columns

    def chunk(function: Partial, x: np.ndarray) -> list[structured.Factor]:
        return factors(function, params, x, c=c, outputs=outputs, precision=precision, fixed=fixed)

    chunks = [functools.partial(chunk, function) for function in (full or apply, apply)]
    parts = _dispatched(left, right, cut, chunks, {"outputs": outputs, "precision": precision})
    return reported(held_back(parts), total, progress)


def _dispatched(
    left: np.ndarray, right: np.ndarray | None, cut: Cut, chunks: Sequence[Callable[..., Any]], products: dict[str, Any]
) -> Iterator[tuple[slice, slice, Array]]:
    """Start one tile after the other, without waiting for any."""
    for rows, columns, above, beside in pairs(left, right, cut, *chunks):
        if right is None and rows == columns:
            tile = _mirrored(*_halves(above, **products))
        else:
            tile = _tile(above, beside, **products)
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

    for start in range(0, rows, cut.panel):
        panel = range(start, min(rows, start + cut.panel))
        kept = {i: made(chunk, left, i) for i in panel}
        for j in range(start if right is None else 0, columns):
            beside = kept[j] if right is None and j in kept else made(beside_of, other, j)
            for i in panel:
                if right is None and i > j:
                    break
                yield _span(i, cut.block, len(left)), _span(j, cut.block, len(other)), kept[i], beside


def _filled(part: np.ndarray, block: int) -> np.ndarray:
    # Filled up with a coordinate that the function is known to take, so that one program serves all chunks.
    return np.concatenate([part, np.broadcast_to(part[:1], (block - len(part), part.shape[1]))])


def _span(index: int, block: int, n: int) -> slice:
    return slice(index * block, min(n, (index + 1) * block))


def _extent(rows: slice, columns: slice) -> tuple[slice, slice]:
    return slice(rows.stop - rows.start), slice(columns.stop - columns.start)


def fill(out: np.ndarray, parts: Iterator[tuple[slice, slice, Array]], symmetric: bool) -> None:
    """Write tiles into ``out`` in host memory or on disk, the lower half as the upper's mirror image."""
    for rows, columns, tile in parts:
        values = np.asarray(tile)[_extent(rows, columns)]
        out[rows, columns] = values
        if symmetric and rows != columns:
            below = out[columns, rows]
            for i in range(0, len(values), _STRIP):
                below[:, i : i + _STRIP] = transposed(values[i : i + _STRIP])


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return memory that JAX's CPU backend can take over without a copy."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % _ALIGNMENT
    return raw[first : first + size].view(dtype).reshape(shape)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="symmetric")
def _place(kernel: Array, tile: Array, i: Any, j: Any, symmetric: bool) -> Array:
    rest = (0,) * (kernel.ndim - 2)
    kernel = jax.lax.dynamic_update_slice(kernel, tile, (i, j, *rest))
    return jax.lax.dynamic_update_slice(kernel, transposed(tile), (j, i, *rest)) if symmetric else kernel


def on_device(
    shape: tuple[int, ...], dtype: Any, parts: Iterator[tuple[slice, slice, Array]], symmetric: bool, traced: bool
) -> Array:
    """Return the assembled kernel in the default device's memory."""
    if jax.default_backend() == "cpu" and not traced:
        out = empty(shape, dtype)
        fill(out, parts, symmetric)
        return jax.device_put(out, may_alias=True)
    kernel: Any = None
    for rows, columns, tile in parts:
        extent = _extent(rows, columns)
        # A slice is a copy and a program, even one of everything.
        tile = tile if tile.shape[:2] == tuple(side.stop for side in extent) else tile[extent]
        if tile.shape == shape:
            kernel = tile
            continue
        kernel = jnp.empty(shape, dtype) if kernel is None else kernel
        kernel = _place(kernel, tile, rows.start, columns.start, symmetric=symmetric)
    return kernel


@functools.partial(jax.jit, static_argnames=("c", "outputs", "precision", "block"))
def traceable(
    apply: Partial,
    params: Any,
    x1: Array,
    x2: Array | None,
    c: int,
    outputs: str,
    precision: str,
    block: int,
    full: Partial | None = None,
) -> Array:
    """Return the kernel inside a user's transformation: whole rows, ``block`` at a time, in one program.

    With ``full``, rows are of its derivative.
    """
    options: dict[str, Any] = {"params": params, "c": c, "outputs": outputs, "differentiable": True}
    with jax.default_matmul_precision(precision):
        if full is not None:
            options["fixed"] = structured.fitting(full, apply, x_i=x1[0], **options)[1]
        rows = structured.factors(full or apply, x=x1, **options)
        columns = rows if x2 is None else structured.factors(apply, x=x2, **options)
        kernel = structured.blocked(rows, columns, outputs, block)
    return (kernel + transposed(kernel)) / 2 if x2 is None else kernel
