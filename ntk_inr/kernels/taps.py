"""Finds where parameters enter a function only as one operand of a matrix product.

For such a product ``u = W h (+ beta b)`` the parameter's gradient at one example is the outer
product of ``h`` with ``delta = df/du`` (T8.1), so ``h`` and ``delta`` stand in for it. Here ``apply`` is
traced on one example, such products are found, and the trace is replayed with a zero added to each
product, whose gradient is ``delta``. Parameters that enter in any other way keep their Jacobian.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import Array

_INLINED = ("jit", "pjit", "closed_call", "core_call")
_RESHAPES = ("reshape", "broadcast_in_dim", "squeeze")


class _Name:
    """A value of the flattened program; an inner jaxpr inlined twice gets fresh names each time."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class _Equation:
    eqn: jex.JaxprEqn
    inputs: list[Any]
    outputs: list[_Name]
    debug_info: Any

    @property
    def kind(self) -> str:
        return self.eqn.primitive.name

    @property
    def input_avals(self) -> list[Any]:
        return [atom.aval for atom in self.eqn.invars]

    @property
    def result(self) -> Any:
        """Shape and dtype of the first result."""
        return self.eqn.outvars[0].aval

    def evaluate(self, values: Sequence[Any]) -> list[Any]:
        # A program of this one equation: how a primitive is bound differs between releases of JAX.
        named = {
            var: value for var, value in zip(self.eqn.invars, values, strict=True) if not isinstance(var, jex.Literal)
        }
        program = jex.Jaxpr((), list(named), self.eqn.outvars, [self.eqn], debug_info=self.debug_info)
        return jax.core.eval_jaxpr(program, (), *named.values())


@dataclasses.dataclass(frozen=True)
class _Tap:
    """A product that parameter ``leaf`` enters as its operand number ``position``."""

    leaf: int
    equation: int
    position: int
    offset: float


