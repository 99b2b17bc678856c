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

from ntk_inr.kernels.places import Places
from ntk_inr.kernels.program import Atom, Equation, Loop, Name, Program, shape_of

# Numbers a pair of examples that are laid out at once by the places looked up.
_AT_ONCE = 16
# Slots whose sum is written out.
_UNROLLED = 16
# What one pass over a tile of the kernel costs, in flops.
_PASS = 16
_KINDS = ("scatter-add", "scatter_add", "dynamic_update_slice")
_MODES = {
    lax.GatherScatterMode.CLIP: True,
    lax.GatherScatterMode.FILL_OR_DROP: False,
    # What XLA does with an update out of bounds.
    lax.GatherScatterMode.PROMISE_IN_BOUNDS: False,
}
_LARGEST = np.iinfo(np.int32).max


class Dimensions(NamedTuple):
    """Which axes of a scatter are which, by JAX's names, the steps of a loop being one more batch."""

    update_window_dims: tuple[int, ...]
    inserted_window_dims: tuple[int, ...]
    scatter_dims_to_operand_dims: tuple[int, ...]
    operand_batching_dims: tuple[int, ...]
    scatter_indices_batching_dims: tuple[int, ...]

    def in_loop(self) -> Dimensions:
        """Return the same of all steps of a loop at once, along a first axis of every operand."""
        moved = Dimensions(*(tuple(axis + 1 for axis in axes) for axes in self))
        return moved._replace(
            operand_batching_dims=(0, *moved.operand_batching_dims),
            scatter_indices_batching_dims=(0, *moved.scatter_indices_batching_dims),
        )


class Looked(NamedTuple):
    """An axis of the table along which the places of updates depend on an index.

    ``stride`` is how far apart in the leaf neighbours along it are, ``last`` the largest index that keeps the window
    inside, ``column`` the number of the index.
    """

    stride: int
    last: int
    column: int


@dataclasses.dataclass(frozen=True, eq=False)
class Scatter:
    """Updates (slots, m_out), each slot of them added to a row of the leaf.

    Attributes:
        indices: atoms of the indices, (..., columns), or one number for each column.
        delta: the updates.
        axes: brings the updates into the order (positions, offsets, m_out).
        positions: the shape of the positions that have indices of their own.
        looked: the axes of the table with an index.
        clips: whether indices out of bounds are moved inside; else their updates are left out.
        steps: for each slot how far its place is from that of its index.
        index: the places of all rows, without axes along which they are the same.
        row: those of the entries of the row at place 0.
        scale: multiplies the updates.
    """

    indices: tuple[Atom, ...]
    delta: Atom
    axes: tuple[int, ...]
    positions: tuple[int, ...]
    looked: tuple[Looked, ...]
    clips: bool
    steps: np.ndarray
    index: Places
    row: Places
    scale: float

    @property
    def slots(self) -> int:
        """How many rows are updated."""
        return len(self.steps)

    @property
    def m_out(self) -> int:
        """How many entries of a row are."""
        return self.row.size

    @property
    def spacing(self) -> int:
        """What all places of rows are multiples of, apart from a first one; 0 where there is one row."""
        strides = [each.stride for each in self.looked if each.last]
        return math.gcd(*strides, *map(int, np.unique(self.steps - self.steps[:1])))

    @property
    def row_of_updates(self) -> Places:
        """The places of the updates of one slot, counted from that of its row."""
        sizes = [shape_of(self.delta)[axis] for axis in self.axes]
        before = len(sizes) - len(self.row.shape)
        return Places(tuple(sizes), (0,) * before + self.row.strides).transposed(np.argsort(self.axes).tolist())

    def lies_as(self, other: Scatter) -> bool:
        """Return whether the same indices give the same rows as those of another scatter."""
        alike = (self.looked, self.clips, self.positions) == (other.looked, other.clips, other.positions)
        return alike and np.array_equal(self.steps, other.steps) and self.row.same_as(other.row)

    def places(self, values: Mapping[Any, Any]) -> tuple[Array, Array]:
        """Return the place (slots,) of each slot's row, and whether it is inside."""
        numbers = [jnp.asarray(_value(values, atom)) for atom in self.indices]
        place, inside = jnp.zeros(self.positions, jnp.int32), jnp.ones(self.positions, bool)
        for stride, most, column in self.looked:
            number = numbers[0][..., column] if numbers[0].ndim else numbers[column]
            at = _as_int32(number.reshape(self.positions), most)
            inside &= (at >= 0) & (at <= most)
            place += stride * jnp.clip(at, 0, most)
        place = place.reshape(-1, 1) + self.steps.astype(np.int32).reshape(inside.size, -1)
        every = jnp.broadcast_to(inside.reshape(-1, 1), place.shape).reshape(-1)
        return place.reshape(-1), jnp.ones_like(every) if self.clips else every

    def updates(self, value: Array) -> Array:
        """Return the updates (slots, m_out) from their value."""
        rows = value.transpose(self.axes).reshape(self.slots, self.m_out)
        return rows if self.scale == 1 else rows * self.scale


def _value(values: Mapping[Any, Any], atom: Atom) -> Any:
    return values[atom] if isinstance(atom, Name) else atom.val


def _as_int32(index: Array, most: int) -> Array:
    """Return an index as int32; one that is not in bounds stays so, on its side."""
    if index.dtype.itemsize >= 4 and index.dtype != jnp.int32:
        index = jnp.minimum(index, jnp.asarray(most, index.dtype) + jnp.ones((), index.dtype))
        index = index if jnp.issubdtype(index.dtype, jnp.unsignedinteger) else jnp.maximum(index, -1)
    return index.astype(jnp.int32)


