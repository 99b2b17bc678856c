"""What a kernel is taken of, checked once for every function that takes ``(apply, params, x)``, and its trace."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr._dtypes import accumulation_dtype
from ntk_inr._typing import Apply, Params
from ntk_inr.kernels import mixing
from ntk_inr.kernels.structured import Trace


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("apply", "params", "x1", "x2"),
    meta_fields=("c", "dtype", "traced", "coupled"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What a kernel is taken of.

    Attributes:
        apply: the function as a pytree.
        params: pytree of parameters.
        x1: coordinates (n1, d).
        x2: coordinates (n2, d); None is x1.
        c: number of outputs.
        dtype: the kernel's, at least float32.
        traced: whether some of it is a value of a transformation under way.
        coupled: whether the function is one of its whole batch.
    """

    apply: Partial
    params: Params
    x1: Any
    x2: Any
    c: int
    dtype: np.dtype
    traced: bool
    coupled: bool = False

    @property
    def columns(self) -> Any:
        """The coordinates of the kernel's columns."""
        return self.x1 if self.x2 is None else self.x2

    @property
    def n1(self) -> int:
        """The number of coordinates of the kernel's rows."""
        return self.x1.shape[0]

    @property
    def n2(self) -> int:
        """The number of coordinates of the kernel's columns."""
        return self.columns.shape[0]

    @property
    def is_abstract(self) -> bool:
        """Whether shapes stand for some of the parameters or coordinates."""
        return _checks.is_abstract((self.params, self.x1, self.x2))


def check_model(
    apply: Apply, params: Params, x1: Any, x2: Any = None, *, coupled: bool = False, abstract: bool = False
) -> Model:
    """Return the checked model that a kernel is taken of, or say what is wrong with it.

    Where shapes may stand for values (``abstract``), what only values show is not checked.
    """
    apply = _checks.as_partial(apply)
    if not abstract and _checks.is_abstract((params, x1, x2)):
        raise TypeError(
            "params or coordinates are shapes (jax.ShapeDtypeStruct), which have no values; pass arrays. ni.explain "
            "takes shapes."
        )
    params = check_params(params)
    x1 = _checks.as_coordinates(x1, "x1")
    if x2 is not None:
        x2 = _checks.as_columns(x2, x1)
    check_apply(apply, params, x1)
    apply, params = in_parts(apply, params, x1)
    c = mixing.traced(apply, params, x1).out_info.shape[1]
    dtype = accumulation_dtype(*map(jnp.result_type, jax.tree.leaves(params)))
    traced = _is_traced(apply, params, x1, x2)
    if coupled:
        # The function may take this batch and no other, so that it is only traced.
        traced = traced or _is_traced(jax.make_jaxpr(apply)(params, x1).consts)
    elif not _checks.is_abstract((params, x1, x2)):
        traced = _is_traced(mixing.check(apply, params, x1, x2)) or traced
    return Model(apply, params, x1, x2, c, dtype, traced, coupled)


def _is_traced(*trees: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def check_params(params: Params, finite: bool = True) -> Params:
    """Return a pytree of parameters in the machine's byte order, or say which leaf can't be one."""
    params = _checks.native(_checks.unmasked(params, "params"))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params holds no arrays; pass the parameters, the second result of ni.init(net, key, x).")
    for path, leaf in leaves:
        if not hasattr(leaf, "dtype") and not isinstance(leaf, float | int | complex):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {leaf!r}; expected an array. Keep only arrays in params and "
                "close over the rest."
            )
        kind = jnp.result_type(leaf)
        if not jnp.issubdtype(kind, jnp.inexact):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} has dtype {kind}; every parameter must be floating point or "
                "complex. Close over arrays that are not trained instead."
            )
    if finite:
        _checks.check_finite_tree(params, "params")
    return params


def check_apply(apply: Partial, params: Params, x: Any, kind: Any = jnp.inexact) -> int:
    """Return the number of outputs c of ``apply(params, x): (n, d) -> (n, c)``, of a ``kind``, or say what it gave."""
    out = mixing.traced(apply, params, x).out_info
    shape = getattr(out, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != x.shape[0]:
        got = f"shape {shape}" if shape is not None else type(out).__name__
        fix = (
            "Add the axis of outputs with [:, None]."
            if shape == (x.shape[0],)
            else "A function of one example can be batched with jax.vmap(f, in_axes=(None, 0))."
        )
        raise ValueError(f"apply(params, x) gave {got} for x of shape {x.shape}; expected ({x.shape[0]}, c). {fix}")
    if not jnp.issubdtype(out.dtype, kind):
        expected = "a real floating point" if kind is jnp.floating else "a floating point or complex"
        raise TypeError(f"apply(params, x) gave dtype {out.dtype}; expected {expected} output.")
    return shape[1]


@dataclasses.dataclass(frozen=True)
class _Joined:
    """A function whose complex parameters, those of the leaves ``places``, are given as pairs of real arrays (2, ...).

    Its outputs are real: those of a complex function are the real parts, then the imaginary ones.
    """

    places: tuple[int, ...]

    def __call__(self, apply: Partial, params: Params, x: Any) -> Array:
        leaves, tree = jax.tree.flatten(params)
        for place in self.places:
            leaves[place] = lax.complex(*(lax.index_in_dim(leaves[place], part, keepdims=False) for part in (0, 1)))
        out = apply(jax.tree.unflatten(tree, leaves), x)
        return jnp.concatenate([out.real, out.imag], 1) if jnp.iscomplexobj(out) else out


def in_parts(apply: Partial, params: Params, x: Any) -> tuple[Partial, Params]:
    """Return a function and parameters as real ones, by real and imaginary parts where they are complex."""
    leaves, tree = jax.tree.flatten(params)
    places = tuple(place for place, leaf in enumerate(leaves) if _is_complex(leaf))
    if not places and not _is_complex(mixing.traced(apply, params, x).out_info):
        return apply, params
    for place in places:
        leaves[place] = _parts(leaves[place])
    return Partial(_Joined(places), apply), jax.tree.unflatten(tree, leaves)


def _is_complex(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)


def _parts(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((2, *leaf.shape), np.finfo(leaf.dtype).dtype)
    return (np if isinstance(leaf, np.ndarray) else jnp).stack([leaf.real, leaf.imag])


def trace_of(model: Model, outputs: str) -> Trace:
    """Return the trace of one example, remembered for functions and shapes met before."""
    arguments = (*mixing.signature(model.apply, model.params, model.x1), model.c, outputs)
    # A function may close over values of a transformation under way, which must not be kept.
    return _trace.__wrapped__(*arguments, True) if model.traced else _trace(*arguments, False)


@functools.lru_cache(maxsize=16)
def _trace(tree: Any, avals: Any, d: int, dtype: Any, x64: bool, c: int, outputs: str, differentiable: bool) -> Trace:
    apply, params = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*aval) for aval in avals])
    return Trace(apply, params, jax.ShapeDtypeStruct((d,), dtype), c, outputs, differentiable=differentiable)
