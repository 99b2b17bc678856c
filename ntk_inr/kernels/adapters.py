"""From a framework's module to the pure function and pytree that the kernel engine takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ntk_inr import _checks


@dataclasses.dataclass(frozen=True)
class _LinenApply:
    """A Linen module as a function; equal for equal modules, so that jit compiles once for all seeds."""

    module: nn.Module

    def __call__(self, constants: dict[str, Any], params: Any, x: Any) -> Any:
        return self.module.apply({**constants, "params": params}, jnp.asarray(x))


def split(model: tuple[nn.Module, Any]) -> tuple[Partial, Any]:
    """Split ``(linen_module, variables)`` into ``(apply, params)``.

    Collections other than "params" (fixed matrices, batch statistics) become constants of
    ``apply``. They are leaves of it, so ``apply`` may pass through ``jit`` and ``vmap`` as an
    argument.

    Args:
        model: the pair of a Linen module and the variables of its ``init``.

    Returns:
        ``apply(params, x): (n, d) -> (n, c)`` and the pytree of parameters.

    Raises:
        TypeError: not such a pair.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn, ntk_inr as ni
        >>> net, x = nn.Dense(1), jnp.zeros((3, 2))
        >>> apply, params = ni.split((net, net.init(jax.random.key(0), x)))
        >>> apply(params, x).shape
        (3, 1)
    """
    if not (isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], nn.Module)):
        raise TypeError(
            f"split got {type(model).__name__}; expected a pair (linen_module, variables), "
            "with variables from linen_module.init(key, x)."
        )
    module, variables = model
    if "params" not in variables:
        raise ValueError(f"variables has collections {sorted(variables)} but no 'params'; nothing would be trained.")
    constants = {name: value for name, value in variables.items() if name != "params"}
    return Partial(_LinenApply(module), constants), variables["params"]


def init(net: nn.Module, key: Array, x: Any) -> tuple[Partial, Any]:
    """Initialise a Linen module and split it into ``(apply, params)``.

    Works under ``vmap`` over keys: the results are then stacked pytrees, ``apply`` too.

    Args:
        net: a Linen module from (n, d) to (n, c).
        key: a JAX random key.
        x: coordinates (n, d); only their width and dtype matter.

    Returns:
        ``apply(params, x): (n, d) -> (n, c)`` and the pytree of parameters.

    Raises:
        TypeError: ``net`` is not a Linen module, or ``x`` holds integers.
        ValueError: ``x`` is not (n, d), is empty, or holds NaN.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> apply, params = ni.init(ni.variant("siren", features=32, depth=2), jax.random.key(0), jnp.zeros((1, 2)))
        >>> apply(params, jnp.zeros((7, 2))).shape
        (7, 1)
    """
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"net is {type(net).__name__}; expected a Flax Linen module such as ni.variant('pe') or "
            "ni.CoordinateMLP(...)."
        )
    x = _checks.as_coordinates(x)
    return split((net, net.init(key, x[:1])))
