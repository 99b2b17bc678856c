"""What ``stop_gradient`` hides from training: parts of a function's derivative, found by taking it away."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr._dtypes import accumulation_dtype, at_precision, eps
from ntk_inr._typing import Apply, Params
from ntk_inr.kernels import mixing
from ntk_inr.kernels.equations import equations


def released(apply: Partial) -> Partial:
    """Return the same function with ``stop_gradient`` as the identity, so that its derivative is all there is.

    Functions with a derivative rule of their own keep it: what it leaves out can't be told.
    """
    return Partial(_released, apply)


def is_frozen(apply: Apply, params: Params, x: Any) -> bool:
    """Return whether some of the derivative by the parameters is under ``stop_gradient``, at coordinates ``x``.

    The trace says whether there is a ``stop_gradient`` at all; derivatives with and without it at some coordinates
    say whether it matters, as it does not around a floor. Values of a transformation, and shapes, can't be looked at:
    then any counts.
    """
    apply = _checks.as_partial(apply)
    if not _stops(mixing.traced(apply, params, x).jaxpr):
        return False
    if any(isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((apply, params, x))):
        return True
    with jax.debug_nans(False), jax.debug_infs(False):
        # Zeros, as in a last layer, hide what comes before, so parameters are moved too.
        return any(_differs(apply, near, mixing.some(x)) for near in (params, mixing.displaced(params)))


def mode_of(function: Partial, params: Params, x: Any) -> str:
    """Return how JAX can take this function's derivative, "reverse" or "forward", or nothing where it can't.

    Reverse it does not go through ``while`` loops, and forward not through rules for reverse mode.
    """
    # In forward mode JAX complains only when it lowers.
    attempts: dict[str, Callable[..., Any]] = {
        "reverse": functools.partial(jax.eval_shape, gradient),
        "forward": jax.jit(_along).lower,
    }
    for mode, attempt in attempts.items():
        try:
            attempt(function, params, x)
        except (ValueError, TypeError, NotImplementedError):
            continue
        return mode
    return ""


def _released(apply: Partial, params: Params, x: Any) -> Any:
    leaves, tree = jax.tree.flatten((apply, params, x))

    def flat(*leaves: Any) -> Any:
        apply, params, x = jax.tree.unflatten(tree, leaves)
        return apply(params, x)

    closed = jax.make_jaxpr(flat)(*leaves)
    return jax.core.eval_jaxpr(_without(closed.jaxpr), closed.consts, *leaves)[0]


def _without(value: Any) -> Any:
    """Return a jaxpr, or a parameter of an equation that holds some, without ``stop_gradient``."""
    if not _stops(value):
        return value
    if isinstance(value, tuple | list):
        return type(value)(map(_without, value))
    if _is_closed(value):
        return value.replace(jaxpr=_without(value.jaxpr))
    same: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom if isinstance(atom, jex.Literal) else same.get(atom, atom)

    equations = []
    for eqn in value.eqns:
        if eqn.primitive.name == "stop_gradient":
            same[eqn.outvars[0]] = read(eqn.invars[0])
        else:
            params = {name: _without(inner) for name, inner in _open(eqn).items()}
            equations.append(eqn.replace(invars=list(map(read, eqn.invars)), params={**eqn.params, **params}))
    return value.replace(eqns=equations, outvars=list(map(read, value.outvars)))


def _stops(value: Any) -> bool:
    """Return whether ``stop_gradient`` is in a jaxpr, or in a parameter of an equation; rules are not looked into."""
    return any(eqn.primitive.name == "stop_gradient" for eqn in equations(value, into_rules=False))


def _is_closed(value: Any) -> bool:
    # Newer releases of JAX have one class for both, with itself as its jaxpr.
    return isinstance(value, jex.ClosedJaxpr) and value.jaxpr is not value


def _open(eqn: Any) -> dict[str, Any]:
    """Return the parameters of an equation, none where its derivative does not come from what they hold."""
    return {} if eqn.primitive.name.startswith("custom_") else eqn.params


def gradient(function: Partial, params: Params, x: Any) -> list[Array]:
    """Return the gradient of a sum of the outputs with weights of their own."""
    out, pull = jax.vjp(lambda params: function(params, x), params)
    return jax.tree.leaves(pull(mixing.cotangent_of(out)))


def _along(function: Partial, params: Params, x: Any) -> Array:
    """Return the change of the outputs where all parameters grow alike."""
    ones = jax.tree.map(jnp.ones_like, params)
    return jax.jvp(lambda params: function(params, x), (params,), (ones,))[1]


def _differs(apply: Partial, params: Params, x: Any) -> bool:
    full = released(apply)
    mode = mode_of(full, params, x)
    if not mode:
        return True
    change, size = {"reverse": _by_gradient, "forward": _by_direction}[mode](apply, full, params, x)
    unit = max(map(eps, mixing.dtypes(mixing.traced(apply, params, x))))
    # Written so that NaN counts as a difference.
    return not float(change) <= unit**0.5 * float(size)


@jax.jit
@at_precision
def _by_gradient(apply: Partial, full: Partial, params: Params, x: Any) -> tuple[Array, Array]:
    """Return how far gradients of the outputs are apart with and without ``stop_gradient``, and how large they are."""
    own, other = (gradient(function, params, x) for function in (apply, full))
    return _norm([a - b for a, b in zip(own, other, strict=True)]), jnp.maximum(_norm(own), _norm(other))


@jax.jit
@at_precision
def _by_direction(apply: Partial, full: Partial, params: Params, x: Any) -> tuple[Array, Array]:
    """Return the same of derivatives of the outputs along a gradient."""
    out, pull = jax.vjp(lambda params: apply(params, x), params)
    (direction,) = pull(mixing.cotangent_of(out))
    (own,) = jax.linear_transpose(pull, out)((direction,))
    other = jax.jvp(lambda params: full(params, x), (params,), (direction,))[1]
    return _norm([own - other]), jnp.maximum(_norm([own]), _norm([other]))


def _norm(arrays: list[Array]) -> Array:
    dtype = accumulation_dtype(*arrays)
    return jnp.linalg.norm(jnp.stack([jnp.linalg.norm(array.astype(dtype)) for array in arrays]))
