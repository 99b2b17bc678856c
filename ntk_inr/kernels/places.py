"""Where the entries of an intermediate value go to in a parameter, without a list of them where a rule says it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """The place in a flat parameter of each entry of an array: ``first + sum_k strides[k] * i_k``, or as listed.

    Attributes:
        shape: that of the array.
        strides: how far apart in the parameter neighbours along each axis are.
        first: the place of the first entry.
        values: the places one by one, where they follow no such rule; else None.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    first: int = 0
    values: np.ndarray | None = None

    @classmethod
    def all_of(cls, shape: Sequence[int]) -> Places:
        """Return the places of a parameter's own entries."""
        return cls(tuple(shape), tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))

    @classmethod
    def listed(cls, values: Any) -> Places:
        """Return places that an array of numbers lists."""
        values = np.asarray(values)
        return cls(values.shape, values=values)

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    def array(self) -> np.ndarray:
        """Return the places one by one."""
        if self.values is not None:
            return self.values
        steps = (stride * np.arange(n) for n, stride in zip(self.shape, self.strides, strict=True))
        total = np.asarray(self.first)
        for step in steps:
            total = total[..., None] + step
        return total

    def transposed(self, axes: Sequence[int]) -> Places:
        """Return the places of the transposed array."""
        if self.values is not None:
            return self.listed(self.values.transpose(axes))
        return Places(tuple(self.shape[a] for a in axes), tuple(self.strides[a] for a in axes), self.first)

    def reshaped(self, shape: Sequence[int]) -> Places:
        """Return the places of the reshaped array."""
        strides = None if self.values is not None else _regrouped(self.shape, self.strides, shape)
        if strides is None:
            return self.listed(self.array().reshape(shape))
        return Places(tuple(shape), strides, self.first)

    def part(self, spans: Sequence[int | slice]) -> Places:
        """Return the places of a part of the array: for each axis an index, which drops it, or a slice."""
        if self.values is not None:
            return self.listed(self.values[tuple(spans)])
        shape, strides, first = [], [], self.first
        for n, stride, span in zip(self.shape, self.strides, spans, strict=True):
            if isinstance(span, slice):
                taken = range(n)[span]
                first += stride * (taken.start if len(taken) else 0)
                shape.append(len(taken))
                strides.append(stride * taken.step)
            else:
                first += stride * span
        return Places(tuple(shape), tuple(strides), first)

    def spread(self, axes: Sequence[int], shape: Sequence[int]) -> Places:
        """Return the places of the array with new ``axes``, repeated along them up to ``shape``."""
        if self.values is not None:
            return self.listed(np.broadcast_to(np.expand_dims(self.values, tuple(axes)), shape))
        old = iter(self.strides)
        return Places(tuple(shape), tuple(0 if a in axes else next(old) for a in range(len(shape))), self.first)

    def repeated(self, shape: Sequence[int]) -> Places:
        """Return the places of the array repeated along axes of size 1, or along all of them if it is a number."""
        kept = [axis for axis, n in enumerate(self.shape) if n == shape[axis]]
        ones = self.reshaped([self.shape[axis] for axis in kept])
        return ones.spread([axis for axis in range(len(shape)) if axis not in kept], shape)

    def entries(self, inner: Places) -> Places:
        """Return the places of the entries ``inner``, counted in the flattened array, in the shape of ``inner``."""
        flat = self.reshaped((self.size,))
        if flat.values is not None or inner.values is not None:
            return self.listed(flat.array()[inner.array()])
        (stride,) = flat.strides
        return Places(inner.shape, tuple(stride * s for s in inner.strides), flat.first + stride * inner.first)

    def entries_of_each(self, inner: Places) -> Places:
        """Return the same of each slice along the first axis."""
        n, *rest = self.shape
        each = self.reshaped((n, math.prod(rest)))
        if each.values is not None or inner.values is not None:
            return self.listed(each.array()[:, inner.array()])
        between, stride = each.strides
        strides = (between, *(stride * s for s in inner.strides))
        return Places((n, *inner.shape), strides, each.first + stride * inner.first)

    def same_as(self, other: Places) -> bool:
        """Return whether every entry goes to the same place."""
        if self is other:
            return True
        if self.values is not None or other.values is not None:
            return np.array_equal(self.array(), other.array())
        if self.shape != other.shape:
            return False
        steps = zip(self.shape, self.strides, other.strides, strict=True)
        return not self.size or (self.first == other.first and all(a == b for n, a, b in steps if n > 1))

    def shifted(self, other: Places) -> Places | None:
        """Return these places and others a constant apart from them, side by side before the last axis, else None."""
        steps = self.strides, self.shape
        if self.values is not None or other.values is not None or steps != (other.strides, other.shape):
            return None
        apart = other.first - self.first
        shape, strides = (*self.shape[:-1], 2, self.shape[-1]), (*self.strides[:-1], apart, self.strides[-1])
        return Places(shape, strides, self.first) if apart > 0 else None

    def is_constant(self, axis: int) -> bool:
        """Return whether all entries along this axis, of more than one, go to the same place."""
        if self.shape[axis] == 1 or self.size == 0:
            return False
        if self.values is None:
            return self.strides[axis] == 0
        return self.values.strides[axis] == 0 or bool((self.values == self.values.take([0], axis)).all())

    def taken(self, values: Any) -> Any:
        """Return the entries of an array at these places; axes along which all are the same may have size 1."""
        moving = self._moving(values.size)
        if moving is None:
            return values.reshape(-1)[self.array()]
        rest = [axis for axis in range(len(self.shape)) if axis not in moving]
        moved = values.reshape([*(self.shape[axis] for axis in moving), *(1 for _ in rest)])
        return moved.transpose(np.argsort([*moving, *rest]).tolist())

    def added(self, total: Any, values: Any) -> Any:
        """Return a flat array with the entries of one of this shape added at these places."""
        moving = self._moving(total.size)
        if moving is None or values.size != total.size:
            return total.at[self.array().reshape(-1)].add(values.reshape(-1))
        rest = [axis for axis in range(len(self.shape)) if axis not in moving]
        return total + values.transpose([*moving, *rest]).reshape(-1)

    def _moving(self, size: int) -> list[int] | None:
        """Return the axes along which places move, so that in this order they are all of ``size`` places in a row."""
        if self.values is not None or self.first or 0 in self.shape:
            return None
        moving = [axis for axis, n in enumerate(self.shape) if n > 1 and self.strides[axis]]
        moving.sort(key=lambda axis: -self.strides[axis])
        strides = self.all_of([self.shape[axis] for axis in moving]).strides
        is_whole = strides == tuple(self.strides[axis] for axis in moving)
        return moving if is_whole and math.prod(self.shape[axis] for axis in moving) == size else None

    @property
    def is_spaced(self) -> bool:
        """Whether a look at the strides shows that no two entries go to the same place."""
        if self.values is not None:
            return False
        reach = 0
        for stride, n in sorted((stride, n) for stride, n in zip(self.strides, self.shape, strict=True) if n > 1):
            if stride <= reach:
                return False
            reach += stride * (n - 1)
        return True

    @property
    def last(self) -> int:
        """The largest place, where strides are positive."""
        return self.first + sum(stride * (n - 1) for stride, n in zip(self.strides, self.shape, strict=True))


