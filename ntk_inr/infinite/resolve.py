"""From an activation, and a TopK behind it, to its dual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr.infinite.duals import Dual, Erf, Rectifier, Sine, Wavelet
from ntk_inr.infinite.gating import HardGate, SoftGate
from ntk_inr.infinite.quadrature import Quadrature
from ntk_inr.networks import activations
from ntk_inr.networks.sparsity import TopK


def dual_of(
    activation: str | Callable[[Array], Array], sparsity: TopK | None = None, *, units: int = 0, order: int = 64
) -> Dual:
    """Return the dual of an activation: a closed form, or quadrature for any other elementwise callable.

    Args:
        activation: a name, one of our activations, or a callable. What is linear on each side of 0, such as
            ``jax.nn.leaky_relu``, is recognised by its values.
        sparsity: a TopK of the activations, or None.
        units: how many units ``sparsity`` picks its k from.
        order: nodes of Gauss-Hermite, for callables and for "soft" TopK; see
            :class:`ntk_inr.infinite.quadrature.Quadrature`.

    Raises:
        ValueError: the callable mixes entries or does not keep its argument's shape and kind; a hard TopK of
            what is not a rectifier; more units to keep than there are.

    Example:
        >>> import jax.numpy as jnp
        >>> dual_of("relu")
        Rectifier(p=1.0, r=0.0)
        >>> type(dual_of(jnp.tanh)).__name__
        'Quadrature'
    """
    activation = activations.resolve(activation)
    dual = _plain(activation, order)
    if sparsity is None:
        return dual
    k, temperature = sparsity.settled()
    q = k / units
    if q > 1:
        raise ValueError(f"sparsity keeps k={k} of {units} units; choose k up to {units}.")
    if temperature is not None:
        if q == 1:
            raise ValueError(f"sparsity keeps all {units} units; a soft gate then has no finite threshold.")
        return SoftGate(activation, q, temperature, sparsity.soft, order)
    if q == 1:
        return dual
    if isinstance(dual, Rectifier) and dual.p > 0 and dual.r <= 0:
        if q < 0.5:
            return HardGate(q, dual.p)
        if dual.r == 0:
            return dual  # half of the units are 0 already
    raise ValueError(
        f"sparsity={sparsity!r} is a hard gate on {q:.3g} of {activation!r}; its limit is known here for ReLU and for "
        'increasing rectifiers with k under half of the units. Use activation="relu", or mode="soft".'
    )


def _plain(activation: Any, order: int) -> Dual:
    match activation:
        case activations.ReLU():
            return Rectifier()
        case activations.Sine():
            return Sine(activation.omega, activation.phase)
        case activations.Gauss():
            return Wavelet(1 / (2**0.5 * activation.width), 0.0, 0.0)
        case activations.Gabor():
            return Wavelet(activation.scale, activation.omega, activation.phase)
        case activations.Erf():
            return Erf(activation.slope)
    with jax.ensure_compile_time_eval():
        _check_elementwise(activation)
        sides = _linear_sides(activation)
    return Quadrature(activation, order) if sides is None else Rectifier(*sides)


def _check_elementwise(activation: Callable[[Array], Array]) -> None:
    """Raise if an entry of the result depends on other entries of the argument, or on its place."""
    u = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    moved = u.copy()
    moved[1, 2] += 1.5
    values, changed, rolled = (jnp.asarray(activation(jnp.asarray(a))) for a in (u, moved, np.roll(u, (1, 2), (0, 1))))
    name = getattr(getattr(activation, "function", activation), "__name__", repr(activation))
    if values.shape != u.shape or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(
            f"activation {name} gives {values.dtype} of shape {values.shape} for float32 of shape {u.shape}; a kernel "
            "needs a real elementwise function."
        )
    first, second, turned = (np.asarray(a) for a in (values, changed, rolled))
    others = np.ones_like(u, bool)
    others[1, 2] = False
    if not (
        np.allclose(first[others], second[others], rtol=1e-5, atol=1e-6)
        and np.allclose(np.roll(first, (1, 2), (0, 1)), turned, rtol=1e-5, atol=1e-6)
    ):
        raise ValueError(
            f"activation {name} is not elementwise: an entry of its result depends on other entries of its argument, "
            "or on its place. Its infinite-width kernel is not a function of two pre-activations; take "
            "ni.ntk of a wide network instead."
        )


def _linear_sides(activation: Callable[[Array], Array]) -> tuple[float, float] | None:
    """Return the values at 1 and -1 of a function that is linear on each side of 0, None for any other."""
    size = np.array([1e-3, 0.25, 1.0, 3.0, 50.0])
    up, down = (np.asarray(activation(jnp.asarray(sign * size))) / size for sign in (1, -1))
    if np.allclose(up, up[2], rtol=1e-6, atol=1e-7) and np.allclose(down, down[2], rtol=1e-6, atol=1e-7):
        return float(up[2]), float(down[2])
    return None
