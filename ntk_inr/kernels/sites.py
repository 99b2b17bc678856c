r"""Finds, in a traced vector-Jacobian product, which cotangents are outer products.

Where a parameter enters ``u = W h``, its cotangent at one example is :math:`\delta h^\top` with
:math:`\delta` the cotangent of ``u`` (T8.1). In the trace of the vector-Jacobian product that is a
``dot_general`` of ``h``, which does not depend on the output's cotangent, with ``delta``, which does. The
two stand in for the product, which is then never formed. Differentiation has already been done by JAX,
so custom derivative rules, rematerialisation, casts and tied weights are read as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ntk_inr._dtypes import accumulation_dtype
from ntk_inr.kernels.biases import carried
from ntk_inr.kernels.contractions import Product, complete, contract_sums, product_of, unfolded
from ntk_inr.kernels.follow import Source, follow
from ntk_inr.kernels.groups import Group, Handling, Own, Site, Sites
from ntk_inr.kernels.places import Places, overlap
from ntk_inr.kernels.program import Atom, Equation, Loop, Name, Program, aval_of
from ntk_inr.kernels.scatters import Scatter, scatter_of
from ntk_inr.kernels.tables import Table, tables

# How many products in one another, and how many parts of each, are looked through.
_NESTED = 4


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
    groups: list[Group | Table] = []
    own: list[Own] = []
    handling: list[Handling] = []
    places = [Places.all_of(shape) for shape in shapes]
    for leaf, (cotangent, place) in enumerate(zip(program.outputs, places, strict=True)):
        sources = follow(program, cotangent, place)
        if fixed.get(leaf) == "unused" or not sources:
            handling.append(Handling("unused", "the output does not depend on it"))
            continue
        if leaf in fixed:
            candidates, parts, why = list[Group | Table](), list[Own](), "handled as in another function"
        else:
            candidates, parts, why = _grouped(program, leaf, sources, place.size)
        flops = sum(group.flops(backward, differentiable=differentiable) for group in candidates)
        flops += sum(2 * backward * part.size for part in parts)
        if candidates and flops <= 2 * backward * place.size:
            groups += candidates
            own += parts
            floats = sum(group.floats(c, differentiable=differentiable) for group in candidates)
            floats += sum(c * part.size for part in parts)
            kind, why = _reason(candidates)
            why += ", and what normalizing it takes away" if parts else ""
            handling.append(Handling(kind, why, flops, floats))
        else:
            why = "fewer flops than as products" if candidates else why
            handling.append(Handling("jacobian", why, 2 * backward * place.size, c * place.size))
    groups = carried(program, groups, handling, places, fixed)
    if all(how.kind == "unused" for how in handling):
        # So that there is something to make a kernel of zeros from.
        size = places[0].size
        handling[0] = Handling("jacobian", "the output depends on no parameter", 2 * backward * size, c * size)
    own = [part for part in own if handling[part.leaf].kind != "bias"]
    own += [Own(leaf, program.outputs[leaf]) for leaf, how in enumerate(handling) if how.kind == "jacobian"]
    contract_sums(program, [part.atom for part in own])
    return Sites(groups, sorted(own, key=lambda part: (part.negative, part.leaf)), handling)


def _reason(groups: Sequence[Group | Table]) -> tuple[str, str]:
    """Return how a leaf with these groups is handled, and why."""
    looked = sum(group.batch * group.slots for group in groups if isinstance(group, Table))
    rows = looked or int(any(group.slot for group in groups if isinstance(group, Group)))
    if rows:
        return "gather", "a row of it is looked up" if rows == 1 else f"{rows} rows of it are looked up"
    uses = max(group.tokens for group in groups)
    several = f"sum of {uses} products over orthonormal inputs: {uses**2} pairs"
    return "product", several if uses > 1 else "operand of a matrix product"


def _grouped(
    program: Program, leaf: int, sources: list[Source], size: int
) -> tuple[list[Group | Table], list[Own], str]:
    """Return the leaf's groups of products and tables, and the parts of its own beside them, or none and why not."""
    scatters: list[Scatter] = []
    others = []
    for source in sources:
        value, scatter = source.value, None
        if isinstance(value, Name) and not (source.scales or source.part or source.further or np.imag(source.scale)):
            scatter = scatter_of(program, value, source.index, float(np.real(source.scale)))
        if scatter is None:
            others.append(source)
        else:
            scatters.append(scatter)
    groups, parts, why = _outer(program, leaf, others, size)
    if why or not scatters:
        return list(groups), parts, why
    found = _in_row(program, leaf, scatters) or tables(program, leaf, scatters)
    if found is None or parts or any(overlap([group.index, each.index], size) for group in groups for each in scatters):
        return [], [], "its uses overlap in different arrangements"
    return [*groups, *found], [], ""


