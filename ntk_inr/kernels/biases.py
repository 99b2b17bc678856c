"""Leaves whose cotangent is a multiple of a product's ``delta``, as a bias is, which the product carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from ntk_inr.kernels.follow import Source, follow, steps
from ntk_inr.kernels.groups import Group, Handling, Site
from ntk_inr.kernels.places import Places, overlap
from ntk_inr.kernels.program import Name, Program, shape_of
from ntk_inr.kernels.tables import Table


@dataclasses.dataclass(frozen=True, eq=False)
class _Base:
    """The value behind a site's ``delta``: the operand is ``scale`` times it, its entries at ``index``."""

    group: Group
    first: int
    site: Site
    index: Places
    scale: float


def carried(
    program: Program,
    groups: list[Group | Table],
    handling: list[Handling],
    places: Sequence[Places],
    fixed: Collection[int],
) -> list[Group | Table]:
    """Let groups carry the leaves whose cotangents are multiples of their ``delta``; return the groups of the rest."""
    bases = _bases(program, groups)
    for leaf, (cotangent, place) in enumerate(zip(program.outputs, places, strict=True)):
        own = [group for group in groups if group.leaf == leaf]
        if leaf in fixed or handling[leaf].kind == "unused" or any(group.biases for group in own):
            continue
        others = {value: base for value, known in bases.items() if (base := _of_other(known, leaf))}
        carriers = _carry(others, follow(program, cotangent, place, others), place.size)
        if carriers:
            handling[leaf] = Handling("bias", "added to the product of", carrier=carriers[0].leaf)
            groups = [group for group in groups if group.leaf != leaf]
            bases = {value: [base for base in known if base.group.leaf != leaf] for value, known in bases.items()}
    return groups


def _of_other(bases: Sequence[_Base], leaf: int) -> _Base | None:
    return next((base for base in bases if base.group.leaf != leaf), None)


def _bases(program: Program, groups: Sequence[Group | Table]) -> dict[Name, list[_Base]]:
    bases: dict[Name, list[_Base]] = {}
    for group in groups:
        if isinstance(group, Table) or group.slot:
            continue
        first = 0
        for site in group.sites:
            base = Source(site.delta, Places.all_of(shape_of(site.delta)))
            while parts := steps(program, base):
                part = parts[0]
                if len(parts) != 1 or part.index.size != base.index.size:
                    break
                if part.scales or part.part or not part.scale:
                    break
                base = part
            if isinstance(base.value, Name):
                bases.setdefault(base.value, []).append(_Base(group, first, site, base.index, base.scale.real))
            first += site.tokens
    return bases


def _carry(bases: dict[Name, _Base], sources: Sequence[Source], size: int) -> list[Group]:
    """Let groups carry a bias whose cotangent is a multiple of their ``delta``; return them, or none."""
    classes: list[tuple[np.ndarray, Group, np.ndarray]] = []
    for source in sources:
        base = bases.get(source.value) if isinstance(source.value, Name) else None
        if base is None or source.scales or source.part:
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
