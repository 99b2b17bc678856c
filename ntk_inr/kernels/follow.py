"""Follows a cotangent of a parameter back to where it comes from, through what only moves, scales or adds entries.

The places in the parameter that an intermediate's entries go to are kept beside it. Values are visited once each, in
reverse order of evaluation, so that a network whose layers share their past costs no more than another.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from ntk_inr.kernels.places import Places
from ntk_inr.kernels.program import Atom, Equation, Loop, Name, Program, aval_of, shape_of

_SAME = ("copy", "copy_p")
_MOVED = ("reshape", "squeeze", "transpose", "broadcast_in_dim", "convert_element_type", "neg", "reduce_sum", *_SAME)
# A value that goes to more places than this in different ways is not followed further.
_WAYS = 64


class Scale(NamedTuple):
    """What multiplies, or ``divides``, the entries of a value: for each the entry of ``atom`` at its place in it."""

    atom: Atom
    divides: bool
    places: Places

    def same_as(self, other: Scale) -> bool:
        """Return whether both scale every entry alike."""
        alike = self.atom is other.atom and self.divides == other.divides
        return alike and self.places.same_as(other.places)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A part of a cotangent: ``scale * value``, times its ``scales``, whose entries go to the places ``index``.

    Places may have further axes behind those of the value, which is repeated along them. Of complex numbers it is the
    ``part``, "real" or "imag".
    """

    value: Atom
    index: Places
    scale: complex = 1.0
    scales: tuple[Scale, ...] = ()
    part: str = ""

    @property
    def further(self) -> tuple[int, ...]:
        """The sizes of the further axes."""
        return self.index.shape[len(shape_of(self.value)) :]

    def moved(self, value: Atom, move: Callable[[Places], Places], factor: complex = 1.0) -> Source:
        """Return the same part by another value, times ``factor``, to whose entries ``move`` brings places."""
        scales = tuple(scale._replace(places=move(scale.places)) for scale in self.scales)
        return Source(value, move(self.index), factor * self.scale, scales, self.part)

    def scaled_as(self, other: Source) -> bool:
        """Return whether the scales of both are alike, entry by entry, and both are real parts, or both imaginary."""
        return (
            self.part == other.part
            and len(self.scales) == len(other.scales)
            and all(map(Scale.same_as, self.scales, other.scales))
        )


def follow(program: Program, atom: Atom, index: Places, stops: Collection[Name] = ()) -> list[Source]:
    """Return the parts that ``atom`` is the sum of, each to be added at its ``index``; parts of zeros are left out."""
    return trace_back(program, Source(atom, index), stops)


def trace_back(program: Program, whole: Source, stops: Collection[Name] = ()) -> list[Source]:
    """Return the parts that a source is the sum of, each of them no sum itself, or in ``stops``."""
    ends: list[Source] = []
    pending: dict[Name, list[Source]] = {}

    def add(source: Source) -> None:
        if is_zero(program, source.value):
            return
        if program.is_active(source.value):
            pending.setdefault(source.value, []).append(source)
        else:
            ends.append(source)

    add(whole)
    while pending:
        value = max(pending, key=program.order.__getitem__)
        sources = _merged(pending.pop(value))
        is_end = value in stops or len(sources) > _WAYS
        for source in sources:
            parts = None if is_end else steps(program, source, stops)
            if parts is None:
                ends.append(source)
            else:
                for part in parts:
                    add(part)
    return ends


def _merged(sources: list[Source]) -> list[Source]:
    """Return sources of one value with those added up that go to the same places."""
    kept: list[Source] = []
    for source in sources:
        for place, other in enumerate(kept):
            if source.scaled_as(other) and source.index.same_as(other.index):
                kept[place] = dataclasses.replace(other, scale=other.scale + source.scale)
                break
        else:
            kept.append(source)
    return [source for source in kept if source.scale]


def is_zero(program: Program, atom: Atom) -> bool:
    """Return whether the trace shows that all entries are zero."""
    if isinstance(atom, jex.Literal):
        return not np.any(atom.val)
    equation = program.producer.get(atom)
    if isinstance(equation, Loop):
        return atom in equation.inner and is_zero(equation.body, equation.inner[atom])
    if equation is None:
        value = program.constant(atom)
        return isinstance(value, np.ndarray | np.generic | float | int) and not np.any(value)
    return equation.kind in _MOVED and is_zero(program, equation.inputs[0])


def is_complex(atom: Atom) -> bool:
    """Return whether this is an array of complex numbers."""
    return jnp.issubdtype(aval_of(atom).dtype, jnp.complexfloating)


