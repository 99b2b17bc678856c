r"""Finds, in a traced vector-Jacobian product, which cotangents are outer products.

Where a parameter enters ``u = W h``, its cotangent at one example is :math:`\delta h^\top` with
:math:`\delta` the cotangent of ``u`` (T8.1). In the trace of the vector-Jacobian product that is a
``dot_general`` of ``h``, which does not depend on the output's cotangent, with ``delta``, which does. The
two stand in for the product, which is then never formed. Differentiation has already been done by JAX,
so custom derivative rules, rematerialisation, casts and tied weights are read as they are.

A cotangent is followed back through equations that only move, scale or add entries. The places in the
leaf that an intermediate's entries go to are kept as an array of indices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ntk_inr.kernels.program import Atom, Equation, Name, Program

# What one pass over a tile of the kernel costs, in units of a product's multiply and add.
_PASS = 16
_SAME = ("convert_element_type", "copy", "copy_p")

Indices = NDArray[np.int64]
Scales = tuple[tuple[Atom, bool], ...]


@dataclasses.dataclass(frozen=True)
class _End:
    """Where a cotangent comes from: ``scale * value``, whose entries go to the places ``index``."""

    value: Name
    index: Indices
    scale: float
    scales: Scales


@dataclasses.dataclass(frozen=True)
class Site:
    """A product of ``h`` (batch, tokens, m_in) with ``delta`` (batch, tokens, m_out), summed over tokens.

    The axes bring the operands into that order. ``scale`` and ``scales`` (atoms, True where they divide)
    multiply the product.
    """

    h: Atom
    delta: Atom
    h_axes: tuple[int, ...]
    delta_axes: tuple[int, ...]
    batch: int
    tokens: int
    m_in: int
    m_out: int
    scale: float
    scales: Scales


@dataclasses.dataclass
class Group:
    """Sites of one leaf whose gradients fall on the same entries, so that each pair has a cross term (8.5).

    ``offset`` (tokens, tokens) is what the bias that the group carries along adds to the products of ``h``.
    """

    leaf: int
    sites: list[Site]
    offset: NDArray[np.float64]

    @property
    def tokens(self) -> int:
        """How many outer products the leaf's gradient sums, over all sites."""
        return len(self.offset)

    def flops(self, backward: int) -> int:
        """Flops for one pair of examples; ``backward`` is c, or c * c where all output pairs are kept."""
        site = self.sites[0]
        return site.batch * self.tokens**2 * (2 * site.m_in + 2 * backward * site.m_out + _PASS)

    def floats(self, c: int) -> int:
        """Numbers that the two factors of one example hold."""
        site = self.sites[0]
        return site.batch * self.tokens * (site.m_in + c * site.m_out)


@dataclasses.dataclass(frozen=True)
class Handling:
    """How a leaf of the parameters is handled ("product", "bias", "jacobian" or "unused"), and why.

    ``carrier`` is the leaf whose product a bias is added to; ``flops`` and ``floats`` are those of one pair of
    examples and of one example.
    """

    kind: str
    why: str
    flops: int = 0
    floats: int = 0
    carrier: int | None = None


@dataclasses.dataclass(frozen=True)
class Sites:
    """What stands in for the Jacobian: groups of products, and leaves that keep their ``own``."""

    groups: list[Group]
    own: list[int]
    handling: list[Handling]


def find_sites(
    program: Program, cotangents: Sequence[Atom], shapes: Sequence[tuple[int, ...]], c: int, backward: int
) -> Sites:
    """Return how each leaf's cotangent is best represented, exactly.

    Args:
        program: the traced vector-Jacobian product; its active argument is the output's cotangent.
        cotangents: for each leaf its cotangent.
        shapes: for each leaf its shape.
        c: number of outputs.
        backward: c, or c * c where all output pairs are kept, to weigh costs.
    """
    groups: list[Group] = []
    handling: list[Handling] = []
    places = [np.arange(math.prod(shape)).reshape(shape) for shape in shapes]
    for leaf, (cotangent, place) in enumerate(zip(cotangents, places, strict=True)):
        if not _is_active(program, cotangent):
            handling.append(Handling("unused", "the output does not depend on it"))
            continue
        found, why = _grouped(program, leaf, _follow(program, cotangent, place), place.size)
        flops = sum(group.flops(backward) for group in found)
        if found and flops <= 2 * backward * place.size:
            groups += found
            uses = sum(len(group.sites) for group in found)
            why = "operand of a matrix product" if uses == 1 else f"operand of {uses} matrix products"
            handling.append(Handling("product", why, flops, sum(group.floats(c) for group in found)))
        else:
            why = "fewer flops than as products" if found else why
            handling.append(Handling("jacobian", why, 2 * backward * place.size, c * place.size))
    bases = _bases(program, groups)
    for leaf, (cotangent, place) in enumerate(zip(cotangents, places, strict=True)):
        if handling[leaf].kind == "jacobian":
            carriers = _carry(bases, _follow(program, cotangent, place, bases), place.size)
            if carriers:
                handling[leaf] = Handling("bias", "added to the product of", carrier=carriers[0].leaf)
    if all(how.kind == "unused" for how in handling):
        # So that there is something to make a kernel of zeros from.
        size = places[0].size
        handling[0] = Handling("jacobian", "the output depends on no parameter", 2 * backward * size, c * size)
    own = [leaf for leaf, how in enumerate(handling) if how.kind == "jacobian"]
    return Sites(groups, own, handling)


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _is_complex(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.complexfloating)


