"""The dtype, unit and precision that figures are computed in, whatever those of the numbers that they are of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

P = ParamSpec("P")
R = TypeVar("R")


def accumulation_dtype(*of: Any) -> np.dtype:
    """Return the dtype that sums over these arrays or dtypes are taken in: float32, or a wider one that they need.

    Integers of 32 bits and more, which float32 would round, take float64, where JAX has it for JAX's own. Of complex
    numbers it is that of their parts.
    """
    return np.result_type(np.float32, *map(_floating, of))


def eps(dtype: Any) -> float:
    """Return the spacing of the numbers at 1 in a floating point ``dtype``, those of half precision among them."""
    return float(jnp.finfo(dtype).eps)


def unit_of(array: Any) -> Any:
    """Return a power of two near the largest size in ``array``, 1 for zeros, in its library (JAX or NumPy) and dtype.

    Dividing by it rounds nothing, and squares of what is left neither overflow nor vanish beside the largest.
    """
    xp = np if isinstance(array, np.ndarray) else jnp
    array = array if xp is np else lax.stop_gradient(array)
    range_ = jnp.finfo(array.dtype)
    # At the ends of the range its inverse would leave it.
    exponent = xp.clip(xp.frexp(xp.maximum(array.max(), -array.min()))[1], range_.minexp + 1, range_.maxexp - 1)
    return xp.ldexp(xp.ones((), array.dtype), exponent)


def at_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Take a function's matrix products at the precision that its keyword ``precision`` names, without one the highest.

    Applied inside ``jit``, it holds for what is traced.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision(str(kwargs.get("precision", "highest"))):
            return function(*args, **kwargs)

    return run


def _floating(of: Any) -> np.dtype:
    dtype = np.dtype(of if isinstance(of, type) else getattr(of, "dtype", of))
    if jnp.issubdtype(dtype, jnp.complexfloating):
        dtype = np.finfo(dtype).dtype
    wide = np.promote_types(np.float32, dtype)
    if isinstance(of, jax.Array) and not jnp.issubdtype(dtype, jnp.inexact):
        return jax.dtypes.canonicalize_dtype(wide)
    return wide
