"""The dtypes that figures are computed in, whatever the dtype of what they are computed of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def accumulation_dtype(*of: Any) -> np.dtype:
    """Return the dtype that sums over these arrays or dtypes are taken in: float32, or a wider one that they need.

    Integers of 32 bits and more, which float32 would round, take float64, where JAX has it for JAX's own.
    """
    return np.result_type(np.float32, *map(_floating, of))


def eps(dtype: Any) -> float:
    """Return the spacing of the numbers at 1 in a floating point ``dtype``, those of half precision among them."""
    return float(jnp.finfo(dtype).eps)


def _floating(of: Any) -> np.dtype:
    dtype = np.dtype(of if isinstance(of, type) else getattr(of, "dtype", of))
    wide = np.promote_types(np.float32, dtype)
    if isinstance(of, jax.Array) and not jnp.issubdtype(dtype, jnp.floating):
        return jax.dtypes.canonicalize_dtype(wide)
    return wide
