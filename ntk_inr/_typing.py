"""What the engine is given and gives, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jax import Array

# A pytree of floating point arrays.
Params: TypeAlias = Any
# A batched pure function, ``apply(params, x): (n, d) -> (n, c)``.
Apply: TypeAlias = Callable[[Params, Any], Any]
# A kernel on the device, or in the host's memory.
Kernel: TypeAlias = Array | np.ndarray
# Called as ``progress(done, total)``.
Progress: TypeAlias = Callable[[int, int], None]
