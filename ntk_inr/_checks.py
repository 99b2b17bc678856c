"""Checks of what a user hands in; everything inside the package trusts its callers."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ntk_inr._dtypes import accumulation_dtype

Outputs = Literal["trace", "diagonal", "full"]
Method = Literal["auto", "structured", "jacobian", "neural-tangents"]
Precision = Literal["highest", "high", "default", "float32", "tensorfloat32", "bfloat16"]
_WORDS = {"outputs": get_args(Outputs), "method": get_args(Method), "precision": get_args(Precision)}


def as_coordinates(x: Any, name: str = "x", finite: bool = True) -> Any:
    """Return ``x`` as a float array of shape (n, d), or say what is wrong with it; a shape stays one."""
    x = _as_real_matrix(x, name, "(n, d), one row a coordinate")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {x.dtype}; coordinates are floating point, usually in [-1, 1]. "
            f"Pass {name}.astype(float), scaled to that range."
        )
    if finite:
        check_finite(x, name)
    return x


def as_columns(x2: Any, x1: Any) -> Any:
    """Return the coordinates (n2, d) of a kernel's columns as those of its rows are, or say what is wrong with them."""
    x2 = as_coordinates(x2, "x2")
    if x2.shape[1] != x1.shape[1]:
        raise ValueError(f"x2 has {x2.shape[1]} coordinates a row but x1 has {x1.shape[1]}; both come from one domain.")
    return x2


def as_values(y: Any, n: int, name: str = "y") -> Array:
    """Return ``y`` as a float array of shape (n, c), or say what is wrong with it."""
    y = _as_real_matrix(y, name, f"(n, c) = ({n}, c), one row a coordinate")
    if y.shape[0] != n:
        raise ValueError(f"{name} has {y.shape[0]} rows but x has {n}; they are paired row by row.")
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {y.dtype}; expected floating point values.")
    check_finite(y, name)
    return y


def as_kernel(kernel: Any, name: str = "K") -> Any:
    """Return a square (n, n) kernel (JAX or NumPy), at least in float32, or say what is wrong with it."""
    unmasked(kernel, name)
    kernel = native(kernel if hasattr(kernel, "shape") else np.asarray(kernel))
    if not hasattr(kernel, "ndim"):
        raise TypeError(
            f"{name} is {type(kernel).__name__}; expected a kernel (n, n) that is an array. For an operator take "
            "ni.stochastic_moments, ni.top_eigenpairs or ni.spectral_density."
        )
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(kernel.shape)}; expected a square kernel (n, n). "
            'Compute it with ni.ntk(apply, params, x), which traces over outputs ("trace").'
        )
    if not kernel.shape[0]:
        raise ValueError(f"{name} has shape (0, 0), so it is empty; expected a kernel of at least one coordinate.")
    return as_floating(kernel, name)


def as_floating(array: Any, name: str) -> Any:
    """Return ``array`` (JAX or NumPy) in the dtype that sums over it are taken in, or say that it holds no reals."""
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (np.floating, np.integer, np.bool_)):
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers.")
    return array.astype(accumulation_dtype(array), copy=False)


def as_numpy(source: Any, name: str) -> np.ndarray | None:
    """Return what NumPy, JAX, Pillow or lists hold as an array of numbers; None where ``source`` is a path."""
    if isinstance(source, str | bytes | os.PathLike):
        return None
    unmasked(source, name)
    try:
        array = np.asarray(source)
    except ValueError as error:
        raise ValueError(f"{name} is a {type(source).__name__} of rows of different lengths; pad them.") from error
    if array.dtype.kind == "V" and jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(np.float32)  # bfloat16 and its like, which NumPy does not know as floats
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} is {type(source).__name__} of dtype {array.dtype}; expected numbers, or a file.")
    return array


def is_abstract(tree: Any) -> bool:
    """Return whether a ``jax.ShapeDtypeStruct`` stands for some array of a tree."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def native(tree: Any) -> Any:
    """Return a tree whose NumPy arrays have the machine's byte order, the only one that JAX takes; else as it is."""

    def turned(leaf: Any) -> Any:
        swapped = isinstance(leaf, np.ndarray | np.generic) and not leaf.dtype.isnative
        return leaf.astype(leaf.dtype.newbyteorder("=")) if swapped else leaf

    return jax.tree.map(turned, tree)


