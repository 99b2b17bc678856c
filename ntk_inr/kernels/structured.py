"""The factors of a structured kernel, read off the traced pullback of one example (T8.1)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial

from ntk_inr._dtypes import accumulation_dtype, at_precision
from ntk_inr._typing import Params
from ntk_inr.kernels.grams import Factor, tokens_at_a_time
from ntk_inr.kernels.groups import Group, Site, Sites
from ntk_inr.kernels.orthonormal import orthonormal_rows
from ntk_inr.kernels.program import Atom, Name, Program, shape_of
from ntk_inr.kernels.sites import find_sites
from ntk_inr.kernels.tables import Table

# Examples whose factors are computed at once: many, as far as what is alive on the way there takes no more than this.
_FACTORS_AT_ONCE, _ALIVE_BYTES = 4096, 32 * 2**20
# The weight of what a product saves, where terms are wanted apart.
_APART = 16


Fixed = tuple[tuple[int, str], ...]


class Trace:
    """The vector-Jacobian product of one example, traced, with what stands in for its outer products.

    Args:
        apply: batched pure function ``(params, x): (n, d) -> (n, c)``.
        params: pytree of arrays, or of shapes and dtypes.
        x_i: one coordinate (d,), or its shape and dtype.
        c: number of outputs.
        outputs: which outputs of the kernel are kept, to weigh costs; "terms" where the terms of the averaged kernel
            are wanted apart, and a product tells more than a Jacobian that is a little cheaper.
        differentiable: whether the factors may be differentiated, as inside a user's ``grad``.
        fixed: leaves whose handling is given, "jacobian" or "unused", so that factors fit those of another function.
    """

    def __init__(
        self,
        apply: Partial,
        params: Params,
        x_i: Any,
        c: int,
        outputs: str,
        *,
        differentiable: bool = False,
        fixed: Fixed = (),
    ) -> None:
        constants, self._apply_tree = jax.tree.flatten(apply)
        leaves, self._tree = jax.tree.flatten(params)
        out = jax.eval_shape(lambda a, p, x: a(p, x[None])[0], apply, params, x_i)
        self._out = jax.ShapeDtypeStruct(out.shape, out.dtype)
        self.shapes = [np.shape(leaf) for leaf in leaves]

        def pull(constants: list[Any], x_i: Any, cotangent: Any, leaves: list[Any]) -> list[Any]:
            function = jax.tree.unflatten(self._apply_tree, constants)
            _, back = jax.vjp(lambda p: function(jax.tree.unflatten(self._tree, p), x_i[None])[0], leaves)
            return back(cotangent)[0]

        closed = jax.make_jaxpr(pull)(constants, x_i, self._out, leaves)
        place = len(constants) + 1
        self.program = Program(closed, [i == place for i in range(len(closed.jaxpr.invars))], {place - 1, place})
        self._examples = self.program.inputs[place - 1 : place + 1]
        backward = {"full": c * c, "terms": _APART * c}.get(outputs, c)
        self.sites: Sites = find_sites(
            self.program, self.shapes, c, backward, differentiable=differentiable, fixed=dict(fixed)
        )
        self.dtype = accumulation_dtype(*leaves)
        self.c = c
        self._differentiable = differentiable

    @property
    def floats(self) -> int:
        """How many numbers the factors of one example hold."""
        return sum(how.floats for how in self.sites.handling)

    @property
    def scratch(self) -> int:
        """How many numbers a tile needs beside its own, for each pair of examples."""
        each = [g.scratch if isinstance(g, Table) else 2 * tokens_at_a_time(g.tokens) - 2 for g in self.sites.groups]
        return max(each, default=0)

    @property
    def flops(self) -> int:
        """How many flops the kernel of one pair of examples takes."""
        return sum(how.flops for how in self.sites.handling)

    @functools.cached_property
    def alive(self) -> int:
        """How many numbers are alive at a time while the factors of one example are computed, were nothing fused."""
        wanted: list[Atom] = [atom for group in self.sites.groups for atom in group.atoms]
        wanted += [part.atom for part in self.sites.own]
        return alive(self.program, self._examples, wanted, self.c)

    @property
    def at_once(self) -> int:
        """Of how many examples the factors are computed at once."""
        fitting = _ALIVE_BYTES // (self.alive * np.dtype(self.dtype).itemsize)
        # A power of two, which divides the side of a tile.
        return min(_FACTORS_AT_ONCE, 1 << max(0, fitting.bit_length() - 1))

    def factors(self, apply: Partial, params: Params, x_i: Array) -> list[tuple[Array | None, Array, Array | None]]:
        """Return each factor's h (batch, tokens, m_in), delta (c, batch, tokens, m_out) and places (batch, slots)."""
        groups = self.sites.groups
        names = list(dict.fromkeys(atom for group in groups for atom in group.atoms))
        own = [part.atom for part in self.sites.own]

        def pull(cotangent: Array) -> tuple[list[Any], list[Array]]:
            arguments = [*jax.tree.leaves(apply), x_i, cotangent, *jax.tree.leaves(params)]
            results = self.program.evaluate(arguments, names + own)
            values = dict(zip(names, results, strict=False))
            forward, deltas = [], []
            for group in groups:
                h, delta, places = self._of(group, values)
                forward.append((h, places))
                deltas.append(delta)
            for parts in self._own_spans:
                jacobians = [value.reshape(-1).astype(self.dtype) for value in results[len(names) :][parts]]
                deltas.append(jnp.concatenate(jacobians)[None, None])
            return forward, deltas

        basis = jnp.eye(math.prod(self._out.shape), dtype=self._out.dtype)
        forward, deltas = jax.vmap(pull, out_axes=(None, 0))(basis)
        factors: list[tuple[Array | None, Array, Array | None]] = []
        for group, (h, places), delta in zip(groups, forward, deltas, strict=False):
            if isinstance(group, Group):
                h, delta = self._orthogonal(group, h, delta)
            factors.append((h, delta, places))
        return factors + [(None, delta, None) for delta in deltas[len(factors) :]]

    @at_precision
    def _of(self, group: Group | Table, values: dict[Any, Array]) -> tuple[Array | None, Array, Array | None]:
        if isinstance(group, Table):
            places, counted, weights = group.rows(values, self.dtype)
            return weights, group.deltas(values, counted, self.dtype), places
        h = _joined([self._input(site, values) for site in group.sites])
        delta = _joined([self._delta(site, values) for site in group.sites])
        if group.slot is None:
            return h, delta, None
        place, inside = group.slot.places(values)
        return h * inside.astype(self.dtype)[:, None, None], delta, jnp.broadcast_to(place, (group.batch, 1))

    def offsets(self) -> list[Array]:
        """Return each factor's offset."""
        groups = self.sites.groups
        carried = [sum(float(w[0]) ** 2 for w in group.biases) if group.tokens == 1 else 0 for group in groups]
        is_one = [isinstance(group, Table) and group.weights is None for group in groups]
        offsets = [1 if one else offset for one, offset in zip(is_one, carried, strict=True)]
        signs = [-1 if self.sites.own[parts][0].negative else 1 for parts in self._own_spans]
        return [jnp.asarray(offset, self.dtype) for offset in offsets + signs]

    @property
    def _own_spans(self) -> list[slice]:
        """The positive and the negative parts of their own that leaves keep, those that there are."""
        positive = sum(not part.negative for part in self.sites.own)
        spans = [slice(0, positive), slice(positive, len(self.sites.own))]
        return [span for span in spans if span.start < span.stop]

    @at_precision
    def _orthogonal(self, group: Group, h: Array, delta: Array) -> tuple[Array, Array]:
        """Return h and delta of the same ``sum_t h_t delta_t``, where tokens are several with orthonormal rows of h.

        Outer products may nearly cancel in that sum, as those of a finite difference do, and products of two such
        sums would lose the square of what the sums lose. Over orthonormal rows the sum is as large as its parts. The
        rows are held fixed under differentiation; what they leave of ``h``, zero but for rounding, then carries the
        rest of its derivative.
        """
        if group.tokens == 1:
            return h, delta
        columns = [jnp.broadcast_to(jnp.asarray(w, self.dtype)[:, None], (*h.shape[:2], 1)) for w in group.biases]
        h = jnp.concatenate([h, *columns], axis=2)
        rows = lax.stop_gradient(orthonormal_rows(h))
        lengths = h @ rows.swapaxes(1, 2)
        turned = lengths.swapaxes(1, 2) @ delta
        if not self._differentiable:
            return rows, turned
        return _joined([rows, h - lengths @ rows]), jnp.concatenate([turned, delta], axis=2)

    def _input(self, site: Site, values: dict[Any, Array]) -> Array:
        h = values[site.h].transpose(site.h_axes).reshape(site.batch, site.tokens, site.m_in).astype(self.dtype)
        return h if site.scale == 1 else h * site.scale

    def _delta(self, site: Site, values: dict[Any, Array]) -> Array:
        delta = values[site.delta].transpose(site.delta_axes).reshape(site.batch, site.tokens, site.m_out)
        return delta.astype(self.dtype)


