"""The kernel as a linear operator that is never formed: ``K v = J (J^T v)``, a few examples at a time."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr._checks import Outputs, Precision
from ntk_inr._dtypes import accumulation_dtype, at_precision, eps, unit_of
from ntk_inr._typing import Apply, Params
from ntk_inr.kernels import grams, mixing, structured
from ntk_inr.kernels.equations import has_references
from ntk_inr.kernels.model import Model, trace_of
from ntk_inr.kernels.request import Request

# Coordinates at which a custom backward rule is asked whether it is linear.
_LOOKED_AT = 3
# What JAX raises where it has no transpose of an operation, as of those that are not linear.
_NOT_TRANSPOSED = (RuntimeError, AssertionError, ValueError, TypeError)
# What the intermediate values of one microbatch may take, for each vector.
_MICROBATCH_BYTES = 32 * 2**20


@jax.tree_util.register_pytree_node_class
class NTKOperator:
    r"""The empirical NTK of ``apply`` between ``x1`` and ``x2`` as a linear operator, which is never formed.

    .. math:: K v = \frac1c \sum_o J_o (J_o'^\top v) \quad\text{("trace")}, \qquad
        (K v)_o = J_o (J_o'^\top v_o) \quad\text{("diagonal")}, \qquad K v = J (J'^\top v) \quad\text{("full")}

    J is the Jacobian at ``x1`` and J' that at ``x2``. The function is linearised at the parameters in microbatches; one
    product is one forward and one backward pass over all coordinates (but for "full" c of them), and needs the memory
    of one microbatch and of the parameters, for each vector. Without ``x2`` the operator is symmetric and positive
    semi-definite. It is frozen, and a pytree, so it passes through ``jit`` and ``vmap``.

    ``A @ v`` multiplies a vector, or k of them at once, and ``v @ A`` is the same of the transpose:

    =============== ============================= ============================
    outputs         v in ``A @ v``                v in ``v @ A``
    =============== ============================= ============================
    "trace"         (n2,) or (n2, k)              (n1,) or (k, n1)
    "diagonal"      (n2, c) or (n2, c, k)         (n1, c) or (k, n1, c)
    "full"          (n2 c,) or (n2 c, k)          (n1 c,) or (k, n1 c)
    =============== ============================= ============================

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``; examples must not mix.
        params: pytree of floating point or complex arrays.
        x1: coordinates (n1, d) of the rows.
        x2: coordinates (n2, d) of the columns; None is x1.
        outputs: "trace" for the kernel averaged over outputs; "diagonal" for one kernel an output, each acting on its
            own output of a vector; "full" for (n1 c, n2 c), where entry ``i * c + o`` of a vector belongs to output o
            at coordinate i.
        microbatch: coordinates linearised at a time, at most; None picks by memory.
        precision: of matrix products, as in :func:`ntk_inr.ntk`.

    Attributes:
        shape: (n1, n2), (n1, n2, c) for "diagonal", or (n1 c, n2 c) for "full".
        dtype: the parameters' dtype, at least float32.
        model: the checked function, parameters and coordinates.
        outputs: as given.
        microbatch: as given or picked.
        precision: as given.

    Raises:
        TypeError: integer coordinates or parameters; ``apply`` not callable.
        ValueError: as :func:`ntk_inr.ntk`; a vector of the wrong shape; a custom backward rule that is not linear in
            the cotangent (clipping a gradient to a norm, whether or not that binds, or adding weight decay to it),
            since ``J^T v`` is then no sum over rows.
        AttributeError: an attribute is set.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 16)[:, None]
        >>> apply, params = ni.init(ni.CoordinateMLP(features=32, depth=2), jax.random.key(0), x)
        >>> A, K = ni.NTKOperator(apply, params, x), ni.ntk(apply, params, x)
        >>> v = jnp.arange(16.0)
        >>> bool(jnp.allclose(A @ v, K @ v, rtol=1e-4)), bool(jnp.allclose(A.trace(), jnp.trace(K)))
        (True, True)
        >>> ni.NTKOperator(apply, params, x, x[:3]).T
        NTKOperator(shape=(3, 16), outputs='trace', dtype=float32)

        For matfree, hand it ``lambda v: A @ v``; for lineax,
        ``lineax.FunctionLinearOperator(lambda v: A @ v, v, tags=lineax.positive_semidefinite_tag)``.

    Source: Pearlmutter 1994, doi 10.1162/neco.1994.6.1.147; T9 of the theory.
    """

    model: Model
    outputs: str
    microbatch: int
    precision: str
    # So that NumPy leaves ``array @ A`` to this class.
    __array_ufunc__ = None

    def __init__(
        self,
        apply: Apply,
        params: Params,
        x1: Any,
        x2: Any = None,
        *,
        outputs: Outputs = "trace",
        microbatch: int | None = None,
        precision: Precision = "highest",
    ) -> None:
        _checks.check_options(microbatch=microbatch)
        model = Request.of(apply, params, x1, x2, outputs=outputs, precision=precision).model
        if not model.traced and mixing.has_custom_rule(mixing.traced(model.apply, model.params, model.x1)):
            check_linear(model)
        if microbatch is None:
            trace = trace_of(model, outputs)
            microbatch = max(1, _MICROBATCH_BYTES // max(1, trace.floats * model.dtype.itemsize))
        vars(self).update(model=model, outputs=outputs, microbatch=microbatch, precision=precision)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"NTKOperator is frozen, so that {name} can't be set; make another one.")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"NTKOperator is frozen, so that {name} can't be deleted; make another one.")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel, flat for "full"."""
        rows, columns = (math.prod(self._extent(n)) for n in (self.model.n1, self.model.n2))
        if self.outputs == "diagonal":
            return self.model.n1, self.model.n2, self.model.c
        return rows, columns

    @property
    def dtype(self) -> np.dtype:
        """The dtype of products."""
        return self.model.dtype

    @property
    def T(self) -> NTKOperator:
        """The transpose, which is the operator itself where it has one set of coordinates."""
        model = self.model
        return self if model.x2 is None else self._of(dataclasses.replace(model, x1=model.x2, x2=model.x1))

    def __matmul__(self, v: Any) -> Float[Array, "..."]:
        """Return ``K v`` for one vector, or several along the last axis."""
        if isinstance(v, NTKOperator):
            raise TypeError("operators multiply arrays, not each other; write A @ (A @ v).")
        v = self._vector(v)
        extent = self._extent(self.model.n2)
        if v.ndim - len(extent) not in (0, 1) or v.shape[: len(extent)] != extent:
            raise ValueError(
                f"the operator is {self.shape} and was multiplied with shape {tuple(v.shape)}; "
                f"expected {extent} or ({', '.join(map(str, extent))}, k)."
            )
        return _matmul(self, v.astype(self.dtype))

    def __rmatmul__(self, v: Any) -> Float[Array, "..."]:
        """Return ``v K`` for one vector, or several along the first axis."""
        v = self._vector(v)
        extent = self._extent(self.model.n1)
        if v.ndim - len(extent) not in (0, 1) or v.shape[v.ndim - len(extent) :] != extent:
            raise ValueError(
                f"the operator is {self.shape} and was multiplied from the left with shape {tuple(v.shape)}; "
                f"expected {extent} or (k, {', '.join(map(str, extent))})."
            )
        if v.ndim == len(extent):
            return self.T @ v
        return jnp.moveaxis(self.T @ jnp.moveaxis(v, 0, -1), -1, 0)

    def diagonal(self) -> Float[Array, "..."]:
        """Return the diagonal, exact, from the structured factors: one forward pass and c backward passes.

        Returns:
            (n,), (n c,) for "full", or for "diagonal" those of all outputs (n, c).

        Raises:
            ValueError: the operator is rectangular.
        """
        if self.model.x2 is not None:
            raise ValueError(
                f"the operator is {self.shape}, between x1 and x2, and has no diagonal; leave x2 out for the kernel of "
                "one set of coordinates."
            )
        each = _diagonal(self)
        return each.reshape(-1) if self.outputs == "full" else each

    def trace(self) -> Float[Array, "..."]:
        """Return the sum of the diagonal, for "diagonal" that of each output (c,)."""
        return self.diagonal().sum(0)

    def __repr__(self) -> str:
        return f"NTKOperator(shape={self.shape}, outputs={self.outputs!r}, dtype={self.dtype})"

    def tree_flatten(self) -> tuple[Any, Any]:
        """Return the model and the settings, for JAX."""
        return (self.model,), (self.outputs, self.microbatch, self.precision)

    @classmethod
    def tree_unflatten(cls, settings: Any, children: Any) -> NTKOperator:
        """Return the operator again, for JAX."""
        operator = object.__new__(cls)
        vars(operator).update(zip(("model", "outputs", "microbatch", "precision"), (*children, *settings), strict=True))
        return operator

    def _of(self, model: Model) -> NTKOperator:
        return self.tree_unflatten(self.tree_flatten()[1], (model,))

    def _extent(self, n: int) -> tuple[int, ...]:
        """Return the shape of a vector over n coordinates."""
        c = self.model.c
        return {"trace": (n,), "diagonal": (n, c), "full": (n * c,)}[self.outputs]

    def _vector(self, v: Any) -> Array:
        v = jnp.asarray(v) if hasattr(v, "dtype") else jnp.asarray(v, self.dtype)
        if jnp.issubdtype(v.dtype, jnp.complexfloating):
            raise TypeError(f"the operator is real and was multiplied with {v.dtype}; multiply v.real and v.imag.")
        return v


