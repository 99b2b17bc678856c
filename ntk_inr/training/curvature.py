"""The loss as a quadratic function of the predictions, which a Gauss–Newton step minimises (12.6)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ntk_inr._dtypes import eps
from ntk_inr.training.losses import HUBER_DELTA, ExampleLoss


class Quadratic(NamedTuple):
    r"""The sum of the rows' losses near a prediction f, :math:`g\cdot u + \frac12 u^\top\Lambda u` for a change u.

    Attributes:
        loss: the sum.
        gradient: g (n, c).
        root: S, the square roots (n, c, c) of the positive semi-definite blocks of :math:`\Lambda`.
        scaled: h (n, c), which S takes to the part of g that has curvature.
        rest: the part of g that has none, (n, c); None where all has some.
    """

    loss: Array
    gradient: Array
    root: Array
    scaled: Array
    rest: Array | None

    def times_root(self, v: Array) -> Array:
        """Return S v for v (n, c)."""
        return jnp.einsum("noc,nc->no", self.root, v)

    def decrease(self, change: Array) -> Array:
        """Return by how much the quadratic function falls where the predictions change by (n, c)."""
        return -jnp.vdot(self.gradient, change) - jnp.square(self.times_root(change)).sum() / 2


@functools.partial(jax.jit, static_argnames="loss")
def quadratic(loss: ExampleLoss, prediction: Array, y: Array, weights: Array | None = None) -> Quadratic:
    r"""Return the quadratic function at a prediction (n, c'), of losses weighted by ``weights`` (n,).

    :math:`\Lambda` is the Hessian of the loss: 1/c for "mse", s(1 - s)/c for "bce", and what is positive of it for a
    function. Where "l1" and "huber" have none, it is that of the parabola above them that touches at the error e:
    1/(c|e|), delta/(c|e|).
    """
    w = jnp.ones(len(prediction), prediction.dtype) if weights is None else weights.astype(prediction.dtype)
    total = (w * loss(prediction, y)).sum()
    if loss.function is not None:
        return _of_function(loss, prediction, y, w, total)
    c = y.shape[1]
    error = prediction - y
    if loss.name == "bce":
        gradient = jax.nn.sigmoid(prediction) - y
        curvature = jax.nn.sigmoid(prediction) * jax.nn.sigmoid(-prediction)
    else:
        curvature = _curvature(loss, error)
        gradient = curvature * error
    scale = w[:, None] / c
    gradient, curvature = scale * gradient, scale * curvature
    flat = curvature > (eps(curvature.dtype) * curvature.max() if loss.name == "bce" else -1)
    root = jnp.sqrt(curvature)
    scaled = jnp.where(flat & (root > 0), gradient / jnp.where(root > 0, root, 1), 0)
    rest = jnp.where(flat, 0, gradient) if loss.name == "bce" else None
    return Quadratic(total, gradient, jax.vmap(jnp.diag)(root), scaled, rest)


def _curvature(loss: ExampleLoss, error: Array) -> Array:
    """Return the second derivatives of c losses on values, or of the parabolas that touch them from above."""
    if loss.name == "mse":
        return jnp.ones_like(error)
    size = jnp.abs(error)
    if loss.name == "huber":
        delta = HUBER_DELTA * loss.data_range
        return delta / jnp.maximum(size, delta)
    tiny = jnp.finfo(error.dtype).tiny
    return 1 / jnp.maximum(size, jnp.maximum(eps(error.dtype) ** 0.5 * size.max(), tiny))


def _of_function(loss: ExampleLoss, prediction: Array, y: Array, w: Array, total: Array) -> Quadratic:
    """Return the same for a function: its derivatives, and of its Hessians what is positive."""

    def gradient_at(prediction: Array) -> Any:
        return jax.grad(lambda f: (w * loss(f, y)).sum())(prediction)

    c = prediction.shape[1]
    gradient, along = jax.linearize(gradient_at, prediction)
    hessian = jnp.stack([along(jnp.zeros_like(prediction).at[:, o].set(1)) for o in range(c)], axis=2)
    if c == 1:
        values, vectors = hessian[:, 0], jnp.ones_like(hessian)
    else:
        values, vectors = jnp.linalg.eigh((hessian + hessian.mT) / 2)
    curved = values > eps(values.dtype) * jnp.abs(values).max()
    size = jnp.sqrt(jnp.where(curved, values, 0))
    in_axes = jnp.einsum("noa,no->na", vectors, gradient)
    scaled = jnp.where(curved, in_axes / jnp.where(curved, size, 1), 0)

    def back(v: Array) -> Array:
        return jnp.einsum("noa,na->no", vectors, v)

    root = jnp.einsum("noa,na,npa->nop", vectors, size, vectors)
    return Quadratic(total, gradient, root, back(scaled), back(jnp.where(curved, 0, in_axes)))
