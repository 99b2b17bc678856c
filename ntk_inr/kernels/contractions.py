"""Products of the backward pass whose entries are scaled, summed or multiplied further, as smaller products.

A product's entries, the axes that it sums and those that further products add are numbered: each factor, which are the
two operands and what scales their product, has some of these axes, as in an ``einsum``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_inr._dtypes import accumulation_dtype
from ntk_inr.kernels.follow import Scale, Source, origin, trace_back
from ntk_inr.kernels.places import Places
from ntk_inr.kernels.program import Atom, Equation, Loop, Name, Program, aval_of, shape_of

# A repeated vector is not looked at where it is repeated fewer times: its leaf's Jacobian is small then.
_FEWEST = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """An atom with the number of each of its axes, or the entries of one at ``places``, which may divide."""

    atom: Atom
    axes: tuple[int, ...]
    divides: bool = False
    places: Places | None = None

    def same_as(self, other: Factor) -> bool:
        """Return whether both are the same entries along the same axes."""
        if self.atom is not other.atom or (self.axes, self.divides) != (other.axes, other.divides):
            return False
        if self.places is None or other.places is None:
            return self.places is other.places
        return self.places.same_as(other.places)

    def value(self, array: Any, dtype: Any) -> Any:
        """Return the factor's entries, given the atom's value."""
        array = array.astype(dtype)
        return array if self.places is None else self.places.taken(array)


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """``scale`` times the product of factors, summed over the axes ``tokens`` and ``summed``.

    Attributes:
        left: h and what scales it.
        right: delta and what scales it.
        sizes: the size of each axis.
        batch: axes of both sides.
        tokens: axes of both sides that are summed over.
        rows: axes of the left side alone.
        columns: axes of the right side alone.
        index: where the entries (batch, rows, columns) go.
        scale: a number.
        part: of complex numbers which part the entries are: "real", "imag", or "both", one beside the other.
        ratio: of both, what the imaginary part is multiplied by.
        is_outer: whether no factor has axes of both sides but for ``batch`` and ``tokens``.
        sums: whether axes of one side are summed over.
    """

    left: tuple[Factor, ...]
    right: tuple[Factor, ...]
    sizes: dict[int, int]
    batch: tuple[int, ...]
    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    index: Places
    scale: complex
    is_outer: bool
    sums: bool
    part: str = ""
    ratio: float = 1.0

    def count(self, axes: Iterable[int]) -> int:
        """Return how many entries these axes have."""
        return math.prod(self.sizes[axis] for axis in axes)

    @property
    def blocks(self) -> Places:
        """Where the entries (batch, rows, columns) go, each of these as one axis."""
        return self.index.reshaped([self.count(axes) for axes in (self.batch, self.rows, self.columns)])

    def side(self, program: Program, *, left: bool) -> tuple[Atom, tuple[int, ...]]:
        """Return h or delta, and the order of its axes that makes it (batch, tokens, its own).

        Of a complex product these are real and imaginary parts, each as a token of its own.
        """
        factors = self.left if left else self.right
        own = self.rows if left else self.columns
        order = (*self.batch, *self.tokens, *own)
        if len(factors) == 1 and not factors[0].places and set(factors[0].axes) == set(order):
            atom, axes = factors[0].atom, tuple(factors[0].axes.index(axis) for axis in order)
        else:
            atom, axes = contracted(program, factors, order, self.sizes), tuple(range(len(order)))
        if not self.part:
            return atom, axes
        batch, tokens, width = (self.count(axes) for axes in (self.batch, self.tokens, own))
        shape = (batch, 2 * tokens, 2 * width if self.part == "both" and not left else width)
        aval = jax.core.ShapedArray(shape, accumulation_dtype(aval_of(atom).dtype))

        def parted(values: Sequence[Any]) -> list[Any]:
            value = values[0].transpose(axes).reshape(batch, tokens, width)
            return [self._parted(value * self.scale if left else value, left=left).astype(aval.dtype)]

        return program.derive([atom], aval, parted), (0, 1, 2)

    def _parted(self, value: Any, *, left: bool) -> Any:
        """Return the parts of h or delta (batch, tokens, m) by which products of real numbers make up complex ones."""
        real, imaginary = jnp.real(value), jnp.imag(value)
        if left:
            return jnp.concatenate([real, imaginary], 1)
        parts = {
            "real": jnp.concatenate([real, -imaginary], 1),
            "imag": jnp.concatenate([imaginary, real], 1),
        }
        if self.part == "both":
            return jnp.concatenate([parts["real"], self.ratio * parts["imag"]], 2)
        return parts[self.part]

    def with_other_part(self, other: Product) -> Product | None:
        """Return this real part together with the imaginary one of the same product, or None if ``other`` isn't it."""
        if (self.part, other.part) != ("real", "imag") or self.sizes != other.sizes:
            return None
        index, ratio = self.blocks.shifted(other.blocks), other.scale / self.scale
        sides = (self.left, other.left), (self.right, other.right)
        alike = all(len(a) == len(b) and all(map(Factor.same_as, a, b)) for a, b in sides)
        if index is None or not alike or ratio != np.real(ratio):
            return None
        return dataclasses.replace(self, part="both", ratio=float(np.real(ratio)), index=index)