def _in_batches(array: Array, most: int, mode: str) -> Array:
    """Return rows in batches (batches, rows, ...) of ``most`` rows at most, evenly, the last one filled up."""
    n = len(array)
    batches = -(-n // most)
    rows = -(-n // batches)
    array = jnp.pad(array, [(0, batches * rows - n)] + [(0, 0)] * (array.ndim - 1), mode=mode)
    return array.reshape(batches, rows, *array.shape[1:])


def _coordinates(x: Array, most: int) -> Array:
    """Return coordinates in batches, filled up with one that ``apply`` is known to take."""
    return _in_batches(x, most, "edge")


def check_linear(model: Model) -> None:
    """Refuse a function whose backward pass, by a rule of the user's own, is not linear in the cotangent.

    It must be at some coordinates, and in the trace too: a clip that does not bind there may bind elsewhere.
    """
    looked_at = model.apply, model.params, model.x1[:_LOOKED_AT]
    with jax.debug_nans(False):
        errors = np.asarray(_nonlinearity(*looked_at), np.float64)
    if not (errors <= eps(jnp.result_type(*jax.tree.leaves(model.params))) ** 0.5).all():
        raise _not_linear()
    jax.eval_shape(lambda apply, params, x: _by_transpose(lambda p: apply(p, x), params, params), *looked_at)


def _not_linear(how: str = "") -> ValueError:
    return ValueError(
        f"the backward rule of a custom_vjp in apply is not linear in the cotangent{how}, so J (J^T v) is no product "
        "with a kernel. Use ni.ntk, which takes each output's gradient as the rule gives it, or leave the rule out."
    )


def _by_transpose(function: Callable[[Any], Array], params: Params, direction: Params) -> Array:
    """Return J times a direction where JAX refuses forward mode: the transpose of the pullback is the same map."""
    out, pullback = jax.vjp(function, params)
    try:
        return jax.linear_transpose(pullback, out)((direction,))[0]
    except _NOT_TRANSPOSED as error:
        raise _not_linear(" in a way that JAX can transpose") from error


@jax.jit
def _nonlinearity(apply: Partial, params: Params, x: Array) -> Array:
    """Return how far the backward pass is from proportional to its cotangent, and from zero at zero."""
    out, pullback = jax.vjp(lambda p: apply(p, x), params)

    def pull(scale: float) -> Array:
        gradient = jax.tree.leaves(pullback(scale * mixing.cotangent_of(out)))
        return jnp.concatenate([leaf.ravel().astype(jnp.float32) for leaf in gradient])

    plain = pull(1.0)
    moved = [pull(0.0), *(pull(scale) / scale - plain for scale in (64.0, 1 / 64))]
    size = jnp.abs(plain).max()
    return jnp.stack([jnp.abs(part).max() for part in moved]) / jnp.where(size > 0, size, 1)


@jax.jit
def _matmul(operator: NTKOperator, v: Array) -> Array:
    return _multiplied(operator, v, precision=operator.precision)


@at_precision
def _multiplied(operator: NTKOperator, v: Array, *, precision: str) -> Array:
    model, outputs = operator.model, operator.outputs
    n1, n2, c = model.n1, model.n2, model.c
    # (k, n2, o): for "trace" each vector is a cotangent of one output at a time.
    vectors = jnp.moveaxis(v.reshape(n2, 1 if outputs == "trace" else c, -1), 2, 0)
    trace = mixing.traced(model.apply, model.params, model.x1)
    backward_only = mixing.has_custom_rule(trace)
    # JAX does not batch writes to references along every axis.
    in_turn = has_references(trace.jaxpr)
    in_units = jnp.dtype("float16") in mixing.dtypes(trace)

    def each(function: Callable[[Array], Array], arrays: Array) -> Array:
        return lax.map(function, arrays) if in_turn else jax.vmap(function)(arrays)

    def product(cotangent: Array) -> Array:
        if in_units:
            return _product_in_units(operator, cotangent, backward_only)
        return _product(operator, cotangent, backward_only=backward_only)

    def of_output(o: Array, column: Array) -> Array:
        """Return (k, n1), the products of an output's own kernel with each vector's column."""
        only = jnp.arange(c)[None] == o
        return each(lambda w: product(jnp.where(only, w[:, None], 0))[:, o], vectors[:, :, column])

    if outputs == "full":
        result = each(product, vectors)
    elif outputs == "diagonal":
        result = jnp.moveaxis(lax.map(lambda o: of_output(o, o), jnp.arange(c)), 0, 2)
    else:
        zeros = jnp.zeros((len(vectors), n1), v.dtype)
        result = lax.scan(lambda sum_, o: (sum_ + of_output(o, jnp.array(0)), None), zeros, jnp.arange(c))[0] / c
    extent = operator._extent(n1)
    return jnp.moveaxis(result, 0, -1).reshape(*extent, *v.shape[len(extent) :])


def _product(operator: NTKOperator, cotangent: Array, *, backward_only: bool) -> Array:
    """Return J J'^T of one cotangent (n2, c)."""
    return _pushed(operator, _pulled(operator, cotangent), backward_only=backward_only)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _product_in_units(operator: NTKOperator, cotangent: Array, backward_only: bool) -> Array:
    """Return the same where the function's numbers have the range of float16, whatever the size of the cotangent."""
    unit = _unit(cotangent, min(operator.microbatch, len(cotangent)))
    gradient = _pulled(operator, cotangent / unit)
    own = _unit(gradient, sum(leaf.size for leaf in jax.tree.leaves(gradient)))
    gradient = jax.tree.map(lambda leaf: leaf / own.astype(leaf.dtype), gradient)
    return _pushed(operator, gradient, backward_only=backward_only) * own * unit


@_product_in_units.defjvp
def _product_in_units_jvp(backward_only: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # Linear in the cotangent's tangent, so that reverse mode goes through: units are no linear functions of it.
    (operator, cotangent), (change, along) = primals, tangents
    product = functools.partial(_product, backward_only=backward_only)
    unit = _unit(cotangent, min(operator.microbatch, len(cotangent)))
    of_operator = jax.jvp(lambda operator: product(operator, cotangent / unit), (operator,), (change,))[1] * unit
    return _product_in_units(*primals, backward_only), of_operator + product(operator, along)


def _unit(arrays: Any, count: int) -> Array:
    """Return a power of two near the norm of ``count`` numbers as large as the largest in the arrays."""
    sizes = [jnp.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(arrays)]
    dtype = accumulation_dtype(*sizes)
    return unit_of(jnp.stack([size.astype(dtype) for size in sizes])) * 2.0 ** round(math.log2(count) / 2)


def _widened(model: Model) -> tuple[Callable[..., Array], Params]:
    """Return the function (params, x) and its parameters with gradients at least in float32, which sums need."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), model.params)

    def function(params: Params, x_b: Array) -> Array:
        narrow = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, model.params)
        return model.apply(narrow, x_b)

    return function, params


def _pulled(operator: NTKOperator, cotangent: Array) -> Params:
    """Return J'^T of one cotangent (n2, c)."""
    model, most = operator.model, operator.microbatch
    function, params = _widened(model)

    def pull(total: Any, batch: tuple[Array, Array]) -> tuple[Any, None]:
        x_b, cotangent_b = batch
        out, pullback = jax.vjp(functools.partial(function, x_b=x_b), params)
        return jax.tree.map(jnp.add, total, pullback(cotangent_b.astype(out.dtype))[0]), None

    batches = _coordinates(model.columns, most), _in_batches(cotangent, most, "constant")
    return lax.scan(pull, jax.tree.map(jnp.zeros_like, params), batches)[0]


def _pushed(operator: NTKOperator, gradient: Params, *, backward_only: bool) -> Array:
    """Return J of one direction in the parameters."""
    model = operator.model
    function, params = _widened(model)

    def push(x_b: Array) -> Array:
        batch = functools.partial(function, x_b=x_b)
        if backward_only:
            return _by_transpose(batch, params, gradient).astype(operator.dtype)
        return jax.jvp(batch, (params,), (gradient,))[1].astype(operator.dtype)

    return lax.map(push, _coordinates(model.x1, operator.microbatch)).reshape(-1, model.c)[: model.n1]


@jax.jit
def _diagonal(operator: NTKOperator) -> Array:
    model, outputs = operator.model, "trace" if operator.outputs == "trace" else "diagonal"

    @at_precision
    def batch(x_b: Array, *, precision: str) -> Array:
        rows = structured.factors(model.apply, model.params, x_b, model.c, outputs, differentiable=True)
        return grams.diagonal(rows, outputs)

    batches = _coordinates(model.x1, operator.microbatch)
    each = lax.map(lambda x_b: batch(x_b, precision=operator.precision), batches)
    return each.reshape(-1, *each.shape[2:])[: model.n1]
