"""Follows a cotangent of a parameter back to where it comes from, through what only moves, scales or adds entries.

The places in the parameter that an intermediate's entries go to are kept beside it. Values are visited once each, in
reverse order of evaluation, so that a network whose layers share their past costs no more than another.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from ntk_inr.kernels.places import Places
from ntk_inr.kernels.program import Atom, Equation, Loop, Name, Program, aval_of, shape_of

_SAME = ("copy", "copy_p")
_MOVED = ("reshape", "squeeze", "transpose", "broadcast_in_dim", "convert_element_type", "neg", "reduce_sum", *_SAME)
# A value that goes to more places than this in different ways is not followed further.
_WAYS = 64

Scales = tuple[tuple[Atom, bool], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A part of a cotangent: ``scale * value``, whose entries go to the places ``index``.

    ``scales`` are atoms, each of one number, that multiply the value, or divide it where True stands beside them.
    """

    value: Atom
    index: Places
    scale: float = 1.0
    scales: Scales = ()


def follow(program: Program, atom: Atom, index: Places, stops: Collection[Name] = ()) -> list[Source]:
    """Return the parts that ``atom`` is the sum of, each to be added at its ``index``; parts of zeros are left out."""
    ends: list[Source] = []
    pending: dict[Name, list[Source]] = {}

    def add(source: Source) -> None:
        if is_zero(program, source.value):
            return
        if program.is_active(source.value):
            pending.setdefault(source.value, []).append(source)
        else:
            ends.append(source)

    add(Source(atom, index))
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
            if source.scales == other.scales and source.index.same_as(other.index):
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
    parts = _of_loop(equation, source, stops) if isinstance(equation, Loop) else _of(program, equation, source.index)
    if parts is None:
        return None
    return [
        dataclasses.replace(part, scale=source.scale * part.scale, scales=source.scales + part.scales) for part in parts
    ]


def _of(program: Program, equation: Equation, index: Places) -> list[Source] | None:
    """Return the sources of an equation's output."""
    kind, params, inputs = equation.kind, equation.params, equation.inputs
    if not inputs:
        return None
    first, shape = inputs[0], shape_of(inputs[0])
    # The real part of a complex product is no product of real factors.
    if any(is_complex(atom) for atom in inputs):
        return None
    if kind == "transpose":
        return [Source(first, index.transposed(np.argsort(params["permutation"]).tolist()))]
    if kind == "reshape" and params["dimensions"] is not None:
        return None
    if kind in ("reshape", "squeeze") or (kind == "broadcast_in_dim" and index.size == math.prod(shape)):
        return [Source(first, index.reshaped(shape))]
    if kind in _SAME or (kind == "convert_element_type" and jnp.issubdtype(params["new_dtype"], jnp.floating)):
        return [Source(first, index)]
    if kind == "neg":
        return [Source(first, index, -1.0)]
    if kind in ("add", "add_any", "sub"):
        return [Source(first, index), Source(inputs[1], index, -1.0 if kind == "sub" else 1.0)]
    if kind in ("mul", "div"):
        return _scaled(program, equation, index)
    if kind == "pad" and all(low >= 0 and high >= 0 for low, high, _ in params["padding_config"]):
        if not is_zero(program, inputs[1]):
            return None
        places = zip(params["padding_config"], index.shape, strict=True)
        return [Source(first, index.part([slice(lo, n - hi, gap + 1) for (lo, hi, gap), n in places]))]
    if kind == "reduce_sum":
        axes = [int(axis) for axis in params["axes"]]  # NumPy's integers in JAX 0.9
        return [Source(first, index.spread(axes, shape))]
    if kind == "concatenate":
        axis, every = params["dimension"], [slice(None)] * len(index.shape)
        ends = [0, *itertools.accumulate(shape_of(atom)[axis] for atom in inputs)]
        spans = ([*every[:axis], slice(*ends_of), *every[axis + 1 :]] for ends_of in itertools.pairwise(ends))
        return [Source(atom, index.part(span)) for atom, span in zip(inputs, spans, strict=True)]
    return None


def _scaled(program: Program, equation: Equation, index: Places) -> list[Source] | None:
    """Read a product or quotient with one number that does not depend on the cotangent; anything else is no sum."""
    active = 0 if program.is_active(equation.inputs[0]) else 1
    value, by = equation.inputs[active], equation.inputs[1 - active]
    if program.is_active(by) or (equation.kind == "div" and active == 1):
        return None
    broadcast = program.producer.get(by) if isinstance(by, Name) else None
    if isinstance(broadcast, Equation) and broadcast.kind == "broadcast_in_dim":
        by = broadcast.inputs[0]
    if math.prod(shape_of(by)) != 1 or shape_of(value) != index.shape:
        return None
    if isinstance(by, jex.Literal):
        number = np.asarray(by.val).item()
        if number == 0 and equation.kind == "div":
            return None
        return [Source(value, index, 1 / number if equation.kind == "div" else number)]
    return [Source(value, index, 1.0, ((by, equation.kind == "div"),))]


def _of_loop(loop: Loop, source: Source, stops: Collection[Name]) -> list[Source] | None:
    """Return the sources of a loop's output: a final carry, an array with a slice a step, or an exposed value."""
    body, value, index = loop.body, source.value, source.index
    assert isinstance(value, Name)
    if value in loop.inner:
        atom = loop.inner[value]
        if atom in body.inputs:
            place = body.inputs.index(atom)
            return [Source(loop.inputs[place], index)] if place >= loop.carry.stop else None
        parts = steps(body, Source(atom, _own_places(atom)))
        if parts is None:
            return None
        return [_lifted(loop, part, index.entries_of_each(part.index)) for part in parts]
    place = loop.outputs.index(value)
    if place >= len(loop.carry):
        return [Source(loop.expose(body.outputs[place]), index)]
    # A sum over the steps: what was carried in, and what each step adds.
    carried = body.inputs[loop.carry[place]]
    inside = {atom for name, atom in loop.inner.items() if name in stops and isinstance(atom, Name)}
    parts = follow(body, body.outputs[place], _own_places(carried), inside)
    own = [part for part in parts if part.value is carried]
    added = [part for part in parts if part.value is not carried]
    if len(own) != 1 or own[0].scale != 1 or own[0].scales or not own[0].index.same_as(_own_places(carried)):
        return None
    initial = loop.inputs[loop.carry[place]]
    every = [index.entries(part.index).spread((0,), (loop.length, *part.index.shape)) for part in added]
    return [Source(initial, index), *(_lifted(loop, part, i) for part, i in zip(added, every, strict=True))]


def _own_places(atom: Atom) -> Places:
    return Places.all_of(shape_of(atom))


def _lifted(loop: Loop, part: Source, index: Places) -> Source:
    scales = tuple((loop.expose(by), divides) for by, divides in part.scales)
    return Source(loop.expose(part.value), index, part.scale, scales)