def product_of(program: Program, equation: Equation, source: Source) -> Product:
    """Return a ``dot_general`` of an inactive h and an active delta, whose entries are a source's, as a product."""
    contracted_axes, batched = equation.params["dimension_numbers"]
    at = 0 if program.is_active(equation.inputs[0]) else 1
    index, batches = source.index, len(batched[0])
    sizes = dict(enumerate(index.shape))
    free, axes = batches, []
    for operand in (0, 1):
        numbers: dict[int, int] = {axis: k for k, axis in enumerate(batched[operand])}
        numbers |= {axis: len(index.shape) + k for k, axis in enumerate(contracted_axes[operand])}
        for axis in range(len(shape_of(equation.inputs[operand]))):
            if axis not in numbers:
                numbers[axis] = free
                free += 1
        axes.append(tuple(numbers[axis] for axis in range(len(numbers))))
        sizes |= {numbers[axis]: n for axis, n in enumerate(shape_of(equation.inputs[operand]))}
    # Entries of a batch that go to the same places are added up, as those of tokens are.
    constant = [axis for axis in range(len(index.shape)) if index.is_constant(axis)]
    batch = tuple(axis for axis in range(batches) if axis not in constant)
    tokens = (*(axis for axis in range(batches) if axis in constant), *range(len(index.shape), len(sizes)))
    summed = {axis for axis in constant if axis >= batches}
    scales = [_varying(scale) for scale in source.scales]
    h = Factor(equation.inputs[1 - at], axes[1 - at])
    right, own = _connected(Factor(equation.inputs[at], axes[at]), scales, {*batch, *tokens})
    left = (h, *(scale for scale in scales if scale not in right))
    places = [axis for axis in range(batches, len(index.shape)) if axis not in summed]
    rows = tuple(axis for axis in places if axis not in own)
    columns = tuple(axis for axis in places if axis in own)
    index = index.part([0 if axis in constant else slice(None) for axis in range(len(index.shape))])
    kept = [axis for axis in range(len(source.index.shape)) if axis not in constant]
    index = index.transposed([kept.index(axis) for axis in (*batch, *rows, *columns)])
    is_outer = own.isdisjoint(h.axes)
    return Product(
        left, right, sizes, batch, tokens, rows, columns, index, source.scale, is_outer, bool(summed), source.part
    )


def _varying(scale: Scale) -> Factor:
    """Return a scale with those axes that it varies along."""
    shape = scale.places.shape
    axes = [axis for axis, n in enumerate(shape) if n > 1 and not scale.places.is_constant(axis)]
    places = scale.places.part([slice(None) if axis in axes else 0 for axis in range(len(shape))])
    return Factor(scale.atom, tuple(axes), scale.divides, places)


def _connected(delta: Factor, scales: Sequence[Factor], shared: set[int]) -> tuple[tuple[Factor, ...], set[int]]:
    """Return delta, the scales that have axes of its side or share one with those that have, and all their axes."""
    right, own = [delta], set(delta.axes) - shared
    while more := [scale for scale in scales if scale not in right and not own.isdisjoint(scale.axes)]:
        right += more
        own = own.union(*(scale.axes for scale in more)) - shared
    return tuple(right), own


def contracted(
    program: Program, factors: Sequence[Factor], order: Sequence[int], sizes: dict[int, int], scale: complex = 1.0
) -> Name:
    """Return the product of factors, with axes in this order, summed over all others, as a value of the program."""
    dtype = _wide(aval_of(factor.atom).dtype for factor in factors)
    aval = jax.core.ShapedArray(tuple(sizes[axis] for axis in order), dtype)
    return program.derive(
        [factor.atom for factor in factors], aval, lambda values: [multiplied(factors, values, order, sizes) * scale]
    )