def unmasked(tree: Any, name: str) -> Any:
    """Return a tree as it is, or refuse the masked values of NumPy's masked arrays, which would count as known."""
    hidden = sum(int(np.ma.count_masked(leaf)) for leaf in jax.tree.leaves(tree) if np.ma.isMaskedArray(leaf))
    if hidden:
        raise ValueError(
            f"{name} holds {hidden} masked values, which would be taken for known ones; replace them by "
            f"{name}.filled(value), or leave their rows out. For an image whose masked pixels shall be filled in, pass "
            "missing=np.ma.getmaskarray(image) to ni.tasks.inpainting_task."
        )
    return tree


def check_finite_tree(tree: Any, name: str) -> None:
    """Raise ``ValueError`` naming the first leaf of ``tree`` that holds NaN or infinity; traced ones can't be seen."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    seen = {path: leaf for path, leaf in leaves if not isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct)}
    # Eager inside a transformation too, where parameters that the function closes over are values.
    with jax.ensure_compile_time_eval():
        if not seen or _are_finite(list(seen.values())):
            return
    for path, leaf in seen.items():
        check_finite(jnp.asarray(leaf), f"{name}{jax.tree_util.keystr(path)}")


def _are_finite(leaves: list[Any]) -> bool:
    on_cpu = jax.default_backend() == "cpu" and all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves)
    if on_cpu or all(isinstance(leaf, np.ndarray) for leaf in leaves):
        return all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)  # where they lie, without a program
    return bool(all_finite(leaves))


@jax.jit
def all_finite(leaves: list[Any]) -> Array:
    """Return whether every number is finite, without leaving the device."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def as_partial(apply: Any) -> Partial:
    """Wrap ``apply`` as a pytree, so that jitted code takes its constants as arguments."""
    if not callable(apply):
        raise TypeError(
            f"apply is {type(apply).__name__}, which can't be called; expected a function "
            "apply(params, x): (n, d) -> (n, c), such as the first result of ni.init(net, key, x)."
        )
    if isinstance(apply, Partial):
        return apply
    try:
        hash(apply)
    except TypeError:
        return Partial(lambda params, x: apply(params, x))  # jit can't remember it, but can run it
    return Partial(apply)


def check_choice(value: Any, choices: Iterable[str], name: str) -> None:
    """Raise ``ValueError`` with the nearest of ``choices`` where ``value`` is not one of them."""
    choices = list(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {name} {value!r}; known: {', '.join(choices)}.{hint}")


def check_positive(value: Any, name: str, *, integer: bool = False, least: float | None = None) -> None:
    """Raise where ``value`` is not a finite number above zero (an integer at ``least``); traced ones can't be seen."""
    if integer and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
        raise TypeError(f"{name} is {value!r}; expected a whole number.")
    if isinstance(value, jax.core.Tracer):
        return
    if isinstance(value, Array):
        value = np.asarray(value)[()]  # a comparison of JAX's own would be traced inside jit
    low = 1 if integer and least is None else least
    if low is not None and not value >= low:
        raise ValueError(f"{name} is {value!r}; expected at least {low}.")
    if low is None and not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{name} is {value!r}; expected a finite number above 0.")


def check_options(**options: Any) -> None:
    """Check those options that functions of ``(apply, params, x)`` share: words, and whole numbers above 0 or None."""
    for name, value in options.items():
        if name in _WORDS:
            check_choice(value, _WORDS[name], name)
        elif value is not None:
            check_positive(value, name, integer=True)


def _as_real_matrix(array: Any, name: str, expected: str) -> Any:
    if array is None or isinstance(array, str | bytes | os.PathLike):
        raise TypeError(
            f"{name} is {array!r}; expected an array {expected}. Load a file first, with np.load or skimage."
        )
    unmasked(array, name)
    array = native(array if hasattr(array, "dtype") else np.asarray(array))
    if array.ndim != 2:
        fix = f" Reshape it with {name}[:, None]." if array.ndim == 1 else ""
        raise ValueError(f"{name} has shape {tuple(array.shape)}; expected {expected}.{fix}")
    if 0 in array.shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}, so it is empty; expected {expected}.")
    return array if is_abstract(array) else jnp.asarray(array)


def check_finite(array: Any, name: str) -> None:
    """Raise ``ValueError`` where an array (JAX or NumPy) holds NaN or infinity; traced ones can't be seen."""
    if isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct) or not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    with jax.ensure_compile_time_eval():
        if _are_finite([array]):
            return
        xp = np if isinstance(array, np.ndarray) else jnp
        bad = int(array.size - xp.isfinite(array).sum())
    raise ValueError(f"{name} holds {bad} NaN or infinite values of {array.size}; remove or replace them.")
