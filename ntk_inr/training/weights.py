"""Weights of the terms of a loss, by the kernel between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ntk_inr import _checks
from ntk_inr.kernels.blocks import NTKBlocks, ntk_blocks

RULES = ("equal_pace", "trace", "gradient_norm")


def balance(
    residuals: Any,
    params: Any = None,
    *,
    rule: str = "equal_pace",
    before: Mapping[str, Any] | None = None,
    keep: float = 0.9,
) -> dict[str, Array]:
    r"""Return the weights w_b of the loss :math:`\sum_b\frac{w_b}{2n_b}\lVert r_b\rVert^2`, whose mean is 1.

    - "equal_pace": :math:`w_b\propto n_b^2/\mathrm{tr}\,\Theta_{bb}`, with which every term begins at the same pace.
    - "trace": :math:`w_b\propto 1/\mathrm{tr}\,\Theta_{bb}`, (12.8) as it was published, which equals paces only
      where all terms have as many points.
    - "gradient_norm": :math:`w_b\propto 1/\lVert\nabla L_b\rVert` of the terms
      :math:`L_b=\frac1{2n_b}\lVert r_b\rVert^2`.

    Weights of a training go stale as it goes; call it again every so many steps with the last weights as ``before``,
    of which a share ``keep`` is left.

    Args:
        residuals: ``{name: (function, points)}`` as :func:`ntk_blocks` takes them, or what it returned.
        params: parameters; not needed with blocks.
        rule: see above.
        before: the weights so far.
        keep: their share in the new ones, from 0 to below 1.

    Returns:
        ``{name: weight}``.

    Raises:
        ValueError: an unknown rule, a share out of range, blocks for "gradient_norm", or ``before`` of other terms.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> def value(params, x):
        ...     return params["a"] * x
        >>> def slope(params, x):
        ...     return 3 * params["a"] + 0 * x
        >>> one = jnp.array([[1.0]])
        >>> weights = ni.balance({"value": (value, one), "slope": (slope, one)}, {"a": jnp.array(2.0)})
        >>> {name: round(float(weight), 3) for name, weight in weights.items()}
        {'value': 1.8, 'slope': 0.2}

    Source:
        Wang, Yu & Perdikaris 2022, arXiv 2007.14527; Wang et al. 2023 (arXiv 2308.08468), gradient norms.
    """
    _checks.check_choice(rule, RULES, "rule")
    if not 0 <= keep < 1:
        raise ValueError(f"keep={keep!r}; expected the share of the weights so far, from 0 to below 1.")
    if rule == "gradient_norm":
        if isinstance(residuals, NTKBlocks):
            raise ValueError('rule="gradient_norm" got blocks of a kernel; expected residuals and params.')
        paces = {name: _gradient_norm(function, params, x) for name, (function, x) in residuals.items()}
    else:
        # One block at a time: what lies between the terms has no part in their paces.
        if isinstance(residuals, NTKBlocks):
            sizes, traces = residuals.sizes, residuals.traces
        else:
            each = {name: ntk_blocks({name: term}, params) for name, term in residuals.items()}
            sizes = {name: blocks.sizes[name] for name, blocks in each.items()}
            traces = {name: blocks.traces[name] for name, blocks in each.items()}
        paces = {name: trace / sizes[name] ** (2 if rule == "equal_pace" else 0) for name, trace in traces.items()}
    weights = {name: 1 / pace for name, pace in paces.items()}
    mean = sum(weights.values()) / len(weights)
    weights = {name: weight / mean for name, weight in weights.items()}
    if before is None:
        return weights
    if set(before) != set(weights):
        raise ValueError(f"before has weights of {sorted(before)}, but the terms are {sorted(weights)}.")
    return {name: keep * before[name] + (1 - keep) * weight for name, weight in weights.items()}


def _gradient_norm(function: Any, params: Any, x: Any) -> Array:
    return optax.tree.norm(jax.grad(lambda params: jnp.square(function(params, jnp.asarray(x))).mean() / 2)(params))