def _in_row(program: Program, leaf: int, scatters: list[Scatter]) -> list[Group]:
    """Return groups of the products that are added to one row, which the example looks up, if that is all there is."""
    first = scatters[0]
    if any(each.slots > 1 or each.indices != first.indices or not each.lies_as(first) for each in scatters):
        return []
    sources = [
        dataclasses.replace(source, scale=source.scale * each.scale)
        for each in scatters
        for source in follow(program, each.delta, each.row_of_updates)
    ]
    groups, parts, _ = _outer(program, leaf, sources, first.row.last + 1)
    if parts:
        return []
    for group in groups:
        group.slot = first
    return groups


def _outer(program: Program, leaf: int, sources: list[Source], size: int) -> tuple[list[Group], list[Own], str]:
    """Return the leaf's groups of products, and the parts of its own beside them, or none and why not."""
    groups: list[tuple[Places, list[Product]]] = []
    repeated, found = [], list[Product]()
    for source in sources:
        if not program.is_active(source.value):
            return [], [], "a part of its gradient does not depend on the output"
        if _is_repeated(program, source.value):
            repeated.append(source)
            continue
        products = _products(program, source)
        if isinstance(products, str):
            return [], [], products
        found += products
    for product in _whole(found):
        index = product.index if product.part == "both" else product.blocks
        for known, others in groups:
            if known.same_as(index):
                others.append(product)
                break
        else:
            groups.append((index, [product]))
    if overlap([index for index, _ in groups], size):
        return [], [], "its uses overlap in different arrangements"
    parts: list[Own] = []
    if repeated:
        completed = complete(program, groups[0][1], repeated) if len(groups) == 1 else None
        if completed is None:
            return [], [], "its gradient comes from broadcast_in_dim"
        parts = [Own(leaf, atom, negative) for atom, negative in zip(completed, (True, False), strict=True)]
    made = [
        Group(leaf, index, _merged(program, [_site(program, product) for product in products]))
        for index, products in groups
    ]
    return made, parts, ""


def _whole(products: Sequence[Product]) -> list[Product]:
    """Return products with the real and the imaginary part of complex ones together."""
    whole: list[Product] = []
    for product in products:
        for place, other in enumerate(whole):
            if both := other.with_other_part(product) or product.with_other_part(other):
                whole[place] = both
                break
        else:
            whole.append(product)
    return whole


def _is_repeated(program: Program, value: Name) -> bool:
    equation = program.producer.get(value)
    return isinstance(equation, Equation) and equation.kind == "broadcast_in_dim"


def _products(program: Program, source: Source, depth: int = _NESTED) -> list[Product] | str:
    """Return what a source is the sum of, as outer products, or why it is no such sum."""
    if not program.is_active(source.value):
        return "a part of its gradient does not depend on the output"
    equation = _producer(program, source.value)
    if not isinstance(equation, Equation) or equation.kind != "dot_general":
        return f"its gradient comes from {equation.kind if equation else 'the output itself'}"
    if all(map(program.is_active, equation.inputs)):
        return "its gradient is not linear in the output's"
    product = product_of(program, equation, source)
    tokens = product.count(product.tokens)
    if tokens > 1 and depth:
        parts = unfolded(program, equation, source)
        nested = [_products(program, part, depth - 1) for part in parts] if len(parts) <= _NESTED else []
        inner = [product for part in nested if not isinstance(part, str) for product in part]
        fewer = sum(each.count(each.tokens) for each in inner) < tokens
        if inner and fewer and not any(isinstance(part, str) for part in nested):
            return inner
    return [product] if product.is_outer else "its products are scaled entry by entry"


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
    return getattr(site, shared) is getattr(other, shared) and shape == like and axes


def _added(program: Program, sites: Sequence[Site], added: str) -> Site:
    """Return one site for several that share an operand: of the sum of the others, at least in float32."""
    atoms = [getattr(site, added) for site in sites]
    aval = aval_of(atoms[0])
    dtype = accumulation_dtype(aval.dtype)

    def evaluate(values: Sequence[Any]) -> list[Any]:
        wide = zip((value.astype(dtype) for value in values), sites, strict=True)
        return [sum(value if site.scale == 1 else site.scale * value for value, site in wide)]

    total = program.derive(atoms, jax.core.ShapedArray(aval.shape, dtype), evaluate)
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


def _site(program: Program, product: Product) -> Site:
    (h, h_axes), (delta, delta_axes) = (product.side(program, left=left) for left in (True, False))
    batch, tokens, m_in, m_out = (
        product.count(axes) for axes in (product.batch, product.tokens, product.rows, product.columns)
    )
    if product.part:
        return Site(h, delta, h_axes, delta_axes, batch, 2 * tokens, m_in, m_out * (1 + (product.part == "both")), 1.0)
    return Site(h, delta, h_axes, delta_axes, batch, tokens, m_in, m_out, product.scale.real)