class TappedFunction:
    """``apply`` traced on one example, with its taps.

    Args:
        function: ``(leaves, x_i) -> (c,)`` on the list of parameter leaves and one coordinate (d,).
        leaves: arrays or shapes of the parameters.
        example: one coordinate (d,).

    Attributes:
        offsets: for each tap, the weight of the bias that the tap carries along, squared.
        free: indices of the leaves that keep their Jacobian.
    """

    def __init__(self, function: Callable[[list[Array], Array], Array], leaves: list[Array], example: Array) -> None:
        closed = jax.make_jaxpr(function)(leaves, example)
        self._constants: list[tuple[_Name, Any]] = []
        self._equations: list[_Equation] = []
        self._inputs = [_Name() for _ in closed.jaxpr.invars]
        self._outputs = self._inline(closed, self._inputs)
        self._uses: dict[_Name, list[tuple[int, int]]] = defaultdict(list)
        for index, equation in enumerate(self._equations):
            for position, atom in enumerate(equation.inputs):
                if isinstance(atom, _Name):
                    self._uses[atom].append((index, position))
        for atom in self._outputs:
            if isinstance(atom, _Name):
                self._uses[atom].append((len(self._equations), 0))
        self._leaf_of = {name: index for index, name in enumerate(self._inputs[: len(leaves)])}
        self._leaf_shapes = [leaf.shape for leaf in leaves]
        self._producers = {output: equation for equation in self._equations for output in equation.outputs}
        self._taps, self.free = self._find_taps()
        self.offsets = [tap.offset for tap in self._taps]

    def factors(self, leaves: list[Array], x_i: Array) -> tuple[list[Array], list[Array], list[Array]]:
        """Return for one example each tap's h (m_in,) and delta (c, m_out), and each free Jacobian (c, p)."""

        def run(zeros: list[Array], free: list[Array]) -> tuple[Array, list[Array]]:
            values = list(leaves)
            for index, leaf in zip(self.free, free, strict=True):
                values[index] = leaf
            return self._replay(values, x_i, zeros)

        products = [self._equations[tap.equation].result for tap in self._taps]
        zeros = [jnp.zeros(product.shape, product.dtype) for product in products]
        out, pullback, inputs = jax.vjp(run, zeros, [leaves[i] for i in self.free], has_aux=True)
        c = out.shape[0]
        deltas, jacobians = jax.vmap(pullback)(jnp.eye(c, dtype=out.dtype))
        return (
            [h.reshape(-1) for h in inputs],
            [delta.reshape(c, -1) for delta in deltas],
            [jacobian.reshape(c, -1) for jacobian in jacobians],
        )

    def _inline(self, closed: Any, inputs: Sequence[Any]) -> list[Any]:
        """Append the equations of ``closed`` with calls opened up; return its output atoms."""
        env: dict[Any, Any] = dict(zip(closed.jaxpr.invars, inputs, strict=True))
        for var, constant in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            env[var] = _Name()
            self._constants.append((env[var], constant))

        def read(atom: Any) -> Any:
            return atom if isinstance(atom, jex.Literal) else env[atom]

        # The names belong to the whole program's arguments, not to those of one equation.
        debug_info = closed.jaxpr.debug_info._replace(arg_names=None, result_paths=None)
        for eqn in closed.jaxpr.eqns:
            atoms = [read(atom) for atom in eqn.invars]
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            if eqn.primitive.name in _INLINED and isinstance(inner, jex.ClosedJaxpr):
                outputs = self._inline(inner, atoms)
            else:
                outputs = [_Name() for _ in eqn.outvars]
                self._equations.append(_Equation(eqn, atoms, outputs, debug_info))
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def _replay(self, leaves: list[Array], x_i: Array, zeros: list[Array]) -> tuple[Array, list[Array]]:
        env: dict[_Name, Any] = dict(self._constants)
        env.update(zip(self._inputs, [*leaves, x_i], strict=True))
        taps = {tap.equation: index for index, tap in enumerate(self._taps)}
        inputs: list[Any] = [None] * len(self._taps)

        def read(atom: Any) -> Any:
            return env[atom] if isinstance(atom, _Name) else atom.val

        for index, equation in enumerate(self._equations):
            values = [read(atom) for atom in equation.inputs]
            results = equation.evaluate(values)
            if index in taps:
                tap = taps[index]
                inputs[tap] = values[1 - self._taps[tap].position]
                results[0] = results[0] + zeros[tap]
            env.update(zip(equation.outputs, results, strict=True))
        return read(self._outputs[0]), inputs

    def _find_taps(self) -> tuple[list[_Tap], list[int]]:
        taps: dict[int, _Tap] = {}
        free = set(self._leaf_of.values())
        for name, leaf in self._leaf_of.items():
            use = self._only_use(name)
            # A product of two parameters is tapped for the first; the second keeps its Jacobian.
            if use is None or use[0] in taps or not self._is_tappable(*use):
                continue
            offset, bias = self._carried_bias(self._equations[use[0]])
            taps[use[0]] = _Tap(leaf, *use, offset)
            free -= {leaf, bias}
        return list(taps.values()), sorted(free)

    def _only_use(self, name: _Name) -> tuple[int, int] | None:
        uses = self._uses[name]
        return uses[0] if len(uses) == 1 and uses[0][0] < len(self._equations) else None

    def _is_tappable(self, index: int, position: int) -> bool:
        """Say whether the operand is a matrix multiplied with one vector, with nothing cast."""
        equation = self._equations[index]
        if equation.kind != "dot_general":
            return False
        (contract, batch) = equation.eqn.params["dimension_numbers"]
        matrix, vector = equation.input_avals[position], equation.input_avals[1 - position]
        contracted = contract[1 - position]
        return (
            not batch[0]
            and len(contracted) == 1
            and matrix.ndim == 2
            and math.prod(vector.shape) == vector.shape[contracted[0]]
            and matrix.dtype == vector.dtype == equation.result.dtype
        )

    def _carried_bias(self, product: _Equation) -> tuple[float, int | None]:
        """Return beta**2 and the leaf b where the product's one use is ``product + beta * b``."""
        use = self._only_use(product.outputs[0])
        if use is None or self._equations[use[0]].kind != "add":
            return 0.0, None
        leaf, beta = self._scaled_leaf(self._equations[use[0]].inputs[1 - use[1]])
        if leaf is None or math.prod(self._leaf_shapes[leaf]) != math.prod(product.result.shape):
            return 0.0, None
        return beta**2, leaf

    def _scaled_leaf(self, atom: Any) -> tuple[int | None, float]:
        """Follow ``atom`` back to the leaf that it is a reshaped multiple of, if each step has one use."""
        scale = 1.0
        while isinstance(atom, _Name) and self._only_use(atom) is not None:
            if atom in self._leaf_of:
                return self._leaf_of[atom], scale
            equation = self._producers.get(atom)
            if equation is None:
                break
            literals = [a.val for a in equation.inputs if isinstance(a, jex.Literal)]
            names = [a for a in equation.inputs if isinstance(a, _Name)]
            if equation.kind == "mul" and len(literals) == 1 and jnp.ndim(literals[0]) == 0:
                scale *= float(literals[0])
            elif equation.kind not in _RESHAPES or len(names) != 1:
                break
            atom = names[0]
        return None, scale