def _is_active(program: Program, atom: Atom) -> bool:
    return isinstance(atom, Name) and atom in program.active


def _follow(program: Program, atom: Atom, index: Indices, stops: Any = ()) -> list[_End]:
    """Return the ends whose sum, each moved to its places, is ``atom``; inactive parts are zero."""
    ends = []
    todo: list[tuple[Atom, Indices, float, Scales]] = [(atom, index, 1.0, ())]
    while todo:
        value, places, scale, scales = todo.pop()
        if not isinstance(value, Name) or value not in program.active:
            continue
        steps = None if value in stops or value not in program.producer else _steps(program, value, places)
        if steps is None:
            ends.append(_End(value, places, scale, scales))
        else:
            todo += [(source, moved, scale * by, scales + more) for source, moved, by, more in steps]
    return ends


def _steps(program: Program, value: Name, index: Indices) -> list[tuple[Atom, Indices, float, Scales]] | None:
    """Return (input, its places, scale) for each input that ``value`` is a sum of, or None."""
    equation = program.producer[value]
    kind, params, inputs = equation.kind, equation.params, equation.inputs
    first, shape = inputs[0], _shape(inputs[0])
    # The real part of a complex product is no product of real factors.
    if any(_is_complex(atom) for atom in inputs):
        return None
    if kind == "transpose":
        return [(first, index.transpose(np.argsort(params["permutation"])), 1.0, ())]
    if kind == "reshape" and params["dimensions"] is not None:
        return None
    if kind in ("reshape", "squeeze") or (kind == "broadcast_in_dim" and index.size == math.prod(shape)):
        return [(first, index.reshape(shape), 1.0, ())]
    if kind in _SAME:
        return [(first, index, 1.0, ())]
    if kind == "neg":
        return [(first, index, -1.0, ())]
    if kind in ("add", "add_any", "sub"):
        return [(first, index, 1.0, ()), (inputs[1], index, -1.0 if kind == "sub" else 1.0, ())]
    if kind in ("mul", "div"):
        return _scaled(program, equation, index)
    if kind == "pad" and all(low >= 0 and high >= 0 for low, high, _ in params["padding_config"]):
        if program.any_active(inputs[1:]):
            return None
        places = zip(params["padding_config"], index.shape, strict=True)
        return [(first, index[tuple(slice(lo, n - hi, gap + 1) for (lo, hi, gap), n in places)], 1.0, ())]
    if kind == "reduce_sum":
        return [(first, np.broadcast_to(np.expand_dims(index, params["axes"]), shape), 1.0, ())]
    if kind == "concatenate":
        ends = np.cumsum([_shape(atom)[params["dimension"]] for atom in inputs])[:-1]
        parts = np.split(index, ends, axis=params["dimension"])
        return [(atom, part, 1.0, ()) for atom, part in zip(inputs, parts, strict=True)]
    if kind == "stack":
        return [(atom, part, 1.0, ()) for atom, part in zip(inputs, index, strict=True)]
    return None


def _scaled(program: Program, equation: Equation, index: Indices) -> list[tuple[Atom, Indices, float, Scales]] | None:
    """Read a product or quotient with one number; anything else is the end of the way."""
    active = 0 if _is_active(program, equation.inputs[0]) else 1
    value, by = equation.inputs[active], equation.inputs[1 - active]
    broadcast = program.producer.get(by) if isinstance(by, Name) else None
    if broadcast is not None and broadcast.kind == "broadcast_in_dim":
        by = broadcast.inputs[0]
    if math.prod(_shape(by)) != 1 or _shape(value) != index.shape:
        return None
    if isinstance(by, jex.Literal):
        number = float(by.val)
        return [(value, index, 1 / number if equation.kind == "div" else number, ())]
    return [(value, index, 1.0, ((by, equation.kind == "div"),))]


