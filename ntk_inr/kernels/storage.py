"""Where a kernel is kept: on the device, in the host's memory, or in a user's array, such as one on disk."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr import _checks
from ntk_inr._typing import Kernel
from ntk_inr.kernels import memory
from ntk_inr.kernels.assembly import transposed
from ntk_inr.kernels.memory import describe
from ntk_inr.kernels.request import Request

# Rows that are written as columns at a time: about a cache line, three times faster than a whole tile.
_STRIP = 8
# Zero-copy from NumPy to JAX needs this alignment.
_ALIGNMENT = 64


def check(out: Any, request: Request) -> None:
    """Raise where ``out`` can't hold the kernel."""
    if isinstance(out, str):
        _checks.check_choice(out, ("device", "host"), "out")
    elif not isinstance(out, np.ndarray):
        raise TypeError(f'out is {type(out).__name__}; expected "device", "host", a NumPy array or an np.memmap.')
    elif out.shape != request.shape or out.dtype != request.model.dtype:
        shape, dtype = request.shape, request.model.dtype
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}; this kernel is {shape} of {dtype}. "
            f'Make it with np.memmap(path, "{dtype}", "w+", shape={shape}).'
        )
    elif not out.flags.writeable:
        raise ValueError('out is read-only; open it with mode "r+" or "w+".')
    if request.model.traced and not is_device(out):
        raise ValueError("out= can't be used inside jit, vmap or grad, where K is a traced value.")


def is_device(out: Any) -> bool:
    """Return whether the kernel is kept where it is computed."""
    return isinstance(out, str) and out == "device"


def reserved(request: Request, out: Any) -> int:
    """Return the bytes of the kernel that tiles must leave room for, or say that the host has none."""
    if not isinstance(out, str):
        return 0
    if out == "host" and request.memory_limit is None and jax.default_backend() != "cpu":
        # The kernel is the host's to hold, its tiles the device's.
        left = memory.available_on_host()
        if request.nbytes > left:
            raise ValueError(
                f"the kernel has {describe(request.nbytes)} and the host has {describe(left)} left; "
                "pass out=np.memmap(...)."
            )
        return 0
    return request.nbytes


def kept(kernel: Array, out: Any) -> Kernel:
    """Return a whole kernel where ``out`` says."""
    if isinstance(out, str):
        return kernel if out == "device" else np.asarray(kernel)
    out[...] = kernel
    return out


def assembled(request: Request, parts: Iterator[tuple[slice, slice, Array]], out: Any) -> Kernel:
    """Return the kernel made of its tiles, where ``out`` says; without x2 they are those of its upper half."""
    shape, dtype, symmetric = request.shape, request.model.dtype, request.model.x2 is None
    if is_device(out):
        return on_device(shape, dtype, parts, symmetric, request.model.traced)
    kernel = empty(shape, dtype) if isinstance(out, str) else out
    fill(kernel, parts, symmetric)
    return kernel


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
