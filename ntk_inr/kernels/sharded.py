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

from ntk_inr._dtypes import at_precision
from ntk_inr._typing import Params
from ntk_inr.kernels import grams, structured
from ntk_inr.kernels.assembly import rows_at_once
from ntk_inr.kernels.model import Model
from ntk_inr.kernels.request import Request


def ntk(request: Request, mesh: Mesh) -> Array:
    """Return the kernel, row-sharded: of D devices, each holds n1 / D whole rows.

    Each device computes the factors (T8.1) of its own share of the rows and of the columns. The column factors
    are then gathered, n2 (sum of widths) floats a device, rather than computed again, which would cost every
    device n2 backward passes. From there on devices are independent: each multiplies its rows by all columns,
    some rows at a time. Both halves of a symmetric kernel are computed, so it is symmetric to rounding,
    not to the bit.

    Args:
        request: parameters and coordinates in it are all of them, the same in every process; any number of columns.
        mesh: devices; all of its axes together shard the rows. Whether its axes are Auto or Explicit, the kernel
            lives on the same devices with Auto axes.

    Returns:
        (n1, n2), (n1, n2, c) or (n1, n2, c, c), sharded as ``PartitionSpec(mesh.axis_names)``: the first axis
        over all devices, in the order of ``mesh.devices``.

    Raises:
        ValueError: n1 is not a multiple of the number of devices; another mesh is set by ``jax.set_mesh``; values of
            a transformation, a memory limit or a progress to report, which one program can't take.
        AssertionError: from JAX, params or coordinates differ between processes.
    """
    if request.model.traced or request.memory_limit or request.progress:
        raise ValueError(
            "mesh= shards the structured kernel over devices in one program; it takes no memory_limit or progress, "
            "and no transformation around it."
        )
    n = request.model.n1
    below = n // mesh.size * mesh.size
    if below != n:
        sizes = " or ".join(str(rows) for rows in (below, below + mesh.size) if rows)
        raise ValueError(
            f"x1 has {n} rows, which {mesh.size} devices can't share equally; use {sizes} rows, "
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
    model = jax.tree.map(_on_host, request.model) if mesh.is_multi_process else request.model
    return _sharded(
        jax.device_put(model, everywhere),
        outputs=request.outputs,
        precision=request.precision,
        mesh=mesh,
        block=rows_at_once(request),
    )


def _on_host(leaf: Any) -> Any:
    # A process hands its own copy to devices of other processes only from host memory.
    return np.asarray(leaf) if getattr(leaf, "is_fully_addressable", True) else leaf


@functools.partial(jax.jit, static_argnames=("outputs", "precision", "mesh", "block"))
@at_precision
def _sharded(model: Model, *, outputs: str, precision: str, mesh: Mesh, block: int) -> Array:
    rows, n2, x2 = PartitionSpec(mesh.axis_names), model.n2, model.x2
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
    def panel(apply: Partial, params: Params, own1: Array, own2: Array | None) -> Array:
        mine = structured.factors(apply, params, own1, model.c, outputs)
        columns = mine if own2 is None else structured.factors(apply, params, own2, model.c, outputs)

        def gathered(part: Array) -> Array:
            return jax.lax.all_gather(part, mesh.axis_names, tiled=True)[:n2]

        return grams.blocked(mine, [factor.map(gathered) for factor in columns], outputs, block)

    return panel(model.apply, model.params, model.x1, x2)
