"""Products of a kernel's factors: small Gram matrices multiplied entry by entry, (T8.1) and (8.5)."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_inr.kernels.tables import overlap_of

_UNROLLED_PAIRS = 16
# Tokens of the rows whose products with one of the columns are made at once.
_MOST_TOKENS = 8
_FEW = 4
# Columns of wide factors that are multiplied at a time: a product copies one of its operands.
_COLUMNS = 16384


class Factor(NamedTuple):
    """One term of the kernel for n examples, ``sum_bts (h_bt h'_bs + offset) (delta_bt delta'_bs)``.

    Shapes: h (n, batch, tokens, m_in); delta (n, c, batch, tokens, m_out); offset a number. In most networks batch
    and tokens are 1. Where tokens are several, the rows of ``h`` are orthonormal, and the offset is 0. Parameters
    that are in no product share a factor whose ``h`` is None, with their Jacobian as ``delta`` and 1 as offset; what
    is to be taken away from the kernel has one with the offset -1.

    Of rows that are looked up in a table, ``places`` (n, batch, slots) are where they are; only those of both examples
    count. One slot multiplies each term by whether it is the same. Of several, h (n, batch, 1, slots) weighs the rows
    that share one ``delta``; where h is None each has its own, as a token.
    """

    h: Array | None
    delta: Array
    offset: Array
    places: Array | None = None

    def map(self, change: Callable[[Array], Array]) -> Factor:
        """Return the factor with each array whose first axis is that of examples changed."""
        h, places = (part if part is None else change(part) for part in (self.h, self.places))
        return Factor(h, change(self.delta), self.offset, places)


def tile(rows: list[Factor], columns: list[Factor], outputs: str, *, in_turn: bool = False) -> Array:
    """Return the kernel between the examples of ``rows`` and of ``columns``.

    ``in_turn`` adds one term after the other, so that three arrays of the tile's size are alive, not two for each
    term: the compiler would otherwise make all products first.
    """
    total = term(rows[0], columns[0], outputs)
    for a, b in zip(rows[1:], columns[1:], strict=True):
        if in_turn:
            total, a, b = lax.optimization_barrier((total, a, b))
        total = total + term(a, b, outputs)
    return total


def blocked(rows: list[Factor], columns: list[Factor], outputs: str, block: int) -> Array:
    """Return the kernel between two sets of examples inside one program, ``block`` rows at a time."""
    if block >= len(rows[0].delta):
        return tile(rows, columns, outputs)

    def row_of(part: Any) -> Array:
        single = [
            Factor(h, delta, factor.offset, places).map(lambda array: array[None])
            for (h, delta, places), factor in zip(part, rows, strict=True)
        ]
        return tile(single, columns, outputs)[0]

    return lax.map(row_of, [(factor.h, factor.delta, factor.places) for factor in rows], batch_size=block)


def diagonal(rows: list[Factor], outputs: str) -> Array:
    """Return the kernel of each example with itself, (n,) or for "diagonal" (n, c)."""

    def single(factor: Factor) -> Array:
        backward = jnp.einsum("icbtm,icbsm->icbts", factor.delta, factor.delta)
        if factor.h is None and factor.places is not None:
            # Rows that are looked up twice count once, so that each is at a place of its own.
            backward = jnp.diagonal(backward, axis1=3, axis2=4)[..., None]
        if factor.h is None:
            backward = backward * factor.offset
        else:
            forward = jnp.einsum("ibtm,ibsm->ibts", factor.h, factor.h) + factor.offset
            backward = backward * forward[:, None]
        each = backward.sum((2, 3, 4))
        return each if outputs == "diagonal" else each.mean(1)

    return functools.reduce(operator.add, map(single, rows))


_CONTRACTION = {"diagonal": "icm,jcm->ijc", "full": "icm,jem->ijce"}


def _gram(a: Array, b: Array) -> Array:
    """Return the inner products of the rows of a (n1, m) and of b (n2, m)."""
    if a.shape[1] > 2 * _COLUMNS and jax.default_backend() == "cpu":
        return _wide_gram(a, b)
    if a.shape[1] > _FEW:
        return a @ b.T
    # XLA's CPU products of so few columns take longer than this sum, which fuses with what comes after it.
    return functools.reduce(operator.add, (a[:, k, None] * b[None, :, k] for k in range(a.shape[1])))


def _wide_gram(a: Array, b: Array) -> Array:
    whole = a.shape[1] // _COLUMNS

    def add(k: Any, total: Array) -> Array:
        left, right = (lax.dynamic_slice_in_dim(m, k * _COLUMNS, _COLUMNS, axis=1) for m in (a, b))
        return total + left @ right.T

    rest = a[:, whole * _COLUMNS :] @ b[:, whole * _COLUMNS :].T
    return lax.fori_loop(0, whole, add, rest)


def grams(a: Factor, b: Factor, outputs: str, at: Any = (0, 0, 0)) -> tuple[Array | None, Array]:
    """Return the Gram matrices F (None stands for 1) and B of (T8.1), whose product entry by entry is a term.

    ``at`` is the entry of the batch and the two tokens that the term is of.
    """
    g, t, s = at
    left, right = a.delta[:, :, g, t], b.delta[:, :, g, s]
    if outputs == "trace":
        c = left.shape[1]
        width = c * left.shape[2]
        backward = _gram(left.reshape(len(left), width), right.reshape(len(right), width))
        backward = backward / c if c > 1 else backward
    else:
        backward = jnp.einsum(_CONTRACTION[outputs], left, right)
    if a.h is None or b.h is None:
        return None, backward * a.offset
    if a.places is None or b.places is None:
        return _gram(a.h[:, g, t], b.h[:, g, s]) + a.offset, backward
    places, others = a.places[:, g], b.places[:, g]
    if places.shape[1] > 1:
        return overlap_of(places, others, a.h[:, g, t, :, None], b.h[:, g, s, :, None]), backward
    forward = _gram(a.h[:, g, t], b.h[:, g, s])
    return jnp.where(places == others.T, forward, 0), backward


def _rows(a: Factor, b: Factor, outputs: str, at: Any) -> Array:
    """Return the share of one entry of the batch where the rows that are looked up have vectors of their own."""
    assert a.places is not None
    assert b.places is not None
    left, right = (factor.delta[:, :, at[0]].swapaxes(1, 2) for factor in (a, b))
    overlap = functools.partial(overlap_of, a.places[:, at[0]], b.places[:, at[0]])
    n, slots, c, width = left.shape
    if outputs == "trace":
        return overlap(left.reshape(n, slots, c * width), right.reshape(-1, slots, c * width)) / c
    if outputs == "diagonal":
        return jax.vmap(overlap, (2, 2), 2)(left, right)
    return jax.vmap(jax.vmap(overlap, (None, 2), 2), (2, None), 2)(left, right)


def tokens_at_a_time(tokens: int) -> int:
    """Return how many tokens of the rows are multiplied at a time with one of the columns."""
    return next(count for count in range(min(tokens, _MOST_TOKENS), 0, -1) if tokens % count == 0)


def _tokens(a: Factor, b: Factor, at: Any) -> Array:
    """Return the share, averaged over outputs, of some tokens of the rows with one of the columns.

    Products of all these at once, summed as they are multiplied entry by entry, are half as fast again on a CPU as one
    after the other.
    """
    g, t, s = at
    n, c, _, tokens, m_out = a.delta.shape
    count = tokens_at_a_time(tokens)
    assert a.h is not None
    assert b.h is not None
    h = lax.dynamic_slice_in_dim(a.h[:, g], t, count, 1).reshape(n * count, -1)
    delta = lax.dynamic_slice_in_dim(a.delta[:, :, g], t, count, 2).swapaxes(1, 2).reshape(n * count, c * m_out)
    backward = _gram(delta, b.delta[:, :, g, s].reshape(-1, c * m_out))
    share = _gram(h, b.h[:, g, s]) * (backward / c if c > 1 else backward)
    return share.reshape(n, count, -1).sum(1)


def term(a: Factor, b: Factor, outputs: str) -> Array:
    """Return one factor's share of the kernel between two sets of examples."""
    batch, tokens = a.delta.shape[2:4]

    def pair(at: Any) -> Array:
        forward, backward = grams(a, b, outputs, at)
        if forward is None:
            return backward
        return backward * forward.reshape(forward.shape + (1,) * (backward.ndim - 2))

    if a.places is not None and a.h is None:
        pair, tokens = functools.partial(_rows, a, b, outputs), 1
    first = range(tokens)
    if tokens > 1 and a.h is not None and a.places is None and outputs == "trace":
        pair, first = functools.partial(_tokens, a, b), range(0, tokens, tokens_at_a_time(tokens))
    pairs = list(itertools.product(range(batch), first, range(tokens)))
    if len(pairs) <= (_UNROLLED_PAIRS if a.places is None else _FEW):
        return functools.reduce(operator.add, map(pair, pairs))
    total = jax.eval_shape(pair, pairs[0])
    zero = jnp.zeros(total.shape, total.dtype)
    return lax.scan(lambda sum_, at: (sum_ + pair(at), None), zero, jnp.asarray(pairs))[0]
