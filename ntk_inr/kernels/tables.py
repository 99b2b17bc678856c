r"""Cotangents of parameters that are looked up: rows of updates, added at places that integers of the example give.

The cotangent of ``table[rows]`` is :math:`\sum_u e_{r_u} g_u^\top`, a ``scatter-add`` of active updates at inactive
indices. Of two examples the inner product is :math:`\sum_{uv} [r_u = r'_v]\, g_u \cdot g'_v`, where only rows that both
look up count, so that nothing of the table's size is made. Where the updates are weights times one vector,
:math:`g_u = w_u g`, as in an interpolation, it is the product :math:`(\sum_{uv} [r_u = r'_v] w_u w'_v)(g \cdot g')`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_inr.kernels.program import Atom, Equation, Name, Program, shape_of
from ntk_inr.kernels.scatters import Scatter, relation, value_of

# Numbers a pair of examples that are laid out at once by the places looked up.
_AT_ONCE = 16
# Slots whose sum is written out.
_UNROLLED = 16
# What one pass over a tile of the kernel costs, in flops.
PASS = 16


class Weights(NamedTuple):
    """Updates as weights (slots,) times one vector (m_out,): ``sign`` times products of entries, times entries."""

    factors: tuple[tuple[Atom, bool, np.ndarray], ...]
    sign: float
    value: Atom
    entries: np.ndarray


def weights_of(program: Program, scatter: Scatter) -> Weights | None:
    """Return the updates of a scatter as weights times one vector, where the trace shows them to be."""
    atom: Atom = scatter.delta
    shape = shape_of(atom)
    entries = np.arange(math.prod(shape)).reshape(shape).transpose(scatter.axes).reshape(scatter.slots, scatter.m_out)
    factors: list[tuple[Atom, bool, np.ndarray]] = []
    sign = scatter.scale
    while (entries != entries[:1]).any():
        equation = program.producer.get(atom) if isinstance(atom, Name) else None
        if not isinstance(equation, Equation):
            return None
        kind, params, inputs = equation.kind, equation.params, equation.inputs
        if kind in ("mul", "div"):
            active = 0 if program.is_active(inputs[0]) else 1
            by = inputs[1 - active]
            if program.is_active(by) or (kind == "div" and active):
                return None
            by, own = _root(program, by, _spread(shape_of(by), shape_of(atom))[entries])
            if (own != own[:, :1]).any():
                return None
            factors.append((by, kind == "div", own[:, 0]))
            entries = _spread(shape_of(inputs[active]), shape_of(atom))[entries]
            atom = inputs[active]
            continue
        sign = -sign if kind == "neg" else sign
        same = kind in ("neg", "copy", "copy_p", "convert_element_type")
        moved = entries if same else _before(equation, entries)
        if moved is None or (kind == "convert_element_type" and not jnp.issubdtype(params["new_dtype"], jnp.floating)):
            return None
        atom, entries = inputs[0], moved
    return Weights(tuple(factors), sign, atom, entries[0])


def _spread(shape: tuple[int, ...], target: tuple[int, ...]) -> np.ndarray:
    """Return the place in an array of each entry of what it is broadcast to."""
    return np.broadcast_to(np.arange(math.prod(shape)).reshape(shape), target).reshape(-1)


def _root(program: Program, atom: Atom, entries: np.ndarray) -> tuple[Atom, np.ndarray]:
    """Return the value that an atom repeats or moves, and the places in it of the same entries."""
    while isinstance(atom, Name) and isinstance(equation := program.producer.get(atom), Equation):
        moved = _before(equation, entries)
        if moved is None:
            break
        atom, entries = equation.inputs[0], moved
    return atom, entries


def _before(equation: Equation, entries: np.ndarray) -> np.ndarray | None:
    """Return where entries of an equation's output come from in its input, where it only repeats or moves them."""
    kind, params = equation.kind, equation.params
    if kind == "reshape" and params["dimensions"] is not None:
        return None
    if kind in ("reshape", "squeeze", "expand_dims"):
        return entries
    if kind not in ("broadcast_in_dim", "transpose"):
        return None
    shape = shape_of(equation.inputs[0])
    if kind == "transpose":
        own = np.arange(math.prod(shape)).reshape(shape)
        return own.transpose(params["permutation"]).reshape(-1)[entries]
    kept = [1] * len(params["shape"])
    for axis, n in zip(params["broadcast_dimensions"], shape, strict=True):
        kept[axis] = n
    return _spread(tuple(kept), params["shape"])[entries]


