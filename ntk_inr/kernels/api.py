"""The public function ``ntk``: checks, choice of method and block."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.kernels import jacobian, structured

OUTPUTS = ("trace", "diagonal", "full")
METHODS = ("auto", "structured", "jacobian")
_PANEL_BYTES = 64 * 2**20
_JACOBIAN_BYTES = 512 * 2**20


def ntk(
    apply: Any,
    params: Any,
    x1: Any,
    x2: Any = None,
    *,
    outputs: Literal["trace", "diagonal", "full"] = "trace",
    method: Literal["auto", "structured", "jacobian"] = "auto",
    block: int | None = None,
) -> Float[Array, "..."]:
    r"""Return the empirical neural tangent kernel of ``apply`` at ``params``.

    .. math:: \Theta_{(i,o),(j,o')} = \sum_p \partial_p f_o(x_i)\, \partial_p f_{o'}(x'_j)

    Methods:
        "structured" (the choice of "auto") traces ``apply`` on one example, takes the two factors of
        each matrix product that a parameter enters (T8.1), and multiplies their Gram matrices entry by entry:
        about 2 n1 n2 (sum of widths) flops and n (sum of widths) floats beside K. Parameters that enter
        in another way keep their own Jacobian, so it is exact for any function.
        "jacobian" contracts whole Jacobians, 2 n1 n2 c P flops and two panels of block c P floats: the
        reference.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``; examples must not mix.
        params: pytree of floating point arrays; K is computed in their dtype.
        x1: coordinates (n1, d).
        x2: coordinates (n2, d); None is x1, and K is then symmetric to the bit.
        outputs: "trace" averages the diagonal over outputs, giving (n1, n2); "diagonal" gives
            (n1, n2, c); "full" gives (n1, n2, c, c).
        method: see above.
        block: rows computed at a time; None picks by memory. It changes memory and time, not K.

    Returns:
        The kernel, on the default device.

    Raises:
        TypeError: integer coordinates or parameters; ``apply`` not callable.
        ValueError: wrong shapes, NaN in coordinates or parameters (names the leaf), unknown option.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 16)[:, None]
        >>> apply, params = ni.init(ni.CoordinateMLP(features=32, depth=2), jax.random.key(0), x)
        >>> K = ni.ntk(apply, params, x)
        >>> K.shape, bool(jnp.allclose(K, ni.ntk(apply, params, x, method="jacobian"), rtol=1e-4))
        ((16, 16), True)

    Source: Jacot et al. 2018, arXiv 1806.07572; the decomposition is T8 of the theory, after Novak et
    al. 2022, arXiv 2206.08720.
    """
    _checks.check_choice(outputs, OUTPUTS, "outputs")
    _checks.check_choice(method, METHODS, "method")
    apply = _checks.as_partial(apply)
    dtype = check_params(params)
    x1 = _checks.as_coordinates(x1, "x1").astype(dtype)
    if x2 is not None:
        x2 = _checks.as_coordinates(x2, "x2").astype(dtype)
        if x2.shape[1] != x1.shape[1]:
            raise ValueError(
                f"x2 has {x2.shape[1]} coordinates a row but x1 has {x1.shape[1]}; both come from one domain."
            )
    c = check_apply(apply, params, x1)
    if block is not None:
        _checks.check_positive(block, "block", integer=True)
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    entries = {"trace": 1, "diagonal": c, "full": c * c}[outputs]
    if method == "jacobian":
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        rows = block or max(1, _JACOBIAN_BYTES // (c * size * dtype.itemsize))
        return jacobian.ntk(apply, params, x1, x2, outputs, min(rows, max(n1, n2)))
    rows = block or max(1, _PANEL_BYTES // (n2 * entries * dtype.itemsize))
    return structured.ntk(apply, params, x1, x2, outputs, min(rows, n1))


@jax.jit
def _call(apply: Partial, params: Any, x: Array) -> Any:
    # Its shape is all that is asked for; jit remembers the trace, jax.eval_shape would trace each time.
    return apply(params, x)


def check_params(params: Any) -> jnp.dtype:
    """Return the dtype of a pytree of parameters, or say which leaf can't be one."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params holds no arrays; pass the parameters, the second result of ni.init(net, key, x).")
    for path, leaf in leaves:
        kind = jnp.result_type(leaf)
        if not jnp.issubdtype(kind, jnp.floating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} has dtype {kind}; every parameter must be floating point. "
                "Close over arrays that are not trained instead."
            )
    _checks.check_finite_tree(params, "params")
    return jnp.dtype(jnp.result_type(*[leaf for _, leaf in leaves]))


def check_apply(apply: Partial, params: Any, x: Array) -> int:
    """Return the number of outputs c of ``apply(params, x): (n, d) -> (n, c)``, or say what it gave."""
    out = _call.eval_shape(apply, params, x)
    shape = getattr(out, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != len(x):
        got = f"shape {shape}" if shape is not None else type(out).__name__
        raise ValueError(
            f"apply(params, x) gave {got} for x of shape {x.shape}; expected ({len(x)}, c). "
            "A function of one example can be batched with jax.vmap(f, in_axes=(None, 0))."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"apply(params, x) gave dtype {out.dtype}; expected a real floating point output.")
    return shape[1]