def _joined(parts: list[Array]) -> Array:
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def alive(program: Program, examples: Sequence[Name], wanted: Sequence[Atom], c: int) -> int:
    """Return the most numbers that are alive at a time, of one example with c cotangents, on the way to ``wanted``.

    Nothing is taken to be fused, and what does not depend on the inputs ``examples``, such as parameters, is left out.
    """
    equations, _ = program.needed(wanted)
    own = set(examples)
    for equation in equations:
        if any(isinstance(atom, Name) and atom in own for atom in equation.inputs):
            own.update(equation.outputs)

    def floats(name: Name) -> int:
        return math.prod(shape_of(name)) * (c if program.is_active(name) else 1) if name in own else 0

    live = {atom for atom in wanted if isinstance(atom, Name)}
    most = total = sum(map(floats, live))
    for equation in reversed(equations):
        made = live.intersection(equation.outputs)
        if made:
            used = {atom for atom in equation.inputs if isinstance(atom, Name)} - live
            live |= used
            total += sum(map(floats, used))
            most = max(most, total)
            live -= made
            total -= sum(map(floats, made))
    return max(1, most)


def fitting(
    apply: Partial, other: Partial, params: Params, x_i: Any, c: int, outputs: str, *, differentiable: bool = False
) -> tuple[Trace, Fixed]:
    """Return the trace of ``apply`` whose factors fit those of ``other``, and the handling that both must be given.

    Parameters that the two use in other products than each other keep their Jacobian in both.
    """
    fixed: dict[int, str] = {}
    while True:
        handled = tuple(fixed.items())
        traces = [
            Trace(f, params, x_i, c, outputs, differentiable=differentiable, fixed=handled) for f in (apply, other)
        ]
        sites, others = (trace.sites for trace in traces)
        apart = [leaf for leaf in range(len(sites.handling)) if not _alike(sites, others, leaf)]
        if not apart:
            return traces[0], handled
        for leaf in apart:
            kinds = {each.handling[leaf].kind for each in (sites, others)}
            fixed[leaf] = "unused" if "unused" in kinds else "jacobian"


