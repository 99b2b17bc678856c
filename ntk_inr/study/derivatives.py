"""Whether a network has the derivatives that a task is about."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr.kernels.adapters import init
from ntk_inr.networks.modulated_sines import Finer
from ntk_inr.networks.settings import parts_of
from ntk_inr.networks.sparsity import TopK
from ntk_inr.tasks.derivatives import value_and_laplacian
from ntk_inr.tasks.interface import IndirectTask, Task, first_row

_PLACES = 64


def check_derivatives(task: Task, networks: Mapping[str, nn.Module]) -> list[str]:
    """Raise where a task is about derivatives that a network holds back a part of; warn where second ones are zero.

    Returns:
        The warnings, a sentence each.
    """
    if isinstance(task, IndirectTask) and task.differentiates:
        for net in networks.values():
            _refuse_partial_derivatives(task, net)
    twice, dimensions = differentiates_twice(task), first_row(task)[0].shape[1]
    sentences = [
        f"The Laplacian of {name} is zero at each of {_PLACES} random places, and {task.name} is about second "
        "derivatives: no training changes them. Take a network that bends, such as siren."
        for name, net in networks.items()
        if twice and laplacian_vanishes(net, dimensions)
    ]
    for sentence in sentences:
        warnings.warn(sentence, UserWarning, stacklevel=3)
    return sentences


def differentiates_twice(task: Task) -> bool:
    """Return whether second derivatives are a part of what a task measures.

    They are where it sees a paraboloid at its foot, where value and slope are zero, but not :math:`|x|^4` there, which
    integrals see.

    Example:
        >>> import ntk_inr as ni
        >>> differentiates_twice(ni.pde_task("poisson")), differentiates_twice(ni.pde_task("poisson-gradients"))
        (True, False)
    """
    places = jnp.asarray(task.rows(np.linspace(0, task.n - 1, _PLACES).astype(int))[0])

    def surface(power: int) -> Any:
        def raised(foot: Array, x: Array) -> Array:
            return jnp.repeat(jnp.square(x - foot).sum(axis=1, keepdims=True) ** power, task.channels, axis=1)

        return raised

    paraboloid, quartic = surface(1), surface(2)
    observed = [task.observe(paraboloid), task.observe(quartic)]
    if observed[0] is paraboloid:
        return False
    flat, seen = (jax.jit(jax.vmap(lambda place, of=of: of(place[None], place[None])))(places) for of in observed[::-1])
    return bool(jnp.abs(flat).max() < 1e-3 * jnp.abs(seen).max())


def laplacian_vanishes(net: nn.Module, dimensions: int) -> bool:
    """Return whether the Laplacian of a network is zero at random places, for random parameters.

    Example:
        >>> import ntk_inr as ni
        >>> nets = [ni.variant(name, features=8, depth=2) for name in ("relu", "triangle", "hash", "pe", "tanh")]
        >>> [laplacian_vanishes(net, 2) for net in nets]
        [True, True, True, False, False]
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(-1, 1, (_PLACES, dimensions)), jnp.float32)
    apply, params = init(net, jax.random.key(0), x)
    # Parameters that begin at zero hide what the others do.
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(leaf.dtype), params)
    value, laplacian = jax.jit(lambda params: value_and_laplacian(apply)(params, x))(params)
    return bool(jnp.abs(laplacian).max() <= 1e-6 * jnp.abs(value).max())


def _refuse_partial_derivatives(task: Task, net: nn.Module) -> None:
    for part in parts_of(net).values():
        if isinstance(part, Finer) and part.frozen_scale:
            raise ValueError(
                f"{task.name} is about derivatives by the coordinates, and FINER's published gradient leaves out that "
                "of its scale; take ni.CoordinateMLP(activation=ni.networks.Finer(frozen_scale=False)), or a variant "
                "such as siren."
            )
        if isinstance(part, TopK) and part.mode == "soft":
            raise ValueError(
                f"{task.name} is about derivatives by the coordinates, and a soft TopK leaves out that of its "
                "threshold; take another variant, such as siren."
            )
