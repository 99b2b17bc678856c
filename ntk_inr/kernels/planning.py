"""What :func:`ntk_inr.ntk` would do with a function, and what each method would cost."""

from __future__ import annotations

import math
from typing import Any

import jax

from ntk_inr._checks import Outputs
from ntk_inr._results import Scalar, result, static, text_table
from ntk_inr._typing import Apply, Params
from ntk_inr.kernels import frozen, jacobian
from ntk_inr.kernels.memory import describe
from ntk_inr.kernels.model import Model, trace_of
from ntk_inr.kernels.request import Request
from ntk_inr.kernels.structured import Trace

# Leaves that a printed plan shows.
_SHOWN = 24


@result
class LeafPlan:
    """How one leaf of the parameters is handled.

    Attributes:
        name: the leaf's path.
        shape: its shape.
        handling: "product" (two factors stand in for its Jacobian), "gather" (so do the rows that are looked up),
            "bias" (added to the product of another leaf), "jacobian" (its own Jacobian) or "unused".
        why: the reason, in words.
        flops: flops for one pair of examples.
        floats: numbers kept for one example.
    """

    name: str = static()
    shape: tuple[int, ...] = static()
    handling: str = static()
    why: str = static()
    flops: int = static()
    floats: int = static()


@result
class MethodCost:
    """What a method costs.

    Attributes:
        method: its name.
        flops: in all.
        bytes: at a time, beside the kernel.
    """

    method: str = static()
    flops: Scalar
    bytes: Scalar


@result
class Plan:
    """The plan of a kernel; ``print`` shows it as a table.

    Attributes:
        leaves: one :class:`.LeafPlan` for each leaf of the parameters.
        costs: one :class:`.MethodCost` for each method.
        method: the method that "auto" takes.
        block: rows and columns of a tile.
        panel: how many blocks of rows have their factors kept at a time.
        kernel_bytes: size of the kernel itself.
        pairs: pairs of examples whose entries are computed.
        frozen: whether ``stop_gradient`` leaves out a part of the derivative, so that training follows
            :func:`ntk_inr.kernels.training_kernel` and not this kernel. One that changes no derivative, as around a
            floor, does not count.
        unchecked: what could not be checked, for want of values.
    """

    leaves: tuple[LeafPlan, ...]
    costs: tuple[MethodCost, ...]
    method: str = static()
    block: int = static()
    panel: int = static()
    kernel_bytes: int = static()
    pairs: int = static()
    frozen: bool = static()
    unchecked: tuple[str, ...] = static(default=())

    def __str__(self) -> str:
        rows = [("leaf", "shape", "handled as", "why", "flops a pair", "floats an example")]
        rows += [
            (leaf.name, str(leaf.shape), leaf.handling, leaf.why, f"{leaf.flops:,}", f"{leaf.floats:,}")
            for leaf in self.leaves[:_SHOWN]
        ]
        lines = [text_table(rows, right=(4, 5))]
        if len(self.leaves) > _SHOWN:
            lines.append(f"and {len(self.leaves) - _SHOWN} more, in plan.leaves")
        lines.append("")
        for cost in self.costs:
            chosen = "  <- chosen" if cost.method == self.method else ""
            lines.append(
                f"{cost.method:<11} {cost.flops:.3g} flops, {describe(float(cost.bytes))} beside the kernel{chosen}"
            )
        lines.append(
            f"kernel {describe(self.kernel_bytes)}; tiles of {self.block} x {self.block}, "
            f"factors of {self.panel * self.block} rows kept at a time"
        )
        if self.frozen:
            lines.append(
                "stop_gradient leaves out a part of the derivative, so this is not the kernel that training follows; "
                "that is ni.kernels.training_kernel"
            )
        if self.unchecked:
            lines.append(f"not checked, since shapes have no values: {'; '.join(self.unchecked)}")
        return "\n".join(lines)


