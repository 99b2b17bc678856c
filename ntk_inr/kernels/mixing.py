"""Whether the output at one coordinate depends on the batch that it is evaluated in.

Two kinds of evidence. Among other rows, in the same place of a batch of the same length, the same program runs, so
that what moves an output is not rounding. In another place or in a batch of another length the output may round
otherwise, as far as it does where every number that it is made of moves by the last digit that is computed with.
"""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial

from ntk_inr._dtypes import eps

# A prime, so that no roll by half of a batch leaves the rows in place.
_ROWS = 7
_CANDIDATES = 64
_NUDGES = 4
# How many last digits an output may move by among other rows, and how many times rounding in other batches.
_DIGITS = 8
_MAGNIFIED = 20
# What parameters are moved by before it is asked what mixes, since zeros, as in a last layer, hide what comes before.
_MOVED = 0.1
_REMEMBERED = 64

_verdicts: collections.OrderedDict[Any, str] = collections.OrderedDict()


@jax.jit
def _call(apply: Partial, params: Any, x: Array) -> Any:
    return apply(params, x)


def traced(apply: Partial, params: Any, x: Any) -> Any:
    """Return JAX's trace of ``apply(params, x)``, which jit remembers."""
    with jax.default_matmul_precision("highest"):
        return _call.trace(apply, params, x)


def signature(apply: Partial, params: Any, x: Array) -> tuple[Any, ...]:
    """Return what a trace of one example depends on, hashable."""
    leaves, tree = jax.tree.flatten((apply, params))
    avals = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return tree, avals, x.shape[1], x.dtype, bool(jax.config.read("jax_enable_x64"))


