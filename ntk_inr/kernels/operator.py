"""The kernel as a linear operator that is never formed: ``K v = J (J^T v)``, a few examples at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr._checks import Precision
from ntk_inr._dtypes import eps
from ntk_inr.kernels import mixing, structured
from ntk_inr.kernels.model import Model, check_model, trace_of

# Coordinates at which a custom backward rule is asked whether it is linear.
_LOOKED_AT = 3
# What the intermediate values of one microbatch may take, for each vector.
_MICROBATCH_BYTES = 32 * 2**20


@jax.tree_util.register_pytree_node_class
class NTKOperator:
    r"""The empirical NTK of ``apply`` at ``x`` as a symmetric positive semi-definite operator.

    .. math:: K v = \frac1c \sum_o J_o (J_o^\top v) \quad\text{("trace")}, \qquad K v = J (J^\top v)
        \quad\text{("full", } v \in \mathbb{R}^{nc}\text{)}

    The function is linearised at the parameters in microbatches; one product is one forward and one backward
    pass over all coordinates (for "trace" c of them), and needs the memory of one microbatch and of the
    parameters, for each vector. K is never formed. The operator is a pytree, so it passes through ``jit``.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``; examples must not mix.
        params: pytree of floating point arrays.
        x: coordinates (n, d).
        outputs: "trace" for the (n, n) kernel averaged over outputs, or "full" for (n c, n c), where entry
            ``i * c + o`` of a vector belongs to output o at coordinate i.
        microbatch: coordinates linearised at a time; None picks by memory.
        precision: of matrix products, as in :func:`ntk_inr.ntk`.

    Attributes:
        shape: (n, n), or (n c, n c) for "full".
        dtype: the parameters' dtype, at least float32.

    Raises:
        TypeError: integer coordinates or parameters; ``apply`` not callable.
        ValueError: as :func:`ntk_inr.ntk`; a vector of the wrong length; a custom backward rule that is not linear in
            the cotangent (clipping a gradient to a norm, adding weight decay to it), since ``J^T v`` is then no sum
            over rows.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 16)[:, None]
        >>> apply, params = ni.init(ni.CoordinateMLP(features=32, depth=2), jax.random.key(0), x)
        >>> A, K = ni.NTKOperator(apply, params, x), ni.ntk(apply, params, x)
        >>> v = jnp.arange(16.0)
        >>> bool(jnp.allclose(A @ v, K @ v, rtol=1e-4)), bool(jnp.allclose(A.trace(), jnp.trace(K)))
        (True, True)

        For matfree, hand it ``lambda v: A @ v``; for lineax,
        ``lineax.FunctionLinearOperator(lambda v: A @ v, v, tags=lineax.positive_semidefinite_tag)``.

    Source: Pearlmutter 1994, doi 10.1162/neco.1994.6.1.147; T9 of the theory.
    """

    def __init__(
        self,
        apply: Any,
        params: Any,
        x: Any,
        *,
        outputs: Literal["trace", "full"] = "trace",
        microbatch: int | None = None,
        precision: Precision = "highest",
    ) -> None:
        _checks.check_choice(outputs, ("trace", "full"), "outputs")
        _checks.check_options(microbatch=microbatch, precision=precision)
        model = check_model(apply, params, x)
        self.apply, self.x, self.c, self.dtype = model.apply, model.x1, model.c, model.dtype
        self.params = model.params
        self.outputs = outputs
        self.precision = precision
        n = len(self.x)
        if not model.traced and mixing.has_custom_rule(mixing.traced(model.apply, model.params, model.x1)):
            _check_linear(model)
        if microbatch is None:
            trace = trace_of(model, outputs)
            microbatch = max(1, _MICROBATCH_BYTES // max(1, trace.floats * self.dtype.itemsize))
        batches = -(-n // microbatch)
        # Evenly, so that little is filled up.
        self.microbatch = -(-n // batches)

    @property
    def shape(self) -> tuple[int, int]:
        """The operator's (rows, columns)."""
        size = len(self.x) * (self.c if self.outputs == "full" else 1)
        return size, size

    @property
    def T(self) -> NTKOperator:
        """The transpose, which is the operator itself."""
        return self

    def __matmul__(self, v: Any) -> Float[Array, "..."]:
        """Return ``K v`` for v (rows,) or, several vectors at once, (rows, k)."""
        if isinstance(v, NTKOperator):
            raise TypeError("operators multiply arrays, not each other; write A @ (A @ v).")
        v = jnp.asarray(v, self.dtype) if not hasattr(v, "dtype") else v
        if jnp.issubdtype(v.dtype, jnp.complexfloating):
            raise TypeError(f"the operator is real and was multiplied with {v.dtype}; multiply v.real and v.imag.")
        if v.ndim not in (1, 2) or v.shape[0] != self.shape[0]:
            raise ValueError(
                f"the operator is {self.shape} and was multiplied with shape {tuple(v.shape)}; "
                f"expected ({self.shape[0]},) or ({self.shape[0]}, k)."
            )
        return _matmul(self, v.astype(self.dtype))

    def diagonal(self) -> Float[Array, " n"]:
        """Return the diagonal, exact, from the structured factors: one forward pass and c backward passes."""
        each = _diagonal(self)
        return each.reshape(-1) if self.outputs == "full" else each

    def trace(self) -> Float[Array, ""]:
        """Return the sum of the diagonal."""
        return self.diagonal().sum()

    def __repr__(self) -> str:
        return f"NTKOperator(shape={self.shape}, outputs={self.outputs!r}, dtype={self.dtype})"

    def tree_flatten(self) -> tuple[Any, Any]:
        """Return the arrays and the settings, for JAX."""
        static = {k: getattr(self, k) for k in ("c", "outputs", "precision", "dtype", "microbatch")}
        return (self.apply, self.params, self.x), tuple(static.items())

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> NTKOperator:
        """Return the operator again, for JAX."""
        operator = object.__new__(cls)
        operator.apply, operator.params, operator.x = children
        for name, value in static:
            setattr(operator, name, value)
        return operator

    def _batched(self, array: Array, mode: str) -> Array:
        """Return rows in microbatches (batches, microbatch, ...), the last one filled up."""
        batches = -(-len(array) // self.microbatch)
        rest = batches * self.microbatch - len(array)
        array = jnp.pad(array, [(0, rest)] + [(0, 0)] * (array.ndim - 1), mode=mode)
        return array.reshape(batches, self.microbatch, *array.shape[1:])

    def coordinates(self) -> Array:
        """Return the coordinates in microbatches, filled up with one that ``apply`` is known to take."""
        return self._batched(self.x, "edge")

    def cotangents(self, array: Array) -> Array:
        """Return the rows of ``array`` in microbatches, filled up with zeros."""
        return self._batched(array, "constant")


def _check_linear(model: Model) -> None:
    """Refuse a function whose backward pass, by a rule of the user's own, is not linear in the cotangent."""
    with jax.debug_nans(False):
        errors = np.asarray(_nonlinearity(model.apply, model.params, model.x1[:_LOOKED_AT]), np.float64)
    if not (errors <= eps(jnp.result_type(*jax.tree.leaves(model.params))) ** 0.5).all():
        raise ValueError(
            "the backward rule of a custom_vjp in apply is not linear in the cotangent, so J (J^T v) is no product "
            "with a kernel. Use ni.ntk, which takes each output's gradient as the rule gives it, or leave the rule out."
        )


@jax.jit
def _nonlinearity(apply: Partial, params: Any, x: Array) -> Array:
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
    n, c = len(operator.x), operator.c
    # (vectors, n, o): for "trace" each vector is a cotangent of one output at a time.
    vectors = jnp.moveaxis(v.reshape(n, c if operator.outputs == "full" else 1, -1), 2, 0)
    trace = mixing.traced(operator.apply, operator.params, operator.x)
    # JAX does not batch writes to references along every axis.
    in_turn = mixing.has_references(trace)

    def each(function: Callable[[Array], Array], arrays: Array) -> Array:
        return lax.map(function, arrays) if in_turn else jax.vmap(function)(arrays)

    def product(cotangent: Array) -> Array:
        return _product(operator, cotangent, backward_only=mixing.has_custom_rule(trace))

    def one_output(total: Array, o: Array) -> tuple[Array, None]:
        def single(w: Array) -> Array:
            return product(jnp.where(jnp.arange(c)[None] == o, w[:, None], 0))[:, o]

        return total + each(single, vectors[:, :, 0]), None

    with jax.default_matmul_precision(operator.precision):
        if operator.outputs == "full":
            result = each(product, vectors)
        else:
            result = lax.scan(one_output, jnp.zeros((len(vectors), n), v.dtype), jnp.arange(c))[0] / c
    return jnp.moveaxis(result, 0, -1).reshape(v.shape)


def _product(operator: NTKOperator, cotangent: Array, *, backward_only: bool) -> Array:
    """Return J J^T of one cotangent (n, c)."""
    x = operator.coordinates()
    # Gradients are summed in the operator's dtype, which is wider than that of parameters in half precision.
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), operator.params)

    def function(params: Any, x_b: Array) -> Array:
        narrow = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, operator.params)
        return operator.apply(narrow, x_b)

    def pull(total: Any, batch: tuple[Array, Array]) -> tuple[Any, None]:
        x_b, cotangent_b = batch
        out, pullback = jax.vjp(lambda p: function(p, x_b), params)
        return jax.tree.map(jnp.add, total, pullback(cotangent_b.astype(out.dtype))[0]), None

    gradient, _ = lax.scan(pull, jax.tree.map(jnp.zeros_like, params), (x, operator.cotangents(cotangent)))

    def push(x_b: Array) -> Array:
        if not backward_only:
            return jax.jvp(lambda p: function(p, x_b), (params,), (gradient,))[1].astype(operator.dtype)
        # Forward mode is refused; the transpose of the pullback is the same map.
        out, pullback = jax.vjp(lambda p: function(p, x_b), params)
        return jax.linear_transpose(pullback, out)((gradient,))[0].astype(operator.dtype)

    return lax.map(push, x).reshape(-1, operator.c)[: len(operator.x)]


@jax.jit
def _diagonal(operator: NTKOperator) -> Array:
    outputs = "diagonal" if operator.outputs == "full" else "trace"

    def batch(x_b: Array) -> Array:
        rows = structured.factors(operator.apply, operator.params, x_b, operator.c, outputs, differentiable=True)
        return structured.diagonal(rows, outputs)

    with jax.default_matmul_precision(operator.precision):
        each = lax.map(batch, operator.coordinates())
    return each.reshape(-1, *each.shape[2:])[: len(operator.x)]
