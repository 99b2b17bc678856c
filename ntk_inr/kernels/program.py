"""A traced function as one flat list of equations: calls are opened up, and loops give what their bodies compute.

Equations of one kind, with the same settings and operands, are one equation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any, TypeGuard

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax

from ntk_inr.kernels.equations import has_references

_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
# Two of these need not be one: random numbers, and what has a derivative rule of its own.
_APART = ("random_", "rng_", "custom_")
_COMMUTATIVE = ("add", "add_any", "mul")


class Name:
    """A value of the flat program; an inner jaxpr opened twice gets fresh names each time."""

    __slots__ = ("aval",)

    def __init__(self, aval: Any) -> None:
        self.aval = aval


Atom = Name | jex.Literal


def aval_of(atom: Atom) -> jax.core.ShapedArray:
    """Return the shape and dtype of an atom."""
    aval: Any = atom.aval
    return aval


def shape_of(atom: Atom) -> tuple[int, ...]:
    """Return the shape of an atom."""
    return aval_of(atom).shape


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One operation; ``kind`` is the name of a primitive of JAX."""

    kind: str
    params: dict[str, Any]
    inputs: list[Atom]
    outputs: list[Name]
    evaluate: Callable[[Sequence[Any]], Sequence[Any]]

    def results(self, values: Sequence[Any], _: set[Name]) -> Iterable[tuple[Name, Any]]:
        """Return the values of the outputs, with their names."""
        return zip(self.outputs, self.evaluate(values), strict=True)