def _wide(dtypes: Iterable[Any]) -> Any:
    """Return the dtype that products of these are summed in."""
    dtypes = list(dtypes)
    is_real = not any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes)
    return accumulation_dtype(*dtypes) if is_real else np.result_type(np.complex64, *dtypes)


def multiplied(factors: Sequence[Factor], values: Sequence[Any], order: Sequence[int], sizes: dict[int, int]) -> Any:
    """Return the same, given the values of the factors' atoms."""
    dtype = _wide(value.dtype for value in values)
    operands: dict[frozenset[int], tuple[Any, tuple[int, ...]]] = {}
    pairs = sorted(zip(factors, values, strict=True), key=lambda pair: pair[0].divides)
    for factor, value in pairs:
        array, axes = factor.value(value, dtype), frozenset(factor.axes)
        if axes in operands:
            other, order_of_other = operands[axes]
            array = array.transpose([factor.axes.index(axis) for axis in order_of_other])
            operands[axes] = (other / array if factor.divides else other * array, order_of_other)
        else:
            operands[axes] = (1 / array if factor.divides else array, factor.axes)
    present = {axis for axes in operands for axis in axes}
    absent = tuple(axis for axis in order if axis not in present)
    if absent:
        operands[frozenset(absent)] = (jnp.ones([sizes[axis] for axis in absent], dtype), absent)
    arguments = [part for array, axes in operands.values() for part in (array, list(axes))]
    return jnp.einsum(*arguments, list(order), optimize="optimal")


def unfolded(program: Program, equation: Equation, source: Source) -> list[Source]:
    """Return what a product of an inactive B with an active X is, in terms of what X is the sum of.

    The source's entries get further axes, those of B, and are repeated along what the product sums.
    """
    at = 0 if program.is_active(equation.inputs[0]) else 1
    x, other = equation.inputs[at], equation.inputs[1 - at]
    contracted_axes, batched = equation.params["dimension_numbers"]
    rank, other_rank = len(shape_of(x)), len(shape_of(other))
    summed, paired = tuple(contracted_axes[at]), tuple(batched[at])
    x_free = [axis for axis in range(rank) if axis not in (*summed, *paired)]
    b_summed, b_paired = tuple(contracted_axes[1 - at]), tuple(batched[1 - at])
    b_free = [axis for axis in range(other_rank) if axis not in (*b_summed, *b_paired)]
    # The product's axis of each axis of X but for summed ones, then those of B's own, then further ones.
    x_first = len(paired) + (len(b_free) if at == 1 else 0)
    b_first = len(paired) + (len(x_free) if at == 0 else 0)
    kept = dict(zip((*paired, *x_free), (*range(len(paired)), *range(x_first, x_first + len(x_free))), strict=True))
    order = [kept[axis] for axis in sorted(kept)]
    order += range(b_first, b_first + len(b_free))
    order += range(len(order), len(source.index.shape))
    extra = [source.index.shape[axis] for axis in order[len(kept) :]]
    shape = (*shape_of(x), *extra)
    part = source.moved(x, lambda places: places.transposed(order).spread(summed, shape))
    # The place in X's axes, or behind them, of each axis of B.
    target = dict(zip((*b_paired, *b_summed), (*paired, *summed), strict=True))
    target |= {axis: rank + k for k, axis in enumerate(b_free)}
    ordered = sorted(range(other_rank), key=target.__getitem__)
    apart = [axis for axis in range(len(shape)) if axis not in target.values()]
    places = Places.all_of(shape_of(other)).transposed(ordered).spread(apart, shape)
    part = dataclasses.replace(part, scales=(*part.scales, Scale(other, False, places)))
    return trace_back(program, part)


def contract_sums(program: Program, wanted: Sequence[Atom]) -> None:
    """Let sums over scaled outer products, which ``wanted`` depend on, be computed without these products."""
    for equation in program.needed(wanted)[0]:
        if isinstance(equation, Loop):
            contract_sums(equation.body, [*equation.body.outputs, *equation.inner.values()])
        elif equation.kind in ("reduce_sum", "dot_general") and program.is_active(equation.outputs[0]):
            _contract(program, equation)


