"""The infinite-width kernels of multiplicative filter networks, (6.6)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr._dtypes import at_precision
from ntk_inr.infinite import maps, pairs, tiles
from ntk_inr.infinite.description import layer_of
from ntk_inr.infinite.maps import State
from ntk_inr.networks import trig
from ntk_inr.networks.filter_networks import BACON, FilterNetwork, FourierNet, GaborNet
from ntk_inr.networks.initializers import BIAS_UNIFORM

# Gauss-Legendre for the windows' centres: exact to rounding for windows wider than a tenth of the domain.
_CENTRES = 64
# Probability of the sharpest windows, which are left out.
_TAIL = 1e-9

Forward = Callable[[Array, Array | None, Mapping[str, Array]], tuple[Array, ...]]


def kernel(net: FilterNetwork) -> tuple[list[str], Forward]:
    """Return the settings that may be replaced, and the function of (x1, x2, settings) to covariance and kernel.

    Raises:
        ValueError: filters of a class of the user's own, whose kernel is not known here, or several readouts.
    """
    if not isinstance(net, FourierNet | GaborNet | BACON):
        raise ValueError(
            f"{type(net).__name__} has filters whose kernel is not known here, only those of FourierNet, GaborNet and "
            "BACON; take ni.ntk of a wide network."
        )
    if isinstance(net, BACON) and len(net.readouts) > 1:
        raise ValueError(
            f"scales={net.scales!r} reads out several layers, each with a kernel of its own; take them one by one: "
            f"scales=({net.readouts[0]},) and so on."
        )
    names = [] if isinstance(net, BACON) else ["scale"]

    @at_precision
    def forward(x1: Array, x2: Array | None, hyper: Mapping[str, Array]) -> tuple[Array, ...]:
        scale = hyper.get("scale", getattr(net, "scale", None))
        return tiles.tiled(lambda left, right: _kernels(net, scale, left, right), x1, x2)

    return names, forward


def _kernels(net: FourierNet | GaborNet | BACON, scale: Any, left: Array, right: Array | None) -> tuple[Array, Array]:
    """Return the covariance and the kernel between two blocks of coordinates, layer by layer."""

    @functools.cache
    def filters(steps: int) -> State:
        return _filters(net, scale, left, left if right is None else right, steps=steps, same=right is None)

    depth = net.readouts[-1] if isinstance(net, BACON) else net.depth
    # Only BACON's filters differ from layer to layer.
    steps = net.steps if isinstance(net, BACON) else (0,) * depth
    state = filters(steps[0])
    for layer in range(1, depth + 1):
        readout = layer == depth
        width = net.out if readout else net.features
        affine = layer_of(net.law(readout=readout), BIAS_UNIFORM, net.features, width, net.parameterization)
        state = affine.apply(state)
        state = state if readout else maps.product(state, filters(steps[layer]))
    return state.k, state.theta


def _filters(
    net: FourierNet | GaborNet | BACON, scale: Any, x1: Array, x2: Array, *, steps: int = 0, same: bool
) -> State:
    """Return the kernels of one layer's filters: means of g g' and of the products of its gradients.

    ``steps`` is the highest frequency of a BACON's layer, in units of pi.
    """
    if isinstance(net, GaborNet):
        k, theta, *squares = _gabor(net, _reach(net, scale, x1), x1, x2)
        state = maps.state_of(k, *squares, same=same)
        return dataclasses.replace(state, theta=theta) if net.trained else state
    columns = [a[:, None] - b[None, :] for a, b in zip(x1.T, x2.T, strict=True)]
    if isinstance(net, BACON):
        waves = functools.reduce(jnp.multiply, [_dirichlet(jnp.pi * gap, steps) for gap in columns]) / 2
        theta = waves
    else:
        waves = functools.reduce(jnp.multiply, [pairs.sinc(_reach(net, scale, x1) * gap) for gap in columns]) / 2
        theta = waves * (x1 @ x2.T + 1)
    state = maps.state_of(waves, *(jnp.full_like(x[:, 0], 0.5) for x in (x1, x2)), same=same)
    return dataclasses.replace(state, theta=theta) if net.trained else state


def _reach(net: FourierNet | GaborNet, scale: Any, x: Array) -> Any:
    """Return the largest frequency of a coordinate."""
    return scale / (x.shape[1] * net.depth) ** 0.5


def _dirichlet(angle: Array, steps: int) -> Array:
    """Return the mean of cos(k angle) over k from -steps to steps."""
    waves = jax.lax.map(lambda k: trig.cos(k * angle), jnp.arange(1, steps + 1, dtype=angle.dtype))
    return (1 + 2 * waves.sum(0)) / (2 * steps + 1)


def _gabor(net: GaborNet, reach: Any, x1: Array, x2: Array) -> tuple[Array, Array, Array, Array]:
    r"""Return the means of g g' and of its gradients' products, and of the squares of g on either side.

    Over the phase first, which leaves :math:`\frac12\cos(\omega^\top\delta)` in every term; then over the frequency, a
    product of sincs; then over the centres, by Gauss-Legendre in each coordinate; then over the sharpness.
    """
    sharpness, weights = (jnp.asarray(part, x1.dtype) for part in _gamma_rule(net, float(net.scale)))
    gaps = [a[:, None] - b[None, :] for a, b in zip(x1.T, x2.T, strict=True)]
    inner = x1 @ x2.T + 1

    def add(total: tuple[Array, ...], node: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
        gamma, weight = node
        waves = math.prod(pairs.sinc(jnp.sqrt(gamma) * reach * gap) for gap in gaps) / 2
        windows = [_window_means(a, b, gamma) for a, b in zip(x1.T, x2.T, strict=True)]
        even, slopes = _window_products(windows, gamma)
        means = (
            waves * even,
            waves * (inner * even + slopes),
            math.prod(window.left_square for window in windows) / 2,
            math.prod(window.right_square for window in windows) / 2,
        )
        return tuple(t + weight * mean for t, mean in zip(total, means, strict=True)), None

    zeros = jnp.zeros_like(gaps[0])
    start = zeros, zeros, zeros[:, 0], zeros[0]
    return jax.lax.scan(jax.checkpoint(add), start, (sharpness, weights))[0]


class _Window(NamedTuple):
    """Means over the centre m of products of windows w(a - m) w(b - m) of one coordinate, times powers of distances.

    Attributes:
        even: of the windows alone, (n1, n2).
        along: times (a - m)(b - m).
        left_far: times (a - m)².
        right_far: times (b - m)².
        both_far: times (a - m)²(b - m)².
        left_square: of w(a - m)², (n1,).
        right_square: of w(b - m)², (n2,).
    """

    even: Array
    along: Array
    left_far: Array
    right_far: Array
    both_far: Array
    left_square: Array
    right_square: Array


def _window_means(a: Array, b: Array, gamma: Array) -> _Window:
    """Return the means for one coordinate at n1 and n2 points, of windows of sharpness ``gamma``."""
    nodes, chances = (jnp.asarray(part, a.dtype) for part in pairs.legendre(_CENTRES))
    p, q = (column[:, None] - (2 * nodes - 1)[None, :] for column in (a, b))
    u, v = (jnp.exp(-gamma / 2 * off * off) for off in (p, q))
    weighted = u * chances[None, :]
    return _Window(
        even=weighted @ v.T,
        along=(p * weighted) @ (q * v).T,
        left_far=(p * p * weighted) @ v.T,
        right_far=weighted @ (q * q * v).T,
        both_far=(p * p * weighted) @ (q * q * v).T,
        left_square=(u * u) @ chances,
        right_square=(v * v) @ chances,
    )


def _window_products(windows: list[_Window], gamma: Array) -> tuple[Array, Array]:
    """Return the mean product of two windows, and that of their gradients by centre and sharpness."""
    axes = range(len(windows))

    def even(*but: int) -> Any:
        return math.prod(windows[t].even for t in axes if t not in but)

    toward = sum(windows[t].along * even(t) for t in axes)
    far = sum(
        windows[t].both_far * even(t) if s == t else windows[t].left_far * windows[s].right_far * even(t, s)
        for t in axes
        for s in axes
    )
    return even(), gamma**2 * toward + far / 4


def _gamma_rule(net: GaborNet, scale: float) -> tuple[np.ndarray, np.ndarray]:
    r"""Return nodes and weights for the mean over the sharpness, for coordinates in [-1, 1].

    By Gauss-Jacobi in :math:`\sqrt\gamma`, in which the waves are smooth, with the law's own power at 0.
    """
    import scipy.special  # slow to import, and needed here alone

    shape = net.alpha / net.depth
    largest = math.sqrt(scipy.special.gammainccinv(shape, _TAIL) / net.beta)
    turns = 2 * largest * scale / net.depth**0.5
    order = 32 + math.ceil(turns)
    t, w = scipy.special.roots_jacobi(order, 0, 2 * shape - 1)
    root = largest * (1 + t) / 2
    w = w * np.exp(-net.beta * root**2)
    return root**2, w / w.sum()