def steps(program: Program, source: Source, stops: Collection[Name] = ()) -> list[Source] | None:
    """Return what the source is the sum of, one equation back, or None where it is something else than a sum.

    Of a loop's final carry that is what its steps add, followed inside the loop as far as ``stops``.
    """
    equation = program.producer.get(source.value) if isinstance(source.value, Name) else None
    if equation is None:
        return None
    return _of_loop(equation, source, stops) if isinstance(equation, Loop) else _of(program, equation, source)


def _of(program: Program, equation: Equation, source: Source) -> list[Source] | None:
    """Return the sources of an equation's output."""
    kind, params, inputs = equation.kind, equation.params, equation.inputs
    if not inputs:
        return None
    first, further = inputs[0], source.further
    shape = shape_of(first) + further
    if is_complex(first) != bool(source.part) or kind in ("complex", "conj"):
        return _of_parts(equation, source)
    if kind == "transpose":
        back = np.argsort(params["permutation"]).tolist()
        back += range(len(back), len(shape))
        return [source.moved(first, lambda places: places.transposed(back))]
    if kind == "reshape" and params["dimensions"] is not None:
        return None
    if kind in ("reshape", "squeeze") or (kind == "broadcast_in_dim" and source.index.size == math.prod(shape)):
        return [source.moved(first, lambda places: places.reshaped(shape))]
    if kind in _SAME or (kind == "convert_element_type" and jnp.issubdtype(params["new_dtype"], jnp.inexact)):
        return [source.moved(first, _unmoved)]
    if kind == "neg":
        return [source.moved(first, _unmoved, -1.0)]
    if kind in ("add", "add_any", "sub"):
        whole = shape_of(equation.outputs[0])
        first, second = (program.repeated(atom, whole) if program.is_active(atom) else atom for atom in inputs)
        return [source.moved(first, _unmoved), source.moved(second, _unmoved, -1.0 if kind == "sub" else 1.0)]
    if kind in ("mul", "div"):
        return _scaled(program, equation, source)
    if kind == "pad" and all(low >= 0 and high >= 0 for low, high, _ in params["padding_config"]):
        if not is_zero(program, inputs[1]):
            return None
        ends = zip(params["padding_config"], source.index.shape, strict=False)
        spans = [slice(low, n - high, gap + 1) for (low, high, gap), n in ends] + [slice(None)] * len(further)
        return [source.moved(first, lambda places: places.part(spans))]
    if kind == "reduce_sum":
        axes = [int(axis) for axis in params["axes"]]  # NumPy's integers in JAX 0.9
        return [source.moved(first, lambda places: places.spread(axes, shape))]
    if kind == "concatenate":
        return _concatenated(equation, source)
    return None


def _of_parts(equation: Equation, source: Source) -> list[Source] | None:
    """Read what takes complex numbers apart, or makes them."""
    kind, first = equation.kind, equation.inputs[0]
    same = source.moved(first, _unmoved)
    if kind in ("real", "imag"):
        return [dataclasses.replace(same, part=kind)]
    # The part of a complex multiple of a number is no multiple of that of the number.
    if source.scale != np.real(source.scale) or any(is_complex(scale.atom) for scale in source.scales):
        return None
    same = dataclasses.replace(same, scale=float(np.real(source.scale)))
    if kind == "conj" and source.part and is_complex(first):
        return [dataclasses.replace(same, scale=-same.scale if source.part == "imag" else same.scale)]
    if kind == "complex":
        atom = equation.inputs[source.part == "imag"]
        return [dataclasses.replace(same, value=atom, part="")]
    if kind == "convert_element_type" and jnp.issubdtype(equation.params["new_dtype"], jnp.complexfloating):
        return [dataclasses.replace(same, part="")] if source.part == "real" else []
    return None


def _unmoved(places: Places) -> Places:
    return places


def _concatenated(equation: Equation, source: Source) -> list[Source]:
    axis, every = equation.params["dimension"], [slice(None)] * len(source.index.shape)
    ends = itertools.accumulate((shape_of(atom)[axis] for atom in equation.inputs), initial=0)
    parts = []
    for atom, span in zip(equation.inputs, itertools.pairwise(ends), strict=True):
        spans = [*every[:axis], slice(*span), *every[axis + 1 :]]
        parts.append(source.moved(atom, functools.partial(Places.part, spans=spans)))
    return parts