def scatter_of(program: Program, value: Name, index: Places, scale: float) -> Scatter | None:
    """Return the scatter that makes a value whose entries go to ``index``, or None where nothing of the kind does."""
    equation, loops = program.producer.get(value), list[Loop]()
    body, inner = program, value
    while isinstance(equation, Loop) and inner in equation.inner:
        loops.append(equation)
        body, atom = equation.body, equation.inner[inner]
        if not isinstance(atom, Name):
            return None
        equation, inner = body.producer.get(atom), atom
    if not isinstance(equation, Equation) or equation.kind not in _KINDS or index.values is not None:
        return None
    if not _is_blank(body, equation) or index.last >= _LARGEST:
        return None
    (updates, indices), dimensions, clips = _read(equation)
    if clips is None or body.is_active(updates) is False or any(map(body.is_active, indices)):
        return None
    for loop in reversed(loops):
        updates, indices = loop.expose(updates), tuple(loop.expose(atom) for atom in indices)
        dimensions = dimensions.in_loop()
    if loops and len(indices) > 1:
        return None
    return _scatter(indices, updates, dimensions, clips, index, scale)


def _is_blank(body: Program, equation: Equation) -> bool:
    from ntk_inr.kernels.follow import is_zero

    return is_zero(body, equation.inputs[0])


def _read(equation: Equation) -> tuple[tuple[Atom, tuple[Atom, ...]], Dimensions, bool | None]:
    """Return the updates and indices of an equation, its axes, and whether it clips (None: not known)."""
    if equation.kind == "dynamic_update_slice":
        _, updates, *indices = equation.inputs
        axes = tuple(range(len(indices)))
        return (updates, tuple(indices)), Dimensions(axes, (), axes, (), ()), True
    _, index, updates = equation.inputs
    numbers = equation.params["dimension_numbers"]
    dimensions = Dimensions(*(tuple(map(int, getattr(numbers, name, ()))) for name in Dimensions._fields))
    return (updates, (index,)), dimensions, _MODES.get(equation.params["mode"])


def _scatter(
    indices: tuple[Atom, ...], updates: Atom, dimensions: Dimensions, clips: bool, index: Places, scale: float
) -> Scatter | None:
    shape, sizes = index.shape, shape_of(updates)
    positions = tuple(n for axis, n in enumerate(sizes) if axis not in dimensions.update_window_dims)
    outside = (*dimensions.inserted_window_dims, *dimensions.operand_batching_dims)
    window = [axis for axis in range(len(shape)) if axis not in outside]
    place_of = dict(zip(window, dimensions.update_window_dims, strict=True))
    column_of = {axis: column for column, axis in enumerate(dimensions.scatter_dims_to_operand_dims)}
    looked, along, free, offsets = [], [], [], np.zeros(1, np.int64)
    for axis, (n, stride) in enumerate(zip(shape, index.strides, strict=True)):
        width = sizes[place_of[axis]] if axis in place_of else 1
        if axis in column_of:
            looked.append(Looked(stride, n - width, column_of[axis]))
        if axis not in place_of:
            continue
        # Along an axis with an index each offset of the window is a row of its own, and so is each of several
        # entries that go to the same place.
        if (axis in column_of and width < n) or (stride == 0 and width > 1):
            along.append(place_of[axis])
            offsets = (offsets[:, None] + stride * np.arange(width)).reshape(-1)
        else:
            free.append((axis, width, stride))
    batches = np.full(positions, index.first, np.int64)
    for axis, batch in zip(dimensions.operand_batching_dims, dimensions.scatter_indices_batching_dims, strict=True):
        batches += index.strides[axis] * np.arange(shape[axis]).reshape([-1] + [1] * (len(positions) - 1 - batch))
    row = Places(tuple(width for _, width, _ in free), tuple(stride for _, _, stride in free))
    every = index.part([slice(None) if stride else 0 for stride in index.strides])
    if 0 in sizes or (every.size > 1 and not every.is_spaced):
        return None
    scattered = [axis for axis in range(len(sizes)) if axis not in dimensions.update_window_dims]
    return Scatter(
        indices=indices,
        delta=updates,
        axes=(*scattered, *along, *(place_of[axis] for axis, _, _ in free)),
        positions=positions,
        looked=tuple(looked),
        clips=clips,
        steps=(batches.reshape(-1, 1) + offsets).reshape(-1),
        index=every,
        row=row,
        scale=scale,
    )


def relation(a: Scatter, b: Scatter) -> str:
    """Return how the rows of two scatters lie: "same" where each two are one or apart, "apart", or else "across"."""
    if a.index.last < b.index.first or b.index.last < a.index.first:
        return "apart"
    reach = max(a.row.last, b.row.last)
    spacing = math.gcd(a.spacing, b.spacing)
    shift = a.index.first - b.index.first
    if spacing:
        shift %= spacing
        if reach < shift < spacing - reach:
            return "apart"
    return "same" if not shift and a.row.same_as(b.row) and (reach < spacing or not spacing) else "across"


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
        return self.batch * (_PASS + (2 * self.slots + products if self.weights else self.slots * products))

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
        part = jnp.asarray(_value(values, atom)).reshape(-1)[entries].astype(dtype)
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