@dataclasses.dataclass(eq=False)
class Table:
    """Scatters into one leaf: for each block of rows of its own, a list of those whose rows are the same.

    ``weights`` are those of each block, where its updates are weights times one vector, else None.
    """

    leaf: int
    blocks: list[list[Scatter]]
    weights: list[Weights] | None
    biases: tuple[np.ndarray, ...] = ()

    @property
    def batch(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    @property
    def sites(self) -> list[Scatter]:
        """All scatters."""
        return [scatter for block in self.blocks for scatter in block]

    @property
    def slots(self) -> int:
        """How many rows of each block are looked up."""
        return sum(scatter.slots for scatter in self.blocks[0])

    @property
    def tokens(self) -> int:
        """How many vectors of its own each block has."""
        return 1 if self.weights else self.slots

    @property
    def scratch(self) -> int:
        """Numbers that are laid out at once for each pair of examples."""
        return max(self.slots, _AT_ONCE) if self.slots > 1 else 0

    @property
    def m_out(self) -> int:
        """How many entries a row has."""
        return self.blocks[0][0].m_out

    @property
    def atoms(self) -> list[Atom]:
        """What :meth:`rows` and :meth:`deltas` read."""
        read = [atom for scatter in self.sites for atom in (*scatter.indices, scatter.delta)]
        for each in self.weights or ():
            read += [each.value, *(atom for atom, _, _ in each.factors)]
        return [atom for atom in read if isinstance(atom, Name)]

    def flops(self, backward: int, *, differentiable: bool) -> int:
        """Flops for one pair of examples; ``backward`` is c, or c * c where all output pairs are kept."""
        products = 2 * backward * self.m_out
        return self.batch * (PASS + (2 * self.slots + products if self.weights else self.slots * products))

    def floats(self, c: int, *, differentiable: bool) -> int:
        """Numbers that the two factors of one example hold."""
        return self.batch * (self.slots * (2 if self.weights else 1) + c * self.tokens * self.m_out)

    def fits(self, other: Any) -> bool:
        """Return whether factors of both are of the same kind, with rows in the same places."""
        return (
            isinstance(other, Table)
            and (self.batch, self.slots, self.weights is None) == (other.batch, other.slots, other.weights is None)
            and all(
                a.row.same_as(b.row) and a.index.same_as(b.index) for a, b in zip(self.sites, other.sites, strict=True)
            )
        )

    def rows(self, values: Mapping[Any, Any], dtype: Any) -> tuple[Array, Array, Array | None]:
        """Return the places (batch, slots) of the rows, which of them :meth:`deltas` adds up, and their weights.

        The second is (batch, slots, slots): the slots that count for each, as rows looked up twice count once.
        The weights are (batch, 1, slots), or None.
        """
        every = [[scatter.places(values) for scatter in block] for block in self.blocks]
        places = jnp.stack([jnp.concatenate([place for place, _ in block]) for block in every])
        inside = jnp.stack([jnp.concatenate([inside for _, inside in block]) for block in every])
        same = (places[:, :, None] == places[:, None]) & inside[:, :, None] & inside[:, None]
        slots = np.arange(self.slots)
        earlier = (same & (slots[:, None] > slots)[None]).any(2)
        counted = (same & ~earlier[:, :, None]).astype(dtype)
        if self.weights is None:
            return places, counted, None
        weights = jnp.stack([_product(each, values, self.slots, dtype) for each in self.weights])
        return places, counted, jnp.einsum("buv,bv->bu", counted, weights)[:, None]

    def deltas(self, values: Mapping[Any, Any], counted: Array, dtype: Any) -> Array:
        """Return the vectors (batch, tokens, m_out)."""
        if self.weights:
            return jnp.stack([values[w.value].reshape(-1)[w.entries].astype(dtype)[None] for w in self.weights])
        blocks = [[scatter.updates(values[scatter.delta]) for scatter in block] for block in self.blocks]
        return jnp.einsum(
            "buv,bvm->bum", counted, jnp.stack([jnp.concatenate(block) for block in blocks]).astype(dtype)
        )


def _product(weights: Weights, values: Mapping[Any, Any], slots: int, dtype: Any) -> Array:
    total = jnp.full(slots, weights.sign, dtype)
    for atom, divides, entries in weights.factors:
        part = jnp.asarray(value_of(values, atom)).reshape(-1)[entries].astype(dtype)
        total = total / part if divides else total * part
    return total


def tables(program: Program, leaf: int, scatters: Sequence[Scatter]) -> list[Table] | None:
    """Return the tables that scatters into one leaf make, or None where their rows overlap in part."""
    blocks: list[list[Scatter]] = []
    for scatter in scatters:
        home = None
        for block in blocks:
            how = {relation(scatter, other) for other in block}
            if "across" in how or (home and "same" in how):
                return None
            if "same" in how:
                home = block
        if home is None:
            blocks.append([scatter])
        else:
            home.append(scatter)
    kinds: dict[Any, Table] = {}
    for block in blocks:
        weights = weights_of(program, block[0]) if len(block) == 1 else None
        kind = (sum(scatter.slots for scatter in block), block[0].m_out, weights is None)
        table = kinds.setdefault(kind, Table(leaf, [], None if weights is None else []))
        table.blocks.append(block)
        if weights is not None and table.weights is not None:
            table.weights.append(weights)
    return list(kinds.values())


def overlap_of(places: Array, others: Array, left: Array, right: Array) -> Array:
    """Return ``sum_uvk [places_u = others_v] left_uk right_vk`` between examples of two sets, (n1, n2).

    The vectors of one set are laid out by the places that it looks up, one column an example, and each slot of the
    other set adds a row of that: no two slots are compared.

    Args:
        places: (n1, slots).
        others: (n2, slots).
        left: (n1, slots, m).
        right: (n2, slots, m).
    """
    if len(places) < len(others):
        return overlap_of(others, places, right, left).T
    n, slots = others.shape
    if n == 0:  # the lower half of a tile of one row
        return jnp.zeros((len(places), n), left.dtype)
    listed = jnp.sort(others.reshape(-1))
    own, at = jnp.searchsorted(listed, others), jnp.searchsorted(listed, places)
    # The last row stays zero, for places that no other example looks up.
    at = jnp.where(listed[jnp.minimum(at, listed.size - 1)] == places, at, listed.size)
    width = max(1, _AT_ONCE // slots)
    total = jnp.zeros((len(places), n), left.dtype)
    for first in range(0, left.shape[2], width):
        part = slice(first, first + width)
        empty = jnp.zeros((listed.size + 1, *right[0, 0, part].shape, n), right.dtype)
        laid = lax.optimization_barrier(empty.at[own, :, np.arange(n)[:, None]].add(right[:, :, part]))

        def added(total: Array, slot: tuple[Array, Array], laid: Array = laid) -> tuple[Array, None]:
            weights, rows = slot
            return total + sum(weights[:, k, None] * laid[rows, k] for k in range(weights.shape[1])), None

        if slots <= _UNROLLED:
            for slot in range(slots):
                total = added(total, (left[:, slot, part], at[:, slot]))[0]
        else:
            total = lax.scan(added, total, (left[:, :, part].swapaxes(0, 1), at.T))[0]
    return total