class Program:
    """A traced function as equations, of which :meth:`evaluate` runs only those asked for.

    Args:
        closed: the function's jaxpr.
        active: for each flattened argument, whether :attr:`active` follows it.
        varying: the numbers of those arguments that are others for each example.

    Attributes:
        inputs: the names of the flattened arguments.
        outputs: the atoms of the flattened results.
        active: the names that depend on an active argument.
        producer: for each name that an equation makes, that equation.
        order: for each name a tuple that is larger than those of all names it depends on.
    """

    def __init__(self, closed: jex.ClosedJaxpr, active: Sequence[bool], varying: Collection[int] = ()) -> None:
        self.varying = varying
        self._constants: list[tuple[Name, Any]] = []
        self._equations: list[Equation | Loop] = []
        self._known: dict[Hashable, list[Name]] = {}
        self.inputs = [Name(var.aval) for var in closed.jaxpr.invars]
        self.active = {name for name, is_active in zip(self.inputs, active, strict=True) if is_active}
        self.producer: dict[Name, Equation | Loop] = {}
        self.order: dict[Name, tuple[float, ...]] = dict.fromkeys(self.inputs, (-1,))
        self.outputs = self._open(closed.jaxpr, closed.consts, self.inputs)

    def evaluate(self, arguments: Sequence[Any], wanted: Sequence[Atom]) -> list[Any]:
        """Return the values of the atoms ``wanted`` where the flattened arguments are ``arguments``."""
        needed, live = self.needed(wanted)
        values = self.given(arguments)

        def read(atom: Atom) -> Any:
            return values[atom] if isinstance(atom, Name) else atom.val

        for equation in needed:
            values.update(equation.results([read(atom) for atom in equation.inputs], live))
        return [read(atom) for atom in wanted]

    def given(self, arguments: Sequence[Any]) -> dict[Name, Any]:
        """Return the values of the names that no equation makes: of constants, and of the flattened arguments."""
        return dict(self._constants) | dict(zip(self.inputs, arguments, strict=True))

    def needs(self, wanted: Sequence[Atom]) -> list[bool]:
        """Return for each flattened argument whether the atoms ``wanted`` depend on it."""
        live = self.needed(wanted)[1]
        return [name in live for name in self.inputs]

    def varies(self, atoms: Sequence[Atom]) -> bool:
        """Return whether some of the atoms are others for each example."""
        return any(needed and place in self.varying for place, needed in enumerate(self.needs(atoms)))

    def is_active(self, atom: Atom) -> TypeGuard[Name]:
        """Return whether this depends on an active argument."""
        return isinstance(atom, Name) and atom in self.active

    def constant(self, name: Name) -> Any:
        """Return the value of a name that the trace has as a constant, else None."""
        return next((value for known, value in self._constants if known is name), None)

    def repeated(self, atom: Atom, shape: tuple[int, ...]) -> Atom:
        """Return an atom as an operation repeats it that others of its inputs have this larger shape."""
        if shape_of(atom) == shape:
            return atom
        key = "repeated", atom, shape
        if key not in self._known:
            aval = jax.core.ShapedArray(shape, aval_of(atom).dtype)
            axes = {
                "shape": shape,
                "broadcast_dimensions": tuple(range(len(shape)))[len(shape) - len(shape_of(atom)) :],
            }
            made = self._append(
                "broadcast_in_dim", axes, [atom], [aval], lambda values: [jnp.broadcast_to(values[0], shape)]
            )
            self._known[key] = [name for name in made if isinstance(name, Name)]
        return self._known[key][0]

    def derive(self, inputs: list[Atom], aval: Any, evaluate: Callable[[Sequence[Any]], Sequence[Any]]) -> Name:
        """Return a new value, made from others by ``evaluate``."""
        (name,) = self._append("derived", {}, inputs, [aval], evaluate)
        assert isinstance(name, Name)
        return name

    def replace(
        self, equation: Equation, inputs: list[Atom], evaluate: Callable[[Sequence[Any]], Sequence[Any]]
    ) -> None:
        """Compute the outputs of an equation in another way, from values that are made before it."""
        other = Equation("derived", {}, inputs, equation.outputs, evaluate)
        self._equations[self._equations.index(equation)] = other
        self.producer.update(dict.fromkeys(equation.outputs, other))

    def needed(self, wanted: Sequence[Atom]) -> tuple[list[Equation | Loop], set[Name]]:
        """Return the equations that ``wanted`` depends on, in order, and the names among what they use and make."""
        live = {atom for atom in wanted if isinstance(atom, Name)}
        needed = []
        for equation in reversed(self._equations):
            if not live.isdisjoint(equation.outputs):
                needed.append(equation)
                live.update(atom for atom in equation.inputs if isinstance(atom, Name))
        return needed[::-1], live

    def _open(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Atom]) -> list[Atom]:
        """Append the equations of ``jaxpr`` with calls opened up; return its output atoms."""
        if has_references(jaxpr, inside=False):
            # What is written to a reference has no name, so that such a program stays whole.
            whole = functools.partial(jax.core.eval_jaxpr, jaxpr, constants)
            avals = [var.aval for var in jaxpr.outvars]
            return self._append("a program with references", {}, list(inputs), avals, lambda values: whole(*values))
        named: dict[Any, Atom] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, constant in zip(jaxpr.constvars, constants, strict=True):
            known = next((name for name, value in self._constants if value is constant), None)
            if known is None:
                known = Name(var.aval)
                self._constants.append((known, constant))
                self.order[known] = (-1,)
            named[var] = known

        def read(atom: Any) -> Atom:
            return atom if isinstance(atom, jex.Literal) else named[atom]

        for eqn in jaxpr.eqns:
            atoms = [read(atom) for atom in eqn.invars]
            kind = eqn.primitive.name
            inner, consts = _inner(eqn)
            outputs: list[Atom]
            if kind in _CALLS and inner is not None and not has_references(inner, inside=False):
                outputs = self._open(inner, consts, atoms)
            elif kind == "scan" and eqn.params["length"] and any(map(self.is_active, atoms)):
                outputs = list(self._add(Loop(self, eqn, atoms)).outputs)
            else:
                outputs = self._once(eqn, atoms, _single(eqn, jaxpr))
            named.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _once(self, eqn: Any, atoms: list[Atom], evaluate: Any) -> list[Atom]:
        """Return the outputs of the equation that computes the same as this one, added if there is none."""
        key = _identity(eqn, atoms)
        known = self._known.get(key) if key else None
        if known is not None:
            return list(known)
        outputs = self._append(eqn.primitive.name, eqn.params, atoms, [v.aval for v in eqn.outvars], evaluate)
        if key:
            self._known[key] = [name for name in outputs if isinstance(name, Name)]
        return outputs

    def _append(self, kind: str, params: dict[str, Any], inputs: list[Atom], avals: Any, evaluate: Any) -> list[Atom]:
        outputs = [Name(aval) for aval in avals]
        equation = self._add(Equation(kind, params, inputs, outputs, evaluate))
        if any(map(self.is_active, inputs)):
            self.active.update(outputs)
        return list(equation.outputs)

    def _add(self, equation: Any) -> Any:
        # A loop's own outputs come after all that its body computes, whose order begins with the same number.
        place = (len(self._equations), math.inf)
        self._equations.append(equation)
        self.producer.update(dict.fromkeys(equation.outputs, equation))
        self.order.update(dict.fromkeys(equation.outputs, place))
        return equation