def _scaled(program: Program, equation: Equation, source: Source) -> list[Source] | None:
    """Read a product or quotient with what does not depend on the cotangent; anything else is no sum."""
    active = 0 if program.is_active(equation.inputs[0]) else 1
    value, by = equation.inputs[active], equation.inputs[1 - active]
    divides = equation.kind == "div"
    if program.is_active(by) or (divides and active == 1):
        return None
    shape = shape_of(equation.outputs[0])
    value = program.repeated(value, shape)
    atom, places = origin(program, by)
    if isinstance(atom, jex.Literal):
        number = np.asarray(atom.val).item()
        if number == 0 and divides:
            return None
        return [source.moved(value, _unmoved, 1 / number if divides else number)]
    places = places.repeated(shape).spread(range(len(shape), len(source.index.shape)), source.index.shape)
    part = source.moved(value, _unmoved)
    return [dataclasses.replace(part, scales=(*part.scales, Scale(atom, divides, places)))]


def origin(program: Program, atom: Atom) -> tuple[Atom, Places]:
    """Return the atom whose entries are repeated or moved to make this one, and the place of each in it."""
    equation = program.producer.get(atom) if isinstance(atom, Name) else None
    kind = equation.kind if isinstance(equation, Equation) else ""
    if kind not in ("broadcast_in_dim", "transpose", "reshape", "squeeze", *_SAME):
        return atom, Places.all_of(shape_of(atom))
    assert isinstance(equation, Equation)
    params, shape = equation.params, shape_of(atom)
    if kind == "reshape" and params["dimensions"] is not None:
        return atom, Places.all_of(shape)
    root, places = origin(program, equation.inputs[0])
    if kind == "broadcast_in_dim":
        dimensions = params["broadcast_dimensions"]
        ones = places.reshaped([places.shape[dimensions.index(a)] if a in dimensions else 1 for a in range(len(shape))])
        return root, ones.repeated(shape)
    if kind == "transpose":
        return root, places.transposed(params["permutation"])
    return root, places.reshaped(shape)


def _of_loop(loop: Loop, source: Source, stops: Collection[Name]) -> list[Source] | None:
    """Return the sources of a loop's output: a final carry, an array with a slice a step, or an exposed value.

    Of a final carry that is what its steps add, followed inside the loop as far as ``stops``.
    """
    body, value = loop.body, source.value
    assert isinstance(value, Name)
    if source.further or source.part:
        return None
    if value in loop.inner:
        atom = loop.inner[value]
        if atom in body.inputs:
            place = body.inputs.index(atom)
            return [source.moved(loop.inputs[place], _unmoved)] if place >= loop.carry.stop else None
        parts = steps(body, Source(atom, _own_places(atom)))
        if parts is None:
            return None
        return [
            _lifted(loop, source, part, functools.partial(Places.entries_of_each, inner=part.index)) for part in parts
        ]
    place = loop.outputs.index(value)
    if place >= len(loop.carry):
        return [source.moved(loop.expose(body.outputs[place]), _unmoved)]
    # A sum over the steps: what was carried in, and what each step adds.
    carried = body.inputs[loop.carry[place]]
    inside = {atom for name, atom in loop.inner.items() if name in stops and isinstance(atom, Name)}
    parts = follow(body, body.outputs[place], _own_places(carried), inside)
    own = [part for part in parts if part.value is carried]
    added = [part for part in parts if part.value is not carried]
    if len(own) != 1 or own[0].scale != 1 or own[0].scales or not own[0].index.same_as(_own_places(carried)):
        return None

    def of_every_step(places: Places, inner: Places) -> Places:
        return places.entries(inner).spread((0,), (loop.length, *inner.shape))

    initial = source.moved(loop.inputs[loop.carry[place]], _unmoved)
    moves = [functools.partial(of_every_step, inner=part.index) for part in added]
    return [initial, *(_lifted(loop, source, part, move) for part, move in zip(added, moves, strict=True))]


def _own_places(atom: Atom) -> Places:
    return Places.all_of(shape_of(atom))


def _lifted(loop: Loop, source: Source, part: Source, move: Callable[[Places], Places]) -> Source:
    """Return a part that the body finds of its own value, as one of the source outside, over all steps."""
    lifted = source.moved(loop.expose(part.value), move, part.scale)
    scales = []
    for atom, divides, places in part.scales:
        each = math.prod(shape_of(atom))
        of_steps = Places((loop.length, each), (each, 1)).entries_of_each(places)
        scales.append(Scale(loop.expose(atom), divides, of_steps))
    return dataclasses.replace(lifted, scales=(*lifted.scales, *scales), part=part.part)