def check(apply: Partial, params: Any, x1: Array, x2: Array | None) -> Array:
    """Return outputs at some coordinates, or say that they are not finite, or that they depend on the batch.

    Whether examples mix is asked once for each function and set of shapes.
    """
    rows = _distinct(x1, x2)
    with jax.debug_nans(False), jax.debug_infs(False):
        try:
            outputs = _alone(apply, params, rows)
        except (TypeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
            raise ValueError(_takes_no(1, len(x1), error)) from error
        if isinstance(outputs, jax.core.Tracer):
            return outputs
        finite = np.isfinite(np.asarray(outputs, np.float64)).all(1)
        if not finite.all():
            raise ValueError(
                f"apply gives NaN or infinity at {rows[~finite][0].tolist()}, evaluated alone; its kernel is not "
                "defined there. If it takes statistics of a batch, pass coupled=True to ni.ntk."
            )
        key = signature(apply, params, x1)
        if key not in _verdicts:
            _verdicts[key] = _verdict(apply, params, rows, len(x1))
            if len(_verdicts) > _REMEMBERED:
                _verdicts.popitem(last=False)
    if _verdicts[key]:
        raise ValueError(_verdicts[key])
    return outputs


def _takes_no(rows: int, n: int, error: Exception) -> str:
    return (
        f"apply takes {n} coordinates but not {rows} of them ({type(error).__name__}: {error}), so it is a function of "
        "the whole batch. Pass coupled=True to ni.ntk for its kernel."
    )


def _verdict(apply: Partial, params: Any, rows: np.ndarray, n: int) -> str:
    """Return what is wrong with a function whose examples mix, or nothing."""
    unit = max(map(eps, dtypes(traced(apply, params, rows))))
    for near in (displaced(params), params):
        alone = np.asarray(_alone(apply, near, rows), np.float64)
        if np.isfinite(alone).all():
            break
    try:
        together = np.asarray(_together(apply, near, *_batches(rows), unit), np.float64)
    except (TypeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        return _takes_no(_ROWS, n, error)
    plain, turned, *rest = together
    size = np.abs(alone).max()
    rounding = np.abs(np.stack(rest[2 * _ROWS :]) - plain).max()
    among_others = max(np.abs(rest[i][i % _ROWS] - plain[i % _ROWS]).max() for i in range(2 * _ROWS))
    elsewhere = max(np.abs(plain - alone).max(), np.abs(turned[::-1] - plain).max())
    moved = max(among_others, elsewhere)
    # Written so that NaN counts as moved.
    if among_others <= _DIGITS * unit * size and elsewhere <= _MAGNIFIED * rounding + _DIGITS * unit * size:
        return ""
    return (
        f"apply mixes examples: evaluating some of them together, or in another order, moves their outputs by "
        f"{moved:.2g} (they are of size {size:.2g}), as batch normalization in training mode does. Pass coupled=True "
        "to ni.ntk for the kernel of the whole batch, or use the running statistics."
    )


def _distinct(x1: Array, x2: Array | None) -> Any:
    """Return ``_ROWS`` distinct coordinates, as far as there are so many from the data."""
    if any(isinstance(x, jax.core.Tracer) for x in (x1, x2)):
        return x1[:1]
    found = np.concatenate([some(x) for x in (x1, x2) if x is not None])
    _, first = np.unique(found.astype(np.float64), axis=0, return_index=True)
    found = found[first]
    if len(found) < _ROWS:
        # Between those that there are, and towards the middle of the domain.
        t = np.linspace(0.1, 0.9, _ROWS - len(found))[:, None]
        ends = found[-1].astype(np.float64)
        more = (1 - t) * found[0] + t * (ends if len(found) > 1 else 0.5)
        found = np.concatenate([found, more.astype(found.dtype)])
    return found[np.linspace(0, len(found) - 1, _ROWS).round().astype(int)]


def some(x: Any) -> np.ndarray:
    """Return some of the coordinates, evenly spaced among them."""
    places = np.linspace(0, len(x) - 1, min(len(x), _CANDIDATES)).round().astype(int)
    # On a CPU by NumPy, which copies nothing: each of JAX's own would be a program.
    return np.asarray(x)[places] if jax.default_backend() == "cpu" else np.asarray(x[places])


def _batches(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return batches (b, rows, d), and for each whether and by which draw its numbers are nudged."""
    others = ((rows.astype(np.float64) + np.roll(rows.astype(np.float64), 1, axis=0)) / 2).astype(rows.dtype)
    among = [np.where(np.arange(_ROWS)[:, None] == i, rows, others) for i in range(_ROWS)]
    alike = [np.broadcast_to(row, rows.shape) for row in rows]
    batches = np.stack([rows, rows[::-1], *among, *alike, *[rows] * _NUDGES])
    draws = np.maximum(0, np.arange(len(batches)) - (len(batches) - _NUDGES - 1))
    return batches, draws.astype(np.uint32)


@jax.jit
def _alone(apply: Partial, params: Any, rows: Any) -> Array:
    with jax.default_matmul_precision("highest"):
        return lax.map(lambda row: apply(params, row[None])[0], rows)


@jax.jit
def _together(apply: Partial, params: Any, batches: Any, draws: Any, unit: Any) -> Array:
    # A loop, so that every batch is evaluated by one program.
    def evaluated(case: Any) -> Array:
        batch, draw = case
        nudged = jax.tree.map(lambda leaf: _nudged(leaf, draw, unit), params)
        return apply(nudged, _nudged(batch, draw, unit))

    with jax.default_matmul_precision("highest"):
        return lax.map(evaluated, (batches, draws))


def _nudged(array: Any, draw: Any, unit: Any) -> Array:
    """Return the array with each number moved up or down by a last digit; a draw of 0 moves nothing."""
    array = jnp.asarray(array)
    step = (unit * jnp.where(draw > 0, 1, 0)).astype(array.dtype)
    # Numbers near zero are moved too: differences round as the numbers that they are of.
    return array + signs(array, draw) * step * jnp.maximum(jnp.abs(array), jnp.abs(array).mean())


def signs(array: Any, draw: Any) -> Array:
    """Return scattered signs in the array's shape and dtype."""
    place = jnp.arange(1, array.size + 1, dtype=jnp.uint32).reshape(array.shape)
    mixed = (place * jnp.uint32(2654435761)) ^ (jnp.asarray(draw, jnp.uint32) * jnp.uint32(2246822519))
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(3266489917)
    return jnp.where((mixed >> 16) & 1, 1, -1).astype(array.dtype)


@jax.jit
def displaced(params: Any) -> Any:
    """Return the parameters, each moved up or down by a tenth of what its leaf's are as a rule."""

    def near(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        size = jnp.sqrt(jnp.square(leaf.astype(jnp.float32)).mean())
        step = _MOVED * jnp.where(size > 0, size, 1).astype(leaf.dtype)
        return leaf + step * signs(leaf, 1)

    return jax.tree.map(near, params)


def dtypes(trace: Any) -> set[Any]:
    """Return the floating point dtypes that a trace computes in."""
    found = {var.aval.dtype for var in _made(getattr(trace.jaxpr, "jaxpr", trace.jaxpr))}
    return {dtype for dtype in found | {trace.out_info.dtype} if jnp.issubdtype(dtype, jnp.floating)}


def _made(jaxpr: Any) -> Any:
    """Yield the variables of a jaxpr that are arrays, and those of the jaxprs inside it."""
    for eqn in jaxpr.eqns:
        yield from (var for var in eqn.outvars if hasattr(var.aval, "dtype"))
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: isinstance(v, jex.ClosedJaxpr)):
            if isinstance(value, jex.ClosedJaxpr | jex.Jaxpr):
                yield from _made(getattr(value, "jaxpr", value))
