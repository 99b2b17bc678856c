r"""Finds, in a traced vector-Jacobian product, which cotangents are outer products.

Where a parameter enters ``u = W h``, its cotangent at one example is :math:`\delta h^\top` with
:math:`\delta` the cotangent of ``u`` (T8.1). In the trace of the vector-Jacobian product that is a
``dot_general`` of ``h``, which does not depend on the output's cotangent, with ``delta``, which does. The
two stand in for the product, which is then never formed. Differentiation has already been done by JAX,
so custom derivative rules, rematerialisation, casts and tied weights are read as they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ntk_inr.kernels.follow import Scales, Source, follow, is_complex, steps
from ntk_inr.kernels.places import Places, overlap
from ntk_inr.kernels.program import Atom, Equation, Loop, Name, Program, aval_of, shape_of

# What one pass over a tile of the kernel costs, in units of a product's multiply and add.
_PASS = 16


@dataclasses.dataclass(frozen=True, eq=False)
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


@dataclasses.dataclass(eq=False)
class Group:
    """Sites of one leaf whose gradients fall on the same entries ``index``, so that each pair has a cross term (8.5).

    ``biases`` are the biases that the group carries along: for each the weight of every token's ``delta`` in its
    gradient, as a further column of ``h`` would have it.
    """

    leaf: int
    index: Places
    sites: list[Site]
    biases: list[np.ndarray] = dataclasses.field(default_factory=list)

    @property
    def batch(self) -> int:
        """How many blocks of the leaf have outer products of their own."""
        return self.sites[0].batch

    @property
    def tokens(self) -> int:
        """How many outer products the leaf's gradient sums, over all sites."""
        return sum(site.tokens for site in self.sites)

    def flops(self, backward: int, *, differentiable: bool) -> int:
        """Flops for one pair of examples; ``backward`` is c, or c * c where all output pairs are kept."""
        site, tokens = self.sites[0], _kept(self.tokens, differentiable)
        return site.batch * tokens**2 * (2 * site.m_in + 2 * backward * site.m_out + _PASS)

    def floats(self, c: int, *, differentiable: bool) -> int:
        """Numbers that the two factors of one example hold."""
        site, tokens = self.sites[0], _kept(self.tokens, differentiable)
        return site.batch * tokens * (site.m_in + c * site.m_out)


def _kept(tokens: int, differentiable: bool) -> int:
    return 2 * tokens if differentiable and tokens > 1 else tokens


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


@dataclasses.dataclass(frozen=True, eq=False)
class Sites:
    """What stands in for the Jacobian: groups of products, and leaves that keep their ``own``."""

    groups: list[Group]
    own: list[int]
    handling: list[Handling]


def find_sites(
    program: Program,
    shapes: Sequence[tuple[int, ...]],
    c: int,
    backward: int,
    *,
    differentiable: bool,
    fixed: Mapping[int, str],
) -> Sites:
    """Return how each leaf's cotangent is best represented, exactly.

    Args:
        program: the traced vector-Jacobian product, from the output's cotangent, the active argument, to the leaves'.
        shapes: for each leaf its shape.
        c: number of outputs.
        backward: c, or c * c where all output pairs are kept, to weigh costs.
        differentiable: whether the factors may be differentiated, which takes twice the tokens.
        fixed: leaves whose handling is given, "jacobian" or "unused".
    """
    groups: list[Group] = []
    handling: list[Handling] = []
    places = [Places.all_of(shape) for shape in shapes]
    for leaf, (cotangent, place) in enumerate(zip(program.outputs, places, strict=True)):
        sources = follow(program, cotangent, place)
        if fixed.get(leaf) == "unused" or not sources:
            handling.append(Handling("unused", "the output does not depend on it"))
            continue
        if leaf in fixed:
            candidates, why = list[Group](), "handled as in another function"
        else:
            candidates, why = _grouped(program, leaf, sources, place.size)
        flops = sum(group.flops(backward, differentiable=differentiable) for group in candidates)
        if candidates and flops <= 2 * backward * place.size:
            groups += candidates
            uses = max(group.tokens for group in candidates)
            why = f"sum of {uses} products over orthonormal inputs: {uses**2} pairs"
            why = why if uses > 1 else "operand of a matrix product"
            floats = sum(group.floats(c, differentiable=differentiable) for group in candidates)
            handling.append(Handling("product", why, flops, floats))
        else:
            why = "fewer flops than as products" if candidates else why
            handling.append(Handling("jacobian", why, 2 * backward * place.size, c * place.size))
    bases = _bases(program, groups)
    for leaf, (cotangent, place) in enumerate(zip(program.outputs, places, strict=True)):
        if handling[leaf].kind == "jacobian" and leaf not in fixed:
            carriers = _carry(bases, follow(program, cotangent, place, bases), place.size)
            if carriers:
                handling[leaf] = Handling("bias", "added to the product of", carrier=carriers[0].leaf)
    if all(how.kind == "unused" for how in handling):
        # So that there is something to make a kernel of zeros from.
        size = places[0].size
        handling[0] = Handling("jacobian", "the output depends on no parameter", 2 * backward * size, c * size)
    own = [leaf for leaf, how in enumerate(handling) if how.kind == "jacobian"]
    return Sites(groups, own, handling)


