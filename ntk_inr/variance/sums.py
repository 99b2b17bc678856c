"""The sums over pairs of coordinates that a variance budget is made of, tile by tile, each term apart (T8)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial

from ntk_inr._dtypes import at_precision, unit_of
from ntk_inr._typing import Params, Progress
from ntk_inr.kernels import assembly, memory
from ntk_inr.kernels.grams import Factor
from ntk_inr.kernels.grams import diagonal as diagonal_of
from ntk_inr.kernels.grams import grams as grams_of
from ntk_inr.kernels.grams import term as term_of
from ntk_inr.kernels.memory import Cut
from ntk_inr.kernels.model import Model, trace_of
from ntk_inr.kernels.structured import Trace


class Terms(NamedTuple):
    """The terms of a kernel in the order of the forward pass: groups of products, and leaves with their own Jacobian.

    ``order`` numbers them as groups and then leaves; ``widths`` are the sizes of those leaves.
    """

    names: tuple[str, ...]
    order: tuple[int, ...]
    widths: tuple[int, ...]


class Sums(NamedTuple):
    """Sums over one kernel of n coordinates and L terms, in float64.

    Attributes:
        pairs: ``sum_{i != j} H_l H_l'`` (L, L).
        similarities: ``sum_{i != j} A_ij**2 / (A_ii A_jj)`` (3, L) for A = F, B and H of each term. Pairs in
            which one is zero count as zero; where F and B don't exist these are NaN.
        diagonals: F_ii, B_ii and H_ii, (n, 3, L).
    """

    pairs: np.ndarray
    similarities: np.ndarray
    diagonals: np.ndarray


class Figures(NamedTuple):
    """The figures of a budget, named as in :class:`~ntk_inr.variance.VarianceBudget`; matrices come first."""

    off_diagonal: np.ndarray
    diagonal: np.ndarray
    means: np.ndarray
    forward_scale: np.ndarray
    backward_scale: np.ndarray
    forward_tau: np.ndarray
    backward_tau: np.ndarray
    tau: np.ndarray
    overlap: np.ndarray


class _Chunk(NamedTuple):
    """The terms' factors at a block of coordinates, and the diagonals of F, B and H (3, L, block)."""

    factors: list[Factor]
    diagonals: Array


def plan(model: Model) -> tuple[Trace, Terms]:
    """Return the model's trace and the terms of its kernel, named by the paths of their parameters."""
    trace = trace_of(model, "terms")
    return trace, _terms(trace, model.params)


@functools.partial(jax.jit, static_argnames=("c", "terms", "precision"))
def term_factors(apply: Partial, params: Params, x: Any, *, c: int, terms: Terms, precision: str) -> list[Factor]:
    """Return the factors of each of the ``terms`` at coordinates ``x``."""
    factors = assembly.factors(apply, params, x, c=c, outputs="terms", precision=precision)
    if terms.widths:
        own = [factor for factor in factors if factor.h is None and factor.places is None]
        factors = [factor for factor in factors if factor.h is not None or factor.places is not None]
        widths = list(terms.widths)
        for whole in own:
            first = 0
            while first < whole.delta.shape[-1]:
                last = first + widths.pop(0)
                factors.append(whole._replace(delta=whole.delta[..., first:last]))
                first = last
    return [factors[term] for term in terms.order]


def is_factored(factor: Factor) -> bool:
    """Return whether the term is one product F * B, with nothing summed over tokens or a batch (8.5)."""
    return factor.h is not None and factor.delta.shape[2:4] == (1, 1)


def _terms(trace: Trace, params: Params) -> Terms:
    groups, own = trace.sites.groups, trace.sites.own

    def rank(atom: Any) -> tuple[float, ...]:
        """Return when the backward pass, which comes to the last layer first, is done with this value."""
        return trace.program.order.get(atom, (-1,))

    ranks = [max(rank(site.delta) for site in group.sites) for group in groups]
    ranks += [rank(trace.program.outputs[part.leaf]) for part in own]
    order = tuple(sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True))
    return Terms(_term_names(trace, params, order), order, tuple(part.size for part in own))


