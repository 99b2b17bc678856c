"""Rows of updates that are added at places that integers of the example give, as a trace has them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_inr.kernels.follow import is_zero
from ntk_inr.kernels.places import Places
from ntk_inr.kernels.program import Atom, Equation, Loop, Name, Program, shape_of

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
        numbers = [jnp.asarray(value_of(values, atom)) for atom in self.indices]
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


def value_of(values: Mapping[Any, Any], atom: Atom) -> Any:
    """Return an atom's value, a literal's own or that which ``values`` have."""
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
    if not is_zero(body, equation.inputs[0]) or index.last >= _LARGEST:
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