def explain(
    apply: Apply,
    params: Params,
    x1: Any,
    x2: Any = None,
    *,
    outputs: Outputs = "trace",
    block: int | None = None,
    memory_limit: int | None = None,
) -> Plan:
    """Return how :func:`ntk_inr.ntk` would compute this kernel, and why; ``print`` it to read it.

    No part of the kernel is computed: ``apply`` is checked as by :func:`ntk_inr.ntk`, and traced on one example. Where
    it has a ``stop_gradient``, gradients with and without it are compared at some coordinates.

    A ``jax.ShapeDtypeStruct`` may stand for each array, for models too big to build: ``jax.eval_shape`` gives those of
    parameters. Nothing is allocated then, and what only values show is not checked; ``plan.unchecked`` says what.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``.
        params: pytree of floating point or complex arrays, or of their shapes.
        x1: coordinates (n1, d), or their shape.
        x2: coordinates (n2, d), or their shape; None is x1.
        outputs: as in :func:`ntk_inr.ntk`.
        block: as in :func:`ntk_inr.ntk`.
        memory_limit: as in :func:`ntk_inr.ntk`.

    Returns:
        A :class:`Plan`: each leaf and its handling, the costs of each method, the tiles.

    Raises:
        TypeError: integer coordinates or parameters; ``apply`` not callable.
        ValueError: as :func:`ntk_inr.ntk`.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 16)[:, None]
        >>> apply, params = ni.init(ni.CoordinateMLP(features=32, depth=2), jax.random.key(0), x)
        >>> plan = ni.explain(apply, params, x)
        >>> plan.leaves[3].name, plan.leaves[3].handling, plan.method
        ("['hidden_1']['kernel']", 'product', 'structured')
        >>> net, point = ni.CoordinateMLP(features=2**15, depth=11), jax.ShapeDtypeStruct((1, 2), "float32")
        >>> huge = jax.eval_shape(net.init, jax.random.key(0), point)["params"]  # 10.7 billion numbers
        >>> plan = ni.explain(lambda p, x: net.apply({"params": p}, x), huge, jax.ShapeDtypeStruct((512, 2), "float32"))
        >>> plan.leaves[3].handling, plan.unchecked
        ('product', ('numbers are finite', "examples don't mix"))
    """
    request = Request.of(apply, params, x1, x2, outputs=outputs, block=block, memory_limit=memory_limit, abstract=True)
    model, stored = request.model, request.nbytes
    trace = trace_of(model, outputs)
    cut = request.cut(trace, stored)
    if model.x2 is None:
        blocks = -(-model.n1 // cut.block)
        pairs = blocks * (blocks + 1) // 2 * cut.block**2
    else:
        pairs = model.n1 * model.n2
    size = sum(math.prod(shape) for shape in trace.shapes)
    rows = min(jacobian.rows_at_once(model), max(model.n1, model.n2))
    c = model.c
    costs = (
        MethodCost("structured", float(pairs) * trace.flops, float(cut.bytes - stored)),
        MethodCost(
            "jacobian",
            2.0 * pairs * (c * c if outputs == "full" else c) * size,
            2.0 * rows * c * size * model.dtype.itemsize,
        ),
    )
    return Plan(
        _leaf_plans(model, trace),
        costs,
        method="structured",
        block=cut.block,
        panel=cut.panel,
        kernel_bytes=stored,
        pairs=pairs,
        frozen=(is_frozen := frozen.is_frozen(model.apply, model.params, model.x1)),
        unchecked=_unchecked(is_frozen) if model.is_abstract else (),
    )


def _leaf_plans(model: Model, trace: Trace) -> tuple[LeafPlan, ...]:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(model.params)]
    names = [jax.tree_util.keystr(path) or "params" for path in paths]
    plans = []
    for name, shape, how in zip(names, trace.shapes, trace.sites.handling, strict=True):
        why = how.why if how.carrier is None else f"{how.why} {names[how.carrier]}"
        plans.append(LeafPlan(name, shape, how.kind, why, how.flops, how.floats))
    return tuple(plans)


def _unchecked(is_frozen: bool) -> tuple[str, ...]:
    """Return what shapes don't show of a model."""
    always = ("numbers are finite", "examples don't mix")
    return (*always, "stop_gradient changes the derivative") if is_frozen else always