def _grouped(program: Program, leaf: int, ends: list[_End], size: int) -> tuple[list[Group], str]:
    """Return the leaf's groups of products, or none and why not."""
    groups: list[tuple[Indices, list[Site]]] = []
    for end in ends:
        equation = program.producer.get(end.value)
        if equation is None or equation.kind != "dot_general":
            return [], f"its gradient comes from {equation.kind if equation else 'the output itself'}"
        if _is_complex(end.value):
            return [], "its gradient comes from a complex product"
        site, index = _site(program, equation, end)
        for known, sites in groups:
            if np.array_equal(known, index):
                sites.append(site)
                break
        else:
            groups.append((index, [site]))
    hits = sum(np.bincount(index.ravel(), minlength=size) for index, _ in groups)
    if np.max(hits, initial=0) > 1:
        return [], "its uses overlap in different arrangements"
    tokens = [sum(site.tokens for site in sites) for _, sites in groups]
    return [Group(leaf, sites, np.zeros((t, t))) for (_, sites), t in zip(groups, tokens, strict=True)], ""


def _site(program: Program, equation: Equation, end: _End) -> tuple[Site, Indices]:
    contracted, batched = equation.params["dimension_numbers"]
    at = 0 if _is_active(program, equation.inputs[0]) else 1
    axes, widths = [], []
    for operand in (0, 1):
        shape = _shape(equation.inputs[operand])
        first = (*batched[operand], *contracted[operand])
        free = tuple(axis for axis in range(len(shape)) if axis not in first)
        axes.append((*first, *free))
        widths.append(math.prod(shape[axis] for axis in free))
    delta_shape = _shape(equation.inputs[at])
    batch = math.prod(delta_shape[axis] for axis in batched[at])
    tokens = math.prod(delta_shape[axis] for axis in contracted[at])
    index = end.index.reshape(batch, *widths)
    site = Site(
        h=equation.inputs[1 - at],
        delta=equation.inputs[at],
        h_axes=axes[1 - at],
        delta_axes=axes[at],
        batch=batch,
        tokens=tokens,
        m_in=widths[1 - at],
        m_out=widths[at],
        scale=end.scale,
        scales=end.scales,
    )
    return site, index if at == 1 else index.transpose(0, 2, 1)


@dataclasses.dataclass(frozen=True)
class _Base:
    """The value behind a site's ``delta``: the operand is ``scale`` times it, its entries at ``index``."""

    group: Group
    first: int
    site: Site
    index: Indices
    scale: float


def _bases(program: Program, groups: Sequence[Group]) -> dict[Name, _Base]:
    bases: dict[Name, _Base] = {}
    for group in groups:
        first = 0
        for site in group.sites:
            shape = _shape(site.delta)
            value, index, scale = site.delta, np.arange(math.prod(shape)).reshape(shape), 1.0
            while isinstance(value, Name) and value in program.producer:
                steps = _steps(program, value, index)
                if steps is None or len(steps) != 1 or steps[0][1].size != index.size or steps[0][3] or not steps[0][2]:
                    break
                value, index, scale = steps[0][0], steps[0][1], scale * steps[0][2]
            if isinstance(value, Name):
                bases.setdefault(value, _Base(group, first, site, index, scale))
            first += site.tokens
    return bases


def _carry(bases: dict[Name, _Base], ends: Sequence[_End], size: int) -> list[Group]:
    """Let groups carry a bias whose cotangent is a multiple of their ``delta``; return them, or none."""
    classes: list[tuple[Indices, Group, NDArray[np.float64]]] = []
    for end in ends:
        base = bases.get(end.value)
        if base is None or end.scales:
            return []
        site = base.site
        flat = np.empty(base.index.size, np.int64)
        flat[base.index.ravel()] = end.index.ravel()
        places = flat.reshape(_shape(site.delta)).transpose(site.delta_axes)
        places = places.reshape(site.batch, site.tokens, site.m_out)
        if not np.array_equal(places, np.broadcast_to(places[:, :1], places.shape)):
            return []
        weights = np.zeros(base.group.tokens)
        weights[base.first : base.first + site.tokens] = end.scale / base.scale
        for known, group, total in classes:
            if group is base.group and np.array_equal(known, places[:, 0]):
                total += weights
                break
        else:
            classes.append((places[:, 0], base.group, weights))
    hits = sum(np.bincount(index.ravel(), minlength=size) for index, _, _ in classes)
    if not classes or np.max(hits, initial=0) > 1:
        return []
    for _, group, weights in classes:
        group.offset += np.outer(weights, weights)
    return [group for _, group, _ in classes]