def _grouped(program: Program, leaf: int, sources: list[Source], size: int) -> tuple[list[Group], str]:
    """Return the leaf's groups of products, or none and why not."""
    groups: list[tuple[Places, list[Site]]] = []
    for source in sources:
        if not program.is_active(source.value):
            return [], "a part of its gradient does not depend on the output"
        equation = _producer(program, source.value)
        if not isinstance(equation, Equation) or equation.kind != "dot_general":
            return [], f"its gradient comes from {equation.kind if equation else 'the output itself'}"
        if is_complex(source.value):
            return [], "its gradient comes from a complex product"
        if all(map(program.is_active, equation.inputs)):
            return [], "its gradient is not linear in the output's"
        site, index = _site(program, equation, source)
        for known, sites in groups:
            if known.same_as(index):
                sites.append(site)
                break
        else:
            groups.append((index, [site]))
    if overlap([index for index, _ in groups], size):
        return [], "its uses overlap in different arrangements"
    return [Group(leaf, index, _merged(program, sites)) for index, sites in groups], ""


def _merged(program: Program, sites: Sequence[Site]) -> list[Site]:
    """Return sites of one group with those made one that share an operand, since their other operands add up."""
    for shared, added in (("h", "delta"), ("delta", "h")):
        classes: list[list[Site]] = []
        for site in sites:
            like = (same for same in classes if _add_up(same[0], site, shared, added))
            known = next(like, None)
            if known is None:
                classes.append([site])
            else:
                known.append(site)
        sites = [_added(program, same, added) if len(same) > 1 else same[0] for same in classes]
    return list(sites)


def _add_up(site: Site, other: Site, shared: str, added: str) -> bool:
    """Return whether two sites have one operand ``shared``, and others ``added`` whose entries correspond."""
    avals = (aval_of(getattr(each, added)) for each in (site, other))
    shape, like = ((aval.shape, aval.dtype) for aval in avals)
    axes = (site.h_axes, site.delta_axes) == (other.h_axes, other.delta_axes)
    return getattr(site, shared) is getattr(other, shared) and shape == like and axes and site.scales == other.scales


def _added(program: Program, sites: Sequence[Site], added: str) -> Site:
    total = program.weighted_sum([(getattr(site, added), site.scale) for site in sites])
    h, delta = (sites[0].h, total) if added == "delta" else (total, sites[0].delta)
    return dataclasses.replace(sites[0], h=h, delta=delta, scale=1.0)


