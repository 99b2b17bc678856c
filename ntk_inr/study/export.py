"""A trained network as a program of StableHLO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from ntk_inr import _checks
from ntk_inr._optional import require
from ntk_inr.study.record import write_atomically

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write_program(
    apply: Any, params: Any, inputs: int, path: str | Path, *, platforms: Sequence[str], overwrite: bool
) -> Path:
    """Write ``x -> apply(params, x)`` for any number of rows, as :meth:`Fitted.export` says."""
    path = Path(path)
    for platform in platforms:
        _checks.check_choice(platform, PLATFORMS, "platform")
    if not platforms:
        raise ValueError(f"platforms is empty; name at least one of {', '.join(PLATFORMS)}.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists; pass overwrite=True to replace it, or choose another name.")
    require("flatbuffers", "export")
    (n,) = jax.export.symbolic_shape("n")
    real = [leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    x = jax.ShapeDtypeStruct((n, inputs), jnp.promote_types(jnp.result_type(jnp.float32, *real), jnp.float32))
    program = jax.export.export(jax.jit(lambda x: apply(params, x)), platforms=tuple(platforms))(x)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = program.serialize()
    write_atomically(path, lambda file: file.write(content))
    return path