class Loop:
    """A ``scan`` whose body is a program of its own, and which can return what the body computes at every step.

    Attributes:
        kind: "scan".
        body: the program of one step.
        length: the number of steps.
        inputs: constants, then initial carries, then arrays with a slice a step.
        outputs: final carries, then arrays with a slice a step, then all that was exposed.
        carry: the numbers among ``inputs`` of the initial carries.
        inner: for each exposed name the body's atom.
    """

    kind = "scan"

    def __init__(self, program: Program, eqn: Any, atoms: list[Atom]) -> None:
        body, consts = _inner(eqn)
        # Counted from ranks, because releases of JAX name these numbers differently.
        carries = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.outvars, body.outvars, strict=True))
        whole = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.invars, body.invars, strict=True))
        self.length = eqn.params["length"]
        self.inputs = atoms
        self.outputs = [Name(var.aval) for var in eqn.outvars]
        self.carry = range(whole - carries, whole)
        self.inner: dict[Name, Atom] = {}
        self._options = {"length": self.length, "reverse": eqn.params["reverse"], "unroll": eqn.params["unroll"]}
        self._program = program
        active = [program.is_active(atom) for atom in atoms]
        while True:
            self.body = Program(jex.ClosedJaxpr(body, list(consts)), active)
            before = list(active)
            for place, atom in zip(self.carry, self.body.outputs, strict=False):
                active[place] = active[place] or self.body.is_active(atom)
            if active == before:
                break
        program.active.update(
            name for name, atom in zip(self.outputs, self.body.outputs, strict=True) if self.body.is_active(atom)
        )

    def expose(self, atom: Atom) -> Name:
        """Return the name of the array (length, ...) of what an atom of the body is at each step."""
        known = next((name for name, inner in self.inner.items() if inner is atom), None)
        if known is not None:
            return known
        name = Name(jax.core.ShapedArray((self.length, *shape_of(atom)), aval_of(atom).dtype))
        self.inner[name] = atom
        place = self._program.order[self.outputs[0]][0]
        self.outputs.append(name)
        self._program.producer[name] = self
        self._program.order[name] = (place, *(self.body.order[atom] if isinstance(atom, Name) else (-1,)))
        if self.body.is_active(atom):
            self._program.active.add(name)
        return name

    def results(self, values: Sequence[Any], wanted: set[Name]) -> Iterable[tuple[Name, Any]]:
        """Return the values of the outputs that are ``wanted``, with their names."""
        carries = len(self.carry)
        atoms = dict(zip(self.outputs, self.body.outputs, strict=False)) | self.inner
        final = [k for k in range(carries) if self.outputs[k] in wanted]
        slices = [name for name in self.outputs[carries:] if name in wanted]
        kept = set(final)
        while True:
            order = sorted(kept)
            targets = [self.body.outputs[k] for k in order] + [atoms[name] for name in slices]
            needed = self.body.needs(targets)
            more = {k for k, place in enumerate(self.carry) if needed[place]} - kept
            if not more:
                break
            kept |= more
        stacked = [place for place in range(self.carry.stop, len(values)) if needed[place]]

        def step(carry: list[Any], parts: list[Any]) -> tuple[list[Any], list[Any]]:
            arguments = list(values[: self.carry.start]) + [None] * (len(values) - self.carry.start)
            for k, value in zip(order, carry, strict=True):
                arguments[self.carry[k]] = value
            for place, value in zip(stacked, parts, strict=True):
                arguments[place] = value
            results = self.body.evaluate(arguments, targets)
            return results[: len(order)], results[len(order) :]

        initial = [values[self.carry[k]] for k in order]
        carry, parts = lax.scan(step, initial, [values[place] for place in stacked], **self._options)
        last = dict(zip(order, carry, strict=True))
        return [(self.outputs[k], last[k]) for k in final] + list(zip(slices, parts, strict=True))


def _identity(eqn: Any, atoms: Sequence[Atom]) -> tuple[Hashable, ...] | None:
    """Return what equations that compute the same agree in, None where they must stay apart."""
    kind = eqn.primitive.name
    if eqn.effects or kind.startswith(_APART):
        return None
    operands = [_literal(atom) if isinstance(atom, jex.Literal) else atom for atom in atoms]
    if kind in _COMMUTATIVE:
        operands.sort(key=hash)
    key = (kind, tuple(sorted(eqn.params.items())), *operands)
    try:
        hash(key)
    except TypeError:  # settings that are no values, such as lists of arrays
        return None
    return key


def _literal(atom: jex.Literal) -> tuple[Hashable, ...]:
    # By their bytes, so that 0 and -0 are two, and NaN is one.
    value = np.asarray(atom.val)
    return str(atom.aval), value.shape, value.tobytes()


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
