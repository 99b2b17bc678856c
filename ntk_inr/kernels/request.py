"""What is asked of the engine: a checked model and the options that its functions share."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ntk_inr import _checks
from ntk_inr._checks import Outputs
from ntk_inr._typing import Apply, Params, Progress
from ntk_inr.kernels import memory
from ntk_inr.kernels.memory import Cut
from ntk_inr.kernels.model import Model, check_model
from ntk_inr.kernels.structured import Trace


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A kernel that is asked for, checked where a public function is entered and handed down from there.

    Attributes:
        model: what the kernel is taken of.
        outputs: "trace", "diagonal" or "full".
        block: rows and columns of a tile; None picks by memory.
        memory_limit: bytes to stay within; None is what the device has left.
        precision: of the matrix products.
        progress: called after each tile.
    """

    model: Model
    outputs: Outputs = "trace"
    block: int | None = None
    memory_limit: int | None = None
    precision: str = "highest"
    progress: Progress | None = None

    @classmethod
    def of(
        cls,
        apply: Apply,
        params: Params,
        x1: Any,
        x2: Any = None,
        *,
        coupled: bool = False,
        abstract: bool = False,
        progress: Progress | None = None,
        **options: Any,
    ) -> Request:
        """Return the request that a public function's arguments make, or say what is wrong with them.

        Args:
            apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``.
            params: pytree of floating point or complex arrays.
            x1: coordinates (n1, d).
            x2: coordinates (n2, d); None is x1.
            coupled: whether ``apply`` is a function of its whole batch.
            abstract: whether shapes may stand for parameters and coordinates.
            progress: called after each tile.
            options: ``outputs``, ``block``, ``memory_limit`` and ``precision``, those that the function has.
        """
        _checks.check_options(**options)
        model = check_model(apply, params, x1, x2, coupled=coupled, abstract=abstract)
        return cls(model, progress=progress, **options)

    def on_host(self, name: str) -> Request:
        """Return the request as it is, or raise where it is made in a transformation and ``name`` works on the host."""
        if self.model.traced:
            raise ValueError(f"{name} works on the host, so it can't be used inside jit, vmap or grad.")
        return self

    def at(self, x: Any) -> Request:
        """Return the request for the kernel of other coordinates (n, d) of the same dtype with themselves."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, x1=x, x2=None))

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's shape."""
        c = self.model.c
        ends: dict[str, tuple[int, ...]] = {"trace": (), "diagonal": (c,), "full": (c, c)}
        return self.model.n1, self.model.n2, *ends[self.outputs]

    @property
    def nbytes(self) -> int:
        """The kernel's size in bytes."""
        return math.prod(self.shape) * self.model.dtype.itemsize

    def cut(self, trace: Trace, stored: int = 0) -> Cut:
        """Choose tiles that fit beside ``stored`` bytes, or say what the least is."""
        n1, n2 = self.model.n1, self.model.n2
        return memory.cut(trace, n1, n2, self.outputs, stored=stored, limit=self.memory_limit, block=self.block)
