"""Whether the output at one coordinate depends on the batch that it is evaluated in.

Two kinds of evidence. Among other rows, in the same place of a batch of the same length, the same program runs, so
that what moves an output is not rounding. In another place or in a batch of another length the output may round
otherwise, as far as it does where every number that it is made of moves by the last digit that is computed with.
"""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial

from ntk_inr._dtypes import at_precision, eps
from ntk_inr._typing import Params
from ntk_inr.kernels.equations import equations

# A prime, so that no roll by half of a batch leaves the rows in place.
_ROWS = 7
_CANDIDATES = 64
_NUDGES = 2
# How many last digits an output may move by among other rows, and how many times rounding in other batches.
_DIGITS = 8
_MAGNIFIED = 20
# What parameters are moved by before it is asked what mixes, since zeros, as in a last layer, hide what comes before.
_MOVED = 0.1
_REMEMBERED = 64
# What functions raise at a batch of another length than theirs.
_NOT_TAKEN = (TypeError, ValueError, AssertionError, IndexError, ZeroDivisionError)

_verdicts: collections.OrderedDict[Any, str] = collections.OrderedDict()


@jax.jit
def _call(apply: Partial, params: Params, x: Array) -> Any:
    return apply(params, x)


@at_precision
def traced(apply: Partial, params: Params, x: Any) -> Any:
    """Return JAX's trace of ``apply(params, x)``, which jit remembers."""
    return _call.trace(apply, params, x)


def signature(apply: Partial, params: Params, x: Any) -> tuple[Any, ...]:
    """Return what a trace of one example depends on, hashable."""
    leaves, tree = jax.tree.flatten((apply, params))
    avals = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return tree, avals, x.shape[1], x.dtype, bool(jax.config.read("jax_enable_x64"))


def check(apply: Partial, params: Params, x1: Array, x2: Array | None) -> Array:
    """Return outputs at some coordinates, or say that they are not finite, or that they depend on the batch.

    Whether examples mix is asked once for each function and set of shapes.
    """
    rows = _distinct(x1, x2)
    with jax.debug_nans(False), jax.debug_infs(False):
        try:
            outputs = _alone(apply, params, rows)
        except _NOT_TAKEN as error:
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


def _verdict(apply: Partial, params: Params, rows: np.ndarray, n: int) -> str:
    """Return what is wrong with a function whose examples mix, or nothing."""
    unit = max(map(eps, dtypes(traced(apply, params, rows))))
    for near in (displaced(params), params):
        alone = np.asarray(_alone(apply, near, rows), np.float64)
        if np.isfinite(alone).all():
            break
    batches = _batches(rows)
    try:
        together = _together(apply, near, batches)
    except _NOT_TAKEN as error:
        return _takes_no(_ROWS, n, error)
    plain, turned, *rest = np.asarray(together, np.float64)
    rounding = 0.0
    for draw in range(_NUDGES):
        # Of one shape with the batches, so that nothing is compiled anew; each is nudged in its own way.
        moved = nudged(np.broadcast_to(rows, batches.shape), unit, draw)
        rounded = _together(apply, jax.tree.map(lambda leaf, draw=draw: nudged(leaf, unit, draw), near), moved)
        rounding = max(rounding, np.abs(np.asarray(rounded, np.float64) - plain).max())
    size = np.abs(alone).max()
    among_others = max(np.abs(rest[i][i % _ROWS] - plain[i % _ROWS]).max() for i in range(2 * _ROWS))
    elsewhere = max(np.abs(plain - alone).max(), np.abs(turned[::-1] - plain).max())
    # Written so that NaN counts as moved.
    if among_others <= _DIGITS * unit * size and elsewhere <= _MAGNIFIED * rounding + _DIGITS * unit * size:
        return ""
    return (
        f"apply mixes examples: evaluating some of them together, or in another order, moves their outputs by "
        f"{max(among_others, elsewhere):.2g} (they are of size {size:.2g}), as batch normalization in training mode "
        "does. Pass coupled=True to ni.ntk for the kernel of the whole batch, or use the running statistics."
    )


