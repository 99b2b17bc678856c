"""Places that follow a rule against arrays that list them."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from ntk_inr.kernels.places import Places, overlap

SHAPES = [(), (6,), (2, 3), (4, 1, 6), (2, 3, 4), (1, 1), (0, 3)]


def _moved(draw, places, values):
    """Return both after one and the same move."""
    kind = draw(st.sampled_from(["transpose", "reshape", "part", "spread", "entries", "entries of each"]))
    if kind == "transpose":
        axes = draw(st.permutations(range(values.ndim)))
        return places.transposed(axes), values.transpose(axes)
    if kind == "reshape":
        n = values.size
        sizes = [(n,), (1, n), *((k, n // k) for k in (2, 3, 4, 6) if n % k == 0)]
        shape = draw(st.sampled_from([*sizes, *((2, 3, n // 6) for _ in range(n % 6 == 0))]))
        return places.reshaped(shape), values.reshape(shape)
    if kind == "part":
        spans = [draw(st.sampled_from([slice(None), slice(0, n, 2), slice(1, n), 0])) if n else slice(None)
                 for n in values.shape]  # fmt: skip
        return places.part(spans), values[tuple(spans)]
    if kind == "spread":
        axis = draw(st.integers(0, values.ndim))
        shape = (*values.shape[:axis], 2, *values.shape[axis:])
        return places.spread((axis,), shape), np.broadcast_to(np.expand_dims(values, axis), shape)
    whole = kind == "entries" or not values.ndim
    n = values.size if whole else values[0].size if len(values) else 0
    inner = np.arange(n)[::-2].copy() if draw(st.booleans()) else np.arange(n)
    steps = Places.listed(inner) if len(inner) < n else Places.all_of((n,))
    if whole:
        return places.entries(steps), values.reshape(-1)[inner]
    return places.entries_of_each(steps), values.reshape(len(values), n)[:, inner]


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(st.data())
def test_every_move_is_that_of_the_listed_places(data):
    shape = data.draw(st.sampled_from(SHAPES))
    places, values = Places.all_of(shape), np.arange(np.prod(shape, dtype=int)).reshape(shape)
    size = values.size
    for _ in range(data.draw(st.integers(0, 5))):
        places, values = _moved(data.draw, places, values)
        if values.size > 1000:
            break
    assert places.shape == values.shape
    np.testing.assert_array_equal(places.array(), values)
    listed = Places.listed(values)
    assert places.same_as(listed)
    for axis, n in enumerate(values.shape):
        constant = n > 1 and values.size > 0 and bool((values == values.take([0], axis)).all())
        assert places.is_constant(axis) == listed.is_constant(axis) == constant
    twice = len(np.unique(values)) < values.size
    assert overlap([places], size) == twice
    assert overlap([places, listed], size) == bool(values.size)


def test_different_parts_do_not_overlap():
    rows = Places.all_of((6, 4))
    halves = [rows.part([slice(0, 3), slice(None)]), rows.part([slice(3, 6), slice(None)])]
    between = [rows.part([slice(0, 6, 2), slice(None)]), rows.part([slice(1, 6, 2), slice(None)])]
    assert not overlap(halves, 24)
    assert not overlap(between, 24)
    assert overlap([*halves, rows], 24)
    assert not halves[0].same_as(halves[1])