def overlap(parts: Sequence[Places], size: int) -> bool:
    """Return whether some of the ``size`` places is gone to twice."""
    if not any(part.size for part in parts):
        return False
    if all(part.is_spaced for part in parts):
        ordered = sorted((part for part in parts if part.size), key=lambda part: part.first)
        if all(a.last < b.first for a, b in itertools.pairwise(ordered)):
            return False
    hits: Any = sum(np.bincount(part.array().ravel(), minlength=size) for part in parts)
    return bool(hits.max() > 1)


def _regrouped(shape: Sequence[int], strides: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """Return the strides after a reshape, or None where the places then follow no such rule."""
    if 0 in new:
        return (0,) * len(new)
    old = [(n, stride) for n, stride in zip(shape, strides, strict=True) if n != 1]
    regrouped: list[int] = []
    while len(regrouped) < len(new):
        if new[len(regrouped)] == 1:
            regrouped.append(0)
            continue
        # As few old axes as make up as many entries as some new axes.
        taken, sizes = [old.pop(0)], [new[len(regrouped)]]
        while (have := math.prod(n for n, _ in taken)) != (want := math.prod(sizes)):
            if have < want:
                taken.append(old.pop(0))
            else:
                sizes.append(new[len(regrouped) + len(sizes)])
        if any(a != n * b for (_, a), (n, b) in itertools.pairwise(taken)):
            return None
        stride = taken[-1][1]
        regrouped += [stride * math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    return tuple(regrouped)