def _distinct(x1: Array, x2: Array | None) -> Any:
    """Return ``_ROWS`` distinct coordinates, as far as there are so many from the data."""
    if any(isinstance(x, jax.core.Tracer) for x in (x1, x2)):
        return x1[:1]
    rows = np.concatenate([some(x) for x in (x1, x2) if x is not None])
    _, first = np.unique(rows.astype(np.float64), axis=0, return_index=True)
    rows = rows[first]
    if len(rows) < _ROWS:
        # Between those that there are, and towards the middle of the domain.
        t = np.linspace(0.1, 0.9, _ROWS - len(rows))[:, None]
        ends = rows[-1].astype(np.float64)
        more = (1 - t) * rows[0] + t * (ends if len(rows) > 1 else 0.5)
        rows = np.concatenate([rows, more.astype(rows.dtype)])
    return rows[np.linspace(0, len(rows) - 1, _ROWS).round().astype(int)]


def some(x: Any) -> np.ndarray:
    """Return some of the coordinates, evenly spaced among them."""
    places = np.linspace(0, len(x) - 1, min(len(x), _CANDIDATES)).round().astype(int)
    # On a CPU by NumPy, which copies nothing: each of JAX's own would be a program.
    return np.asarray(x)[places] if jax.default_backend() == "cpu" else np.asarray(x[places])


def _batches(rows: np.ndarray) -> np.ndarray:
    """Return batches (b, rows, d): the rows, turned, and each in its place among others and among its like."""
    wide = rows.astype(np.float64)
    others = ((wide + np.roll(wide, 1, axis=0)) / 2).astype(rows.dtype)
    among = [np.where(np.arange(_ROWS)[:, None] == i, rows, others) for i in range(_ROWS)]
    alike = [np.broadcast_to(row, rows.shape) for row in rows]
    return np.stack([rows, rows[::-1], *among, *alike])


@jax.jit
@at_precision
def _alone(apply: Partial, params: Params, rows: Any) -> Array:
    return lax.map(lambda row: apply(params, row[None])[0], rows)


@jax.jit
@at_precision
def _together(apply: Partial, params: Params, batches: Any) -> Array:
    # A loop, so that every batch is evaluated by one program.
    return lax.map(lambda batch: apply(params, batch), batches)


def nudged(array: Any, unit: float, draw: int) -> np.ndarray:
    """Return the array with each number moved up or down by a last digit."""
    array = np.asarray(array)
    wide = array.astype(np.float64)
    # Numbers near zero are moved too: differences round as the numbers that they are of.
    step = unit * np.maximum(np.abs(wide), np.abs(wide).mean() if array.size else 0)
    return np.asarray(wide + step * np.random.default_rng(draw).choice([-1.0, 1.0], array.shape), array.dtype)


def displaced(params: Params) -> Any:
    """Return the parameters, each moved up or down by a tenth of what its leaf's are as a rule."""

    def near(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        wide = leaf.astype(np.float64)
        size = np.sqrt(np.square(wide).mean()) if leaf.size else 0.0
        step = _MOVED * np.random.default_rng(0).choice([-1.0, 1.0], leaf.shape)
        return np.asarray(wide + (size or 1.0) * step, leaf.dtype)

    return jax.tree.map(near, params)


def cotangent_of(out: Array) -> Array:
    """Return a cotangent of these outputs, each of which has a weight of its own."""
    return jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype)


def has_custom_rule(trace: Any) -> bool:
    """Return whether a backward rule of the user's own, which need not be linear, stands in a trace."""
    return any(eqn.primitive.name.startswith("custom_vjp") for eqn in equations(trace.jaxpr))


def dtypes(trace: Any) -> set[Any]:
    """Return the floating point dtypes that a trace computes in."""
    made = (var.aval for eqn in equations(trace.jaxpr) for var in eqn.outvars)
    kinds = {aval.dtype for aval in made if hasattr(aval, "dtype")}
    return {dtype for dtype in kinds | {trace.out_info.dtype} if jnp.issubdtype(dtype, jnp.floating)}