def _contract(program: Program, equation: Equation) -> None:
    """Compute a sum from the factors of what it sums, where that is products larger than their operands."""
    out = equation.outputs[0]
    shape = shape_of(out)
    whole = Source(out, Places.all_of(shape))
    if equation.kind == "dot_general":
        active = [atom for atom in equation.inputs if program.is_active(atom)]
        if len(active) > 1 or math.prod(shape_of(active[0])) <= math.prod(shape):
            return
        parts = unfolded(program, equation, whole)
    else:
        parts = trace_back(program, whole)
    products = []
    for part in parts:
        inner = program.producer.get(part.value) if program.is_active(part.value) else None
        if not isinstance(inner, Equation) or inner.kind != "dot_general" or all(map(program.is_active, inner.inputs)):
            return
        product = product_of(program, inner, part)
        operands = sum(math.prod(shape_of(atom)) for atom in inner.inputs)
        if part.part or not product.sums or math.prod(shape_of(part.value)) <= operands:
            return
        products.append(product)
    if products:
        _replace(program, equation, products)


def _replace(program: Program, equation: Equation, products: Sequence[Product]) -> None:
    out = aval_of(equation.outputs[0])
    factors = [(*product.left, *product.right) for product in products]

    def evaluate(values: Sequence[Any]) -> list[Any]:
        total, rest = jnp.zeros(math.prod(out.shape), out.dtype), list(values)
        for product, each in zip(products, factors, strict=True):
            own, rest = rest[: len(each)], rest[len(each) :]
            order = (*product.batch, *product.rows, *product.columns)
            part = multiplied(each, own, order, product.sizes) * product.scale
            total = product.index.added(total, part.astype(out.dtype))
        return [total.reshape(out.shape)]

    program.replace(equation, [factor.atom for each in factors for factor in each], evaluate)


def complete(program: Program, products: Sequence[Product], repeated: Sequence[Source]) -> tuple[Name, Name] | None:
    r"""Return q and r: outer products A beside repeated vectors ``V s`` have the kernel of A, less q's, and r's.

    Where V is the same for all examples and s an active vector that is repeated along the other axes,
    :math:`\langle A + V s, A' + V s' \rangle = \langle A, A' \rangle - q q' + r r'` with
    :math:`q_j = \sum_i V_{ij} A_{ij} / |V_j|` and :math:`r_j = |V_j| s_j + q_j`. For a normalized weight r vanishes.
    That is None where the parts are others.
    """
    first, source = products[0], repeated[0]
    axes = (*first.batch, *first.rows, *first.columns)
    numbers = _matched(source.index, first.index, axes)
    if (
        len(repeated) > 1
        or source.part
        or first.part
        or numbers is None
        or any(each.sizes != first.sizes for each in products)
    ):
        return None
    atom, places = origin(program, source.value)
    vector, *scales = (_renumbered(_varying(scale), numbers) for scale in (Scale(atom, False, places), *source.scales))
    kept = tuple(axis for axis in axes if axis in vector.axes)
    fixed = [scale for scale in scales if not set(scale.axes) <= set(kept)]
    others = [scale for scale in scales if set(scale.axes) <= set(kept)]
    sizes = first.sizes
    if not fixed or program.varies([scale.atom for scale in fixed]):
        return None
    if math.prod(sizes[axis] for axis in axes) < _FEWEST * math.prod(sizes[axis] for axis in kept):
        return None
    length = contracted(program, [*fixed, *fixed], kept, sizes)
    own = contracted(program, [vector, *others], kept, sizes, source.scale)
    along = [contracted(program, [*fixed, *each.left, *each.right], kept, each.sizes, each.scale) for each in products]

    def projected(values: Sequence[Any]) -> list[Any]:
        squared, *parts = values
        safe = jnp.where(squared > 0, squared, 1)
        return [jnp.where(squared > 0, sum(parts) / jnp.sqrt(safe), 0)]

    def rest(values: Sequence[Any]) -> list[Any]:
        squared, own, q = values
        return [jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)) * own + q, 0)]

    q = program.derive([length, *along], aval_of(along[0]), projected)
    return q, program.derive([length, own, q], aval_of(q), rest)


def _matched(places: Places, others: Places, axes: Sequence[int]) -> dict[int, int] | None:
    """Return which of the ``axes`` of ``others`` is each axis of places that are the same in another order."""
    if places.values is not None or others.values is not None or places.first != others.first:
        return None
    ways = {(n, stride): axis for n, stride, axis in zip(others.shape, others.strides, axes, strict=True) if n > 1}
    own = {
        axis: (n, stride) for axis, (n, stride) in enumerate(zip(places.shape, places.strides, strict=True)) if n > 1
    }
    if set(own.values()) != set(ways) or len(ways) != len(own):
        return None
    return {axis: ways[way] for axis, way in own.items()}


def _renumbered(factor: Factor, numbers: dict[int, int]) -> Factor:
    return dataclasses.replace(factor, axes=tuple(numbers[axis] for axis in factor.axes))
