"""The structured kernel with its rows sharded over the devices of a mesh, in one program for all of them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from ntk_inr.kernels import structured


def ntk(
    apply: Partial,
    params: Any,
    x1: Any,
    x2: Any,
    *,
    c: int,
    outputs: str,
    precision: str,
    mesh: Mesh,
    block: int,
) -> Array:
    """Return the kernel, row-sharded: of D devices, each holds n1 / D whole rows.

    Each device computes the factors (T8.1) of its own share of the rows and of the columns. The column factors
    are then gathered, n2 (sum of widths) floats a device, rather than computed again, which would cost every
    device n2 backward passes. From there on devices are independent: each multiplies its rows by all columns,
    ``block`` rows at a time. Both halves of a symmetric kernel are computed, so it is symmetric to rounding,
    not to the bit.

    Args:
        apply: batched pure function ``(params, x): (n, d) -> (n, c)``.
        params: pytree of arrays, the same in every process.
        x1: coordinates (n1, d), all of them, the same in every process.
        x2: coordinates (n2, d) likewise, any n2; None is x1.
        c: number of outputs.
        outputs: "trace", "diagonal" or "full".
        precision: of the matrix products.
        mesh: devices; all of its axes together shard the rows. Whether its axes are Auto or Explicit, the kernel
            lives on the same devices with Auto axes.
        block: rows of the kernel that a device computes at once.

    Returns:
        (n1, n2), (n1, n2, c) or (n1, n2, c, c), sharded as ``PartitionSpec(mesh.axis_names)``: the first axis
        over all devices, in the order of ``mesh.devices``.

    Raises:
        ValueError: n1 is not a multiple of the number of devices; another mesh is set by ``jax.set_mesh``.
        AssertionError: from JAX, params or coordinates differ between processes.
    """
    below = len(x1) // mesh.size * mesh.size
    if below != len(x1):
        sizes = " or ".join(str(n) for n in (below, below + mesh.size) if n)
        raise ValueError(
            f"x1 has {len(x1)} rows, which {mesh.size} devices can't share equally; use {sizes} rows, "
            "or a mesh of fewer devices."
        )
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    context = jax.sharding.get_abstract_mesh()
    if not context.empty and context != mesh.abstract_mesh:
        raise ValueError(
            f"jax.set_mesh has set {context}, but a sharded kernel lives on {mesh.abstract_mesh}; call ntk outside "
            "of it, or set Mesh(mesh.devices, mesh.axis_names), whose axes are Auto."
        )
    everywhere = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(_on_host, (apply, params, x1, x2)) if mesh.is_multi_process else (apply, params, x1, x2)
    arguments = jax.device_put(arguments, everywhere)
    return _sharded(*arguments, c=c, outputs=outputs, precision=precision, mesh=mesh, block=block)


def _on_host(leaf: Any) -> Any:
    # A process hands its own copy to devices of other processes only from host memory.
    return np.asarray(leaf) if getattr(leaf, "is_fully_addressable", True) else leaf


@functools.partial(jax.jit, static_argnames=("c", "outputs", "precision", "mesh", "block"))
def _sharded(
    apply: Partial,
    params: Any,
    x1: Array,
    x2: Array | None,
    *,
    c: int,
    outputs: str,
    precision: str,
    mesh: Mesh,
    block: int,
) -> Array:
    rows, n2 = PartitionSpec(mesh.axis_names), len(x1 if x2 is None else x2)
    if x2 is not None and n2 % mesh.size:
        # Filled up with a coordinate that the function is known to take, and cut off after the gathering.
        x2 = jnp.concatenate([x2, jnp.broadcast_to(x2[:1], (-n2 % mesh.size, x2.shape[1]))])

    # The tracer evaluates programs that were traced outside, whose types know nothing of varying axes.
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), rows, rows),
        out_specs=rows,
        check_vma=False,
    )
    def panel(apply: Partial, params: Any, own1: Array, own2: Array | None) -> Array:
        mine = structured.factors(apply, params, own1, c, outputs)
        columns = mine if own2 is None else structured.factors(apply, params, own2, c, outputs)

        def gathered(part: Array) -> Array:
            return jax.lax.all_gather(part, mesh.axis_names, tiled=True)[:n2]

        columns = [
            structured.Factor(
                factor.h if factor.h is None else gathered(factor.h), gathered(factor.delta), factor.offset
            )
            for factor in columns
        ]
        return structured.blocked(mine, columns, outputs, block)

    with jax.default_matmul_precision(precision):
        return panel(apply, params, x1, x2)