def _producer(program: Program, value: Name) -> Equation | Loop | None:
    """Return the equation that makes a value; of products in a loop's body, the one that makes them of all steps."""
    equation = program.producer.get(value)
    if not isinstance(equation, Loop) or value not in equation.inner:
        return equation
    inner = equation.inner[value]
    inside = _producer(equation.body, inner) if isinstance(inner, Name) else None
    if not isinstance(inside, Equation) or inside.kind != "dot_general":
        return inside
    contracted, batched = (
        tuple(tuple(axis + 1 for axis in axes) for axes in pair) for pair in inside.params["dimension_numbers"]
    )
    batched = tuple((0, *axes) for axes in batched)
    operands: list[Atom] = [equation.expose(atom) for atom in inside.inputs]
    return Equation("dot_general", {"dimension_numbers": (contracted, batched)}, operands, [value], inside.evaluate)


def _site(program: Program, equation: Equation, source: Source) -> tuple[Site, Places]:
    """Return a product as a site, and the places (batch, m_in, m_out) of what it makes."""
    contracted, batched = equation.params["dimension_numbers"]
    at = 0 if program.is_active(equation.inputs[0]) else 1
    index = source.index
    # Entries of a batch that go to the same places are added up, as those of tokens are.
    shared = [axis for axis in range(len(batched[0])) if index.is_constant(axis)]
    index = index.part([0 if axis in shared else slice(None) for axis in range(len(index.shape))])
    axes, widths = [], []
    for operand in (0, 1):
        shape = shape_of(equation.inputs[operand])
        own = [axis for place, axis in enumerate(batched[operand]) if place not in shared]
        summed = [*(batched[operand][place] for place in shared), *contracted[operand]]
        free = [axis for axis in range(len(shape)) if axis not in (*own, *summed)]
        axes.append((*own, *summed, *free))
        widths.append(math.prod(shape[axis] for axis in free))
        batch, tokens = (math.prod(shape[axis] for axis in part) for part in (own, summed))
    index = index.reshaped((batch, *widths))
    site = Site(
        h=equation.inputs[1 - at],
        delta=equation.inputs[at],
        h_axes=axes[1 - at],
        delta_axes=axes[at],
        batch=batch,
        tokens=tokens,
        m_in=widths[1 - at],
        m_out=widths[at],
        scale=source.scale,
        scales=source.scales,
    )
    return site, index if at == 1 else index.transposed((0, 2, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class _Base:
    """The value behind a site's ``delta``: the operand is ``scale`` times it, its entries at ``index``."""

    group: Group
    first: int
    site: Site
    index: Places
    scale: float


def _bases(program: Program, groups: Sequence[Group]) -> dict[Name, _Base]:
    bases: dict[Name, _Base] = {}
    for group in groups:
        first = 0
        for site in group.sites:
            base = Source(site.delta, Places.all_of(shape_of(site.delta)))
            while parts := steps(program, base):
                part = parts[0]
                if len(parts) != 1 or part.index.size != base.index.size or part.scales or not part.scale:
                    break
                base = part
            if isinstance(base.value, Name):
                bases.setdefault(base.value, _Base(group, first, site, base.index, base.scale))
            first += site.tokens
    return bases


def _carry(bases: dict[Name, _Base], sources: Sequence[Source], size: int) -> list[Group]:
    """Let groups carry a bias whose cotangent is a multiple of their ``delta``; return them, or none."""
    classes: list[tuple[np.ndarray, Group, np.ndarray]] = []
    for source in sources:
        base = bases.get(source.value) if isinstance(source.value, Name) else None
        if base is None or source.scales:
            return []
        site = base.site
        flat = np.empty(base.index.size, np.int64)
        flat[base.index.array().ravel()] = source.index.array().ravel()
        moved = flat.reshape(shape_of(site.delta)).transpose(site.delta_axes)
        places = moved.reshape(site.batch, site.tokens, site.m_out)
        if not np.array_equal(places, np.broadcast_to(places[:, :1], places.shape)):
            return []
        weights = np.zeros(base.group.tokens)
        weights[base.first : base.first + site.tokens] = source.scale / base.scale
        for known, group, total in classes:
            if group is base.group and np.array_equal(known, places[:, 0]):
                total += weights
                break
        else:
            classes.append((places[:, 0], base.group, weights))
    if not classes or overlap([Places.listed(index) for index, _, _ in classes], size):
        return []
    for _, group, weights in classes:
        group.biases.append(weights)
    return [group for _, group, _ in classes]