def _term_names(trace: Trace, params: Any, order: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the terms in this order: their leaves' paths, with the part of the leaf and its biases."""
    groups = trace.sites.groups
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    leaves = [jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path in paths]
    leaf_of = [*(group.leaf for group in groups), *(part.leaf for part in trace.sites.own)]
    names = []
    for term in order:
        leaf = leaf_of[term]
        name = leaves[leaf]
        of_leaf = [other for other in order if leaf_of[other] == leaf]
        if len(of_leaf) > 1:
            name += f"[part {of_leaf.index(term)}]"
        if term < len(groups) and groups[term].biases:
            name += f" (+{_carried(trace, leaves, leaf)})"
        names.append(name)
    return tuple(names)


def _carried(trace: Trace, leaves: list[str], leaf: int) -> str:
    """Return the names of the biases in a leaf's term, short for those of the same layer."""
    parent = leaves[leaf].rpartition("/")[0] + "/"
    carried = [name for name, how in zip(leaves, trace.sites.handling, strict=True) if how.carrier == leaf]
    return ", ".join(name.removeprefix(parent) for name in carried) or "bias"


def cut_for(trace: Trace, terms: Terms, n: int, *, limit: int | None, block: int | None) -> Cut:
    """Choose tiles that leave room for an array of their size for each term, or say what the least is."""
    itemsize = np.dtype(trace.dtype).itemsize
    limit = memory.available() if limit is None else limit
    count = len(terms.names)
    if block is None:
        # The tiles that any kernel needs, and one for each term, share the limit evenly.
        share = int(limit * (memory.AHEAD + 3) / (memory.AHEAD + 3 + count))
        block = memory.cut(trace, n, n, "trace", stored=0, limit=share, block=None).block
    stored = count * min(block, n) ** 2 * itemsize
    return memory.cut(trace, n, n, "trace", stored=stored, limit=limit, block=block)


def reduced(
    model: Model,
    x: Any,
    terms: Terms,
    cut: Cut,
    *,
    precision: str,
    progress: Progress | None,
    grams: np.ndarray | None = None,
) -> Sums:
    """Return the sums over the kernel at ``x``; its F and B fill ``grams`` (2, L, n, n) if there is one."""
    points = np.asarray(x)
    n, count = len(points), len(terms.names)
    blocks = -(-n // cut.block)
    factored = np.zeros(count, bool)

    def chunk(part: np.ndarray) -> _Chunk:
        made = _chunk(model.apply, model.params, part, c=model.c, terms=terms, precision=precision)
        factored[:] = [is_factored(factor) for factor in made.factors]
        return made

    def started() -> Iterator[tuple[slice, slice, Any, Any, Any]]:
        for rows, columns, above, beside in assembly.pairs(points, None, cut, chunk):
            extent = (rows.stop - rows.start, columns.stop - columns.start)
            sums = _tile_sums(above, beside, extent, rows == columns, precision=precision)
            pictures = None if grams is None else _grams(above.factors, beside.factors, precision=precision)
            yield rows, columns, sums, above.diagonals if rows == columns else None, pictures

    pairs, similarities = np.zeros((count, count)), np.zeros((3, count))
    diagonals = np.zeros((n, 3, count))
    tiles = assembly.reported(assembly.held_back(started(), cut.ahead), blocks * (blocks + 1) // 2, progress)
    for rows, columns, (products, units, overlaps), diagonal, pictures in tiles:
        weight = 1 if rows == columns else 2
        units = np.asarray(units, np.float64)
        pairs += weight * np.outer(units, units) * np.asarray(products, np.float64).sum(0)
        similarities += weight * np.asarray(overlaps, np.float64).sum(-1)
        if diagonal is not None:
            diagonals[rows] = np.moveaxis(np.asarray(diagonal)[..., : rows.stop - rows.start], -1, 0)
        if grams is not None:
            tile = np.asarray(pictures)[..., : rows.stop - rows.start, : columns.stop - columns.start]
            grams[..., rows, columns] = tile
            grams[..., columns, rows] = tile.swapaxes(-1, -2)
    similarities[:2, ~factored] = diagonals[:, :2, ~factored] = np.nan
    if grams is not None:
        grams[:, ~factored] = np.nan
    return Sums((pairs + pairs.T) / 2, similarities, diagonals)


@functools.partial(jax.jit, static_argnames=("c", "terms", "precision"))
@at_precision
def _chunk(apply: Partial, params: Params, x: Array, *, c: int, terms: Terms, precision: str) -> _Chunk:
    factors = term_factors(apply, params, x, c=c, terms=terms, precision=precision)
    return _Chunk(factors, jnp.stack([_diagonals(factor) for factor in factors], axis=1))


def _diagonals(factor: Factor) -> Array:
    """Return the diagonals of F, B and H, (3, block); zeros in place of F and B that don't exist."""
    if factor.h is None or not is_factored(factor):
        own = diagonal_of([factor], "trace")
        return jnp.stack([jnp.zeros_like(own)] * 2 + [own])
    forward = (factor.h**2).sum((1, 2, 3)) + factor.offset
    backward = (factor.delta**2).sum((1, 2, 3, 4)) / factor.delta.shape[1]
    return jnp.stack([forward, backward, forward * backward])


def _parts(a: Factor, b: Factor) -> tuple[Array | None, Array | None, Array]:
    """Return F, B and H between two chunks; F and B are None where H is not their product."""
    if is_factored(a):
        forward, backward = grams_of(a, b, "trace")
        if forward is not None:
            return forward, backward, forward * backward
    return None, None, term_of(a, b, "trace")


@functools.partial(jax.jit, static_argnames="precision")
@at_precision
def _tile_sums(
    rows: _Chunk, columns: _Chunk, extent: Any, on_diagonal: Any, *, precision: str
) -> tuple[Array, Array, Array]:
    """Return one tile's products of terms, (block, L, L), and squared similarities, (3, L, block), summed over an axis.

    The products are of terms divided by their units (L,), which stand between the two. Summed in float64 afterwards;
    in the kernel's own precision, long sums would round.
    """
    block = len(rows.factors[0].delta)
    i, j = jnp.arange(block)[:, None], jnp.arange(block)[None]
    kept = (i < extent[0]) & (j < extent[1]) & ~(on_diagonal & (i == j))
    left, right = (jnp.where(chunk.diagonals > 0, lax.rsqrt(chunk.diagonals), 0) for chunk in (rows, columns))
    terms: list[Array] = []
    overlaps = []
    for index, (a, b) in enumerate(zip(rows.factors, columns.factors, strict=True)):
        if terms:
            # One after the other, so that no more is alive than the terms themselves and two factors.
            terms[-1], a, b = lax.optimization_barrier((terms[-1], a, b))
        parts = _parts(a, b)
        for part, w, v in zip(parts, left[:, index], right[:, index], strict=True):
            if part is None:
                overlaps.append(jnp.zeros(block, left.dtype))
            else:
                overlaps.append(jnp.where(kept, (part * w[:, None] * v[None]) ** 2, 0).sum(1))
        terms.append(parts[2])
    stacked = jnp.where(kept, jnp.stack(terms), 0)
    units = jax.vmap(unit_of)(stacked)
    stacked = stacked / units[:, None, None]
    products = jnp.einsum("lij,mij->ilm", stacked, stacked, precision=lax.Precision.HIGHEST)
    return products, units, jnp.stack(overlaps).reshape(len(terms), 3, block).swapaxes(0, 1)


@functools.partial(jax.jit, static_argnames="precision")
@at_precision
def _grams(rows: list[Factor], columns: list[Factor], *, precision: str) -> Array:
    """Return the tile's F and B of each term, (2, L, block, block); zeros in place of those that don't exist."""
    grams = []
    for a, b in zip(rows, columns, strict=True):
        forward, backward, own = _parts(a, b)
        grams.append([jnp.zeros_like(own) if part is None else part for part in (forward, backward)])
    return jnp.stack([jnp.stack(parts) for parts in zip(*grams, strict=True)])
