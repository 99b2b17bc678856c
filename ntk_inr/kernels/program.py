"""A traced function as one flat list of equations: calls opened up, loops over stacked layers unrolled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
_UNROLLED_EQUATIONS = 4096


class Name:
    """A value of the flat program; an inner jaxpr opened twice gets fresh names each time."""

    __slots__ = ("aval",)

    def __init__(self, aval: Any) -> None:
        self.aval = aval


Atom = Name | jex.Literal


@dataclasses.dataclass(frozen=True)
class Equation:
    """One operation; ``kind`` is a JAX primitive's name, or "unstack" and "stack" around an unrolled loop."""

    kind: str
    params: dict[str, Any]
    inputs: list[Atom]
    outputs: list[Name]
    evaluate: Callable[[Sequence[Any]], Sequence[Any]]


class Program:
    """A function traced to equations, of which :meth:`evaluate` runs only those asked for.

    Args:
        function: a function of arrays, traced with ``jax.make_jaxpr``.
        arguments: a list of arguments, pytrees of arrays or of shapes and dtypes.
        active: of the flattened arguments, the number of the one that :attr:`active` follows.

    Attributes:
        inputs: the names of the flattened arguments.
        outputs: the atoms of the flattened results.
        active: the names that depend on the active argument.
        producer: for each name that an equation makes, that equation.
    """

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any], active: int) -> None:
        closed = jax.make_jaxpr(function)(*arguments)
        self._constants: list[tuple[Name, Any]] = []
        self._equations: list[Equation] = []
        self.inputs = [Name(var.aval) for var in closed.jaxpr.invars]
        self.active: set[Name] = {self.inputs[active]}
        self.producer: dict[Name, Equation] = {}
        self.outputs = self._open(closed.jaxpr, closed.consts, self.inputs)

    def evaluate(self, arguments: Sequence[Any], wanted: Sequence[Atom]) -> list[Any]:
        """Return the values of the atoms ``wanted`` where the flattened arguments are ``arguments``."""
        live = {atom for atom in wanted if isinstance(atom, Name)}
        needed = []
        for equation in reversed(self._equations):
            if not live.isdisjoint(equation.outputs):
                needed.append(equation)
                live.update(atom for atom in equation.inputs if isinstance(atom, Name))
        values: dict[Name, Any] = dict(self._constants)
        values.update(zip(self.inputs, arguments, strict=True))

        def read(atom: Atom) -> Any:
            return values[atom] if isinstance(atom, Name) else atom.val

        for equation in reversed(needed):
            results = equation.evaluate([read(atom) for atom in equation.inputs])
            values.update(zip(equation.outputs, results, strict=True))
        return [read(atom) for atom in wanted]

    def _open(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Atom]) -> list[Atom]:
        """Append the equations of ``jaxpr`` with calls opened up; return its output atoms."""
        named: dict[Any, Atom] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, constant in zip(jaxpr.constvars, constants, strict=True):
            name = named[var] = Name(var.aval)
            self._constants.append((name, constant))

        def read(atom: Any) -> Atom:
            return atom if isinstance(atom, jex.Literal) else named[atom]

        for eqn in jaxpr.eqns:
            atoms = [read(atom) for atom in eqn.invars]
            kind = eqn.primitive.name
            inner, consts = _inner(eqn)
            outputs: list[Atom]
            if kind in _CALLS and inner is not None:
                outputs = self._open(inner, consts, atoms)
            elif kind == "scan" and self._worth_unrolling(eqn, atoms):
                outputs = self._unroll(eqn, atoms)
            else:
                outputs = self._append(kind, eqn.params, atoms, [v.aval for v in eqn.outvars], _single(eqn, jaxpr))
            named.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _append(self, kind: str, params: dict[str, Any], inputs: list[Atom], avals: Any, evaluate: Any) -> list[Atom]:
        outputs = [Name(aval) for aval in avals]
        equation = Equation(kind, params, inputs, outputs, evaluate)
        self._equations.append(equation)
        self.producer.update(dict.fromkeys(outputs, equation))
        if self.any_active(inputs):
            self.active.update(outputs)
        return list(outputs)

    def any_active(self, atoms: Sequence[Atom]) -> bool:
        """Return whether any of these depends on the cotangent of the output."""
        return any(isinstance(atom, Name) and atom in self.active for atom in atoms)

    def _worth_unrolling(self, eqn: Any, atoms: Sequence[Atom]) -> bool:
        return self.any_active(atoms) and 0 < eqn.params["length"] * len(_inner(eqn)[0].eqns) <= _UNROLLED_EQUATIONS

    def _unroll(self, eqn: Any, atoms: list[Atom]) -> list[Atom]:
        body, consts = _inner(eqn)
        length = eqn.params["length"]
        # Counted from ranks, because releases of JAX name these numbers differently.
        carries = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.outvars, body.outvars, strict=True))
        whole = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.invars, body.invars, strict=True))
        fixed, carry, stacked = atoms[: whole - carries], atoms[whole - carries : whole], atoms[whole:]
        slices = [
            self._append("unstack", {}, [xs], [var.aval] * length, _unstack)
            for xs, var in zip(stacked, body.invars[whole:], strict=True)
        ]
        results: list[Any] = [None] * length
        for step in reversed(range(length)) if eqn.params["reverse"] else range(length):
            out = self._open(body, consts, [*fixed, *carry, *(parts[step] for parts in slices)])
            carry, results[step] = out[:carries], out[carries:]
        columns = zip(*results, strict=True)
        ys = [
            self._append("stack", {}, list(column), [var.aval], _stack)[0]
            for column, var in zip(columns, eqn.outvars[carries:], strict=True)
        ]
        return [*carry, *ys]


def _inner(eqn: Any) -> tuple[Any, Sequence[Any]]:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if isinstance(inner, jex.ClosedJaxpr):
        return inner.jaxpr, inner.consts
    return inner, ()


def _single(eqn: Any, jaxpr: Any) -> Callable[[Sequence[Any]], Sequence[Any]]:
    # A program of this one equation: how a primitive is bound differs between releases of JAX.
    # The names in debug_info belong to the whole program's arguments, not to those of one equation.
    debug_info = jaxpr.debug_info._replace(arg_names=None, result_paths=None)

    def evaluate(values: Sequence[Any]) -> Sequence[Any]:
        named = {var: value for var, value in zip(eqn.invars, values, strict=True) if not isinstance(var, jex.Literal)}
        program = jex.Jaxpr((), list(named), eqn.outvars, [eqn], debug_info=debug_info)
        return jax.core.eval_jaxpr(program, (), *named.values())

    return evaluate


def _unstack(values: Sequence[Any]) -> Sequence[Any]:
    return [values[0][step] for step in range(len(values[0]))]


def _stack(values: Sequence[Any]) -> Sequence[Any]:
    return [jnp.stack(values)]
