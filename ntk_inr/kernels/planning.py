"""What :func:`ntk_inr.ntk` would do with a function, and what each method would cost."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk_inr import _checks
from ntk_inr._checks import Outputs
from ntk_inr.kernels import frozen, memory
from ntk_inr.kernels.api import jacobian_rows
from ntk_inr.kernels.memory import describe
from ntk_inr.kernels.model import check_model, trace_of


class LeafPlan(NamedTuple):
    """How one leaf of the parameters is handled.

    Attributes:
        name: the leaf's path.
        shape: its shape.
        handling: "product" (two factors stand in for its Jacobian), "bias" (added to the product of another
            leaf), "jacobian" (its own Jacobian) or "unused".
        why: the reason, in words.
        flops: flops for one pair of examples.
        floats: numbers kept for one example.
    """

    name: str
    shape: tuple[int, ...]
    handling: str
    why: str
    flops: int
    floats: int


class MethodCost(NamedTuple):
    """What a method costs: flops in all, and bytes at a time beside the kernel."""

    method: str
    flops: float
    bytes: float


@dataclasses.dataclass(frozen=True)
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
    """

    leaves: list[LeafPlan]
    costs: list[MethodCost]
    method: str
    block: int
    panel: int
    kernel_bytes: int
    pairs: int
    frozen: bool

    def __str__(self) -> str:
        header = ("leaf", "shape", "handled as", "why", "flops a pair", "floats an example")
        rows = [
            (leaf.name, str(leaf.shape), leaf.handling, leaf.why, f"{leaf.flops:,}", f"{leaf.floats:,}")
            for leaf in self.leaves
        ]
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

        def line(row: tuple[str, ...]) -> str:
            cells = [
                cell.rjust(w) if i > 3 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            return "  ".join(cells).rstrip()

        lines = [line(header), line(tuple("-" * w for w in widths)), *map(line, rows), ""]
        for cost in self.costs:
            chosen = "  <- chosen" if cost.method == self.method else ""
            lines.append(f"{cost.method:<11} {cost.flops:.3g} flops, {describe(cost.bytes)} beside the kernel{chosen}")
        lines.append(
            f"kernel {describe(self.kernel_bytes)}; tiles of {self.block} x {self.block}, "
            f"factors of {self.panel * self.block} rows kept at a time"
        )
        if self.frozen:
            lines.append(
                "stop_gradient leaves out a part of the derivative, so this is not the kernel that training follows; "
                "that is ni.kernels.training_kernel"
            )
        return "\n".join(lines)

    __repr__ = __str__


def explain(
    apply: Any,
    params: Any,
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

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``.
        params: pytree of floating point arrays.
        x1: coordinates (n1, d).
        x2: coordinates (n2, d); None is x1.
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
    """
    _checks.check_options(outputs=outputs, block=block, memory_limit=memory_limit)
    model = check_model(apply, params, x1, x2)
    c, n1, n2 = model.c, len(model.x1), len(model.x1 if model.x2 is None else model.x2)
    trace = trace_of(model, outputs)
    itemsize = trace.dtype.itemsize
    stored = n1 * n2 * memory.entries(c, outputs) * itemsize
    cut = memory.cut(trace, n1, n2, outputs, stored=stored, limit=memory_limit, block=block)
    leaves = jax.tree_util.tree_leaves_with_path(model.params)
    names = [jax.tree_util.keystr(path) or "params" for path, _ in leaves]
    plans = []
    for (_, leaf), name, how in zip(leaves, names, trace.sites.handling, strict=True):
        why = how.why if how.carrier is None else f"{how.why} {names[how.carrier]}"
        plans.append(LeafPlan(name, jnp.shape(leaf), how.kind, why, how.flops, how.floats))
    if x2 is None:
        blocks = -(-n1 // cut.block)
        pairs = blocks * (blocks + 1) // 2 * cut.block**2
    else:
        pairs = n1 * n2
    size = sum(jnp.size(leaf) for _, leaf in leaves)
    rows = min(jacobian_rows(params, c, itemsize), max(n1, n2))
    backward = c * c if outputs == "full" else c
    costs = [
        MethodCost("structured", float(pairs) * trace.flops, cut.bytes - stored),
        MethodCost("jacobian", 2.0 * pairs * backward * size, 2.0 * rows * c * size * itemsize),
    ]
    held = frozen.is_frozen(model.apply, model.params, model.x1)
    return Plan(plans, costs, "structured", cut.block, cut.panel, stored, pairs, held)