def _alike(sites: Sites, others: Sites, leaf: int) -> bool:
    """Return whether a leaf is handled alike, with its products, and the biases they carry, in the same places."""
    how, other = (each.handling[leaf] for each in (sites, others))
    if (how.kind, how.carrier) != (other.kind, other.carrier):
        return False
    ours, theirs = ([group for group in each.groups if group.leaf == leaf] for each in (sites, others))
    return len(ours) == len(theirs) and all(a.fits(b) for a, b in zip(ours, theirs, strict=True))


def factors(
    apply: Partial,
    params: Params,
    x: Array,
    c: int,
    outputs: str,
    *,
    differentiable: bool = False,
    fixed: Fixed = (),
) -> list[Factor]:
    """Return the factors of the kernel at coordinates ``x``."""
    trace = Trace(apply, params, x[0], c, outputs, differentiable=differentiable, fixed=fixed)
    shapes = jax.eval_shape(trace.factors, apply, params, x[0])

    # Flat in between, or XLA would compute or copy them twice for layouts that differ in axes of length 1 only.
    def single(x_i: Array) -> Any:
        return jax.tree.map(lambda part: part.reshape(-1), trace.factors(apply, params, x_i))

    at_once = trace.at_once
    flat = jax.vmap(single)(x) if len(x) <= at_once else lax.map(single, x, batch_size=at_once)
    flat = lax.optimization_barrier(flat)
    pairs = jax.tree.map(lambda part, like: part.reshape(len(x), *like.shape), flat, shapes)
    return [Factor(h, delta, offset, places) for (h, delta, places), offset in zip(pairs, trace.offsets(), strict=True)]
