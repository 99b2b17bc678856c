"""The infinite-width kernel of a network, read from its description."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from ntk_inr import _checks
from ntk_inr._dtypes import at_precision
from ntk_inr._results import result
from ntk_inr.infinite import filters, maps, pairs, stax, tiles
from ntk_inr.infinite.description import Description, Layer, Points, normalized
from ntk_inr.infinite.duals import Dual, Erf, Rectifier, Sine, Wavelet
from ntk_inr.infinite.maps import State
from ntk_inr.infinite.quadrature import Quadrature
from ntk_inr.networks.encodings import CONSTANTS
from ntk_inr.networks.filter_networks import FilterNetwork
from ntk_inr.networks.mlp import CoordinateMLP
from ntk_inr.networks.normalization import Sphere
from ntk_inr.networks.settings import setting_name

Backend = Literal["own", "neural-tangents"]
Forward = Callable[..., tuple[Array, ...]]
"""From x1, x2 or None, settings by name and the encoding's fixed arrays to the covariance and the kernel."""


@result
class InfiniteKernel:
    """Kernels of a network of infinite width.

    Attributes:
        nngp: covariance of an output over initialisations, (n1, n2).
        ntk: neural tangent kernel of an output, (n1, n2).
    """

    nngp: Any
    ntk: Any


def infinite_kernel(
    net: CoordinateMLP | FilterNetwork,
    *,
    backend: Backend = "own",
    constants: Mapping[str, Any] | None = None,
    order: int = 64,
) -> Callable[..., InfiniteKernel]:
    r"""Return the kernels that a network's outputs and gradients have at infinite width.

    ``kernel(x1, x2=None, hyper=None)`` gives ``.nngp``, the covariance of an output over initialisations, and
    ``.ntk``, which ``ni.ntk(apply, params, x1, x2)`` tends to as 1/sqrt(features). It compiles once for a shape, which
    serves all equal networks, is differentiable in x1, x2 and hyper, and for ``x2=None`` symmetric to the bit.

    What does not vanish with the width is kept as the network has it: the sums over inputs and the laws of weights
    and biases of the first layer, the variance of the biases (by default 1 / (3 features) in hidden layers), and in
    the "standard" parameterization the growth of gradients with the width. So it is the best prediction for
    ``net.features`` units; ``net.clone(features=2**40, parameterization="ntk")`` gives the limit proper. Hidden
    weights enter by their variance alone, by the central limit theorem, and so do hidden biases, but for those of a
    sine: its omega magnifies them, and their uniform law is kept (as normal ones, SIREN's kernel would be 19 % off at
    256 units).

    ReLU, leaky ReLU and their like, sine, erf, Gauss and Gabor have closed forms (T11). Uniform biases in the first
    layer, the default law, cost ReLU and erf a quadrature of 24 nodes, 1e-5 relative at worst. Uniform weights there
    are exact for sine (T11.4), and to 1e-7 by Fourier series for Gauss and Gabor at coordinates in [-1, 1]. Any
    other elementwise function is integrated by Gauss-Hermite (:class:`ntk_inr.infinite.quadrature.Quadrature`); under
    uniform weights of more than two features it takes their sum as normal, an error of about 0.3 / features.

    Filter networks have closed forms in their frequencies, (6.6); for :class:`GaborNet` with a quadrature over the
    windows, for coordinates in [-1, 1]. For several readouts the kernel is that of the last.

    Args:
        net: a :class:`CoordinateMLP`, :class:`FourierNet`, :class:`GaborNet` or :class:`BACON`.
        backend: "own", or "neural-tangents" to build the same in that package's ``stax``, for comparison, where it
            has the layers (an extra to install; takes no ``hyper``).
        constants: the network's fixed matrices, ``net.init(key, x)`` or its "constants". For
            :class:`GaussianFourier` they give the kernel at those frequencies; without them it is that of infinitely
            many (T4.2). Modulation and filters are always at infinitely many units.
        order: nodes of Gauss-Hermite for functions without a closed form.

    Returns:
        ``kernel(x1, x2=None, hyper=None)`` for x1 (n1, d) and x2 (n2, d), None for x1. ``hyper`` replaces real settings
        of the network's parts by numbers or traced scalars, named as :func:`ntk_inr.networks.with_settings` takes them:
        ``{"omega": 30.0}``. Under uniform weights traced ones of Gauss and Gabor have the accuracy above up to twice
        the network's own omega and scale.

    Raises:
        TypeError: ``net`` is none of these.
        ValueError: a part whose limit is not known here, by name; when called, coordinates that are not (n, d), or an
            unknown name in ``hyper``.
        ModuleNotFoundError: "neural-tangents" without that package.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> from ntk_inr.infinite.network import infinite_kernel
        >>> x = jnp.linspace(-1, 1, 16)[:, None]
        >>> kernel = infinite_kernel(ni.CoordinateMLP(features=256, depth=3, activation="sine"))
        >>> kernel(x).ntk.shape
        (16, 16)

        How the variance of the kernel's eigenvalues answers to the frequency:

        >>> slope = jax.grad(lambda omega: ni.moments(kernel(x, hyper={"omega": omega}).ntk).cv)(30.0)
        >>> bool(jnp.isfinite(slope))
        True

    Source: Jacot et al. 2018, arXiv 1806.07572; T5, T6, T7 and T11 of the theory.
    """
    if not isinstance(net, CoordinateMLP | FilterNetwork):
        raise TypeError(
            f"net is {type(net).__name__}; the infinite-width kernel is read from the description of an "
            "ni.CoordinateMLP or a filter network. For other architectures compose the maps of ntk_inr.infinite.maps."
        )
    _checks.check_choice(backend, get_args(Backend), "backend")
    _checks.check_positive(order, "order", integer=True)
    kernel = NetworkKernel(net, backend, _checks.native(constants), order)
    kernel.check()
    return kernel


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkKernel:
    """What :func:`infinite_kernel` returns; call it with coordinates. It pickles where its network does."""

    net: CoordinateMLP | FilterNetwork
    backend: Backend
    constants: Mapping[str, Any] | None
    order: int

    def check(self) -> None:
        """Raise where a part of the network has no limit that is known."""
        if isinstance(self.net, FilterNetwork):
            if self.backend != "own":
                raise ValueError(f'stax has no layer for {type(self.net).__name__}\'s filters; use backend="own".')
        else:
            description = Description(self.net, self._fixed, self.order)
            description.check()
            if self.backend != "own":
                stax.check(description)
        _ = self._program

    def __call__(self, x1: Any, x2: Any = None, hyper: Mapping[str, Any] | None = None) -> InfiniteKernel:
        """Return the kernels at coordinates x1 (n1, d) and x2 (n2, d), None for x1."""
        x1 = _checks.as_floating(_checks.as_coordinates(x1, "x1"), "x1")
        if x2 is not None:
            x2 = _checks.as_columns(x2, x1).astype(x1.dtype)
        names, forward = self._program
        values = {setting_name(self.net, name, names): value for name, value in (hyper or {}).items()}
        values = {name: jnp.asarray(_checks.native(value), x1.dtype) for name, value in values.items()}
        return InfiniteKernel(*forward(x1, x2, values, self._fixed))

    def __getstate__(self) -> dict[str, Any]:
        # Without what is cached: compiled functions don't pickle.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def _fixed(self) -> Any:
        """The encoding's fixed arrays, or None."""
        constants = self.constants or {}
        return constants.get(CONSTANTS, constants).get("encoding")

    @functools.cached_property
    def _program(self) -> tuple[tuple[str, ...], Forward]:
        try:
            return _program(self.net, self.backend, self.order)
        except TypeError:  # a field that can't be hashed, such as a list
            return _program.__wrapped__(self.net, self.backend, self.order)


@functools.lru_cache(maxsize=64)
def _program(net: CoordinateMLP | FilterNetwork, backend: Backend, order: int) -> tuple[tuple[str, ...], Forward]:
    """Return the settings that ``hyper`` takes, and the kernels as a function that compiles once for a shape.

    Equal networks share it: fixed arrays are its arguments.
    """
    if isinstance(net, FilterNetwork):
        names, kernels = filters.kernel(net)
        compiled = jax.jit(kernels)
        return tuple(names), lambda x1, x2, hyper, fixed: compiled(x1, x2, hyper)
    description = Description(net, None, order)
    if backend == "own":
        return tuple(description.hyper), _jitted(description)
    return (), stax.kernel(description)


def _jitted(description: Description) -> Forward:
    series = isinstance(description.dual(description.parts), Wavelet)

    @functools.lru_cache(maxsize=64)
    def compiled(counted: tuple[tuple[str, float], ...]) -> Forward:
        return jax.jit(functools.partial(_forward, dataclasses.replace(description, counted=counted)))

    def forward(x1: Array, x2: Array | None, hyper: Mapping[str, Array], fixed: Any) -> tuple[Array, ...]:
        return compiled(description.counting(hyper) if series else ())(x1, x2, hyper, fixed)

    return forward


@at_precision
def _forward(
    description: Description, x1: Array, x2: Array | None, hyper: Mapping[str, Array], fixed: Any
) -> tuple[Array, ...]:
    """Return the covariance and the neural tangent kernel of an output."""
    description = dataclasses.replace(description, fixed=fixed)
    parts = description.replaced(hyper)
    left, right = description.points(parts, x1), None if x2 is None else description.points(parts, x2)
    return tiles.tiled(lambda left, right: _kernels(description, parts, left, right), left, right)


def _kernels(
    description: Description, parts: Mapping[str, Any], left: Points, right: Points | None
) -> tuple[Array, Array]:
    """Return the covariance and the kernel between two blocks of coordinates, layer by layer."""
    net = description.net
    normalization, modulation, sparsity = (parts[name] for name in ("normalization", "modulation", "sparsity"))
    if modulation is not None:
        other = None if right is None else right.x
        modulator = maps.fourier_modulation(left.x, other, modulation.omega, trained=modulation.trained)
    hidden = description.layer(parts, net.features)
    for depth in range(net.depth):
        if depth == 0:
            state, dual = _first(description, parts, left, right)
        else:
            entering = state
            state, dual = hidden.apply(state), _with_terms(description, parts, hidden)
        state = maps.activate(normalized(normalization, "hidden_pre", state, net.features), dual)
        if sparsity is not None and sparsity.mode == "sphere":
            energy = 1.0 if sparsity.radius is None else sparsity.radius**2 / net.features
            state = maps.normalize(state, energy, Sphere.epsilon)
        if modulation is not None:
            state = maps.product(state, modulator)
        state = normalized(normalization, "hidden_post", state, net.features)
        if net.residual and depth > 0:
            state = maps.add(entering, state)
        # XLA would otherwise compute the layers before again in each fusion of the layers after.
        state = jax.lax.optimization_barrier(state)
    state = description.layer(parts, net.features, readout=True).apply(state)
    return state.k, state.theta


def _first(
    description: Description, parts: Mapping[str, Any], left: Points, right: Points | None
) -> tuple[State, Dual]:
    """Return the first layer's pre-activations, exact in the law of its weights, and the dual that takes them."""
    state, fan_in = description.inputs(parts, left, right)
    layer = description.layer(parts, fan_in, first=True)
    dual = _with_terms(description, parts, layer, first=True)
    few = fan_in + (layer.uniform is not None) <= pairs.LARGEST_TENSOR
    if layer.weights == "normal" or left.h is None or not (few or isinstance(dual, Sine | Wavelet)):
        return layer.apply(state), dual
    laws = {"gradient": layer.gradient, "uniform": layer.uniform}
    features = left.h, None if right is None else right.h
    state = maps.dense_uniform(*features, layer.half_width, layer.bias, **laws)
    return state, Quadrature(parts["activation"], description.order) if isinstance(dual, Rectifier | Erf) else dual


def _with_terms(description: Description, parts: Mapping[str, Any], layer: Layer, *, first: bool = False) -> Dual:
    """Return the dual of the activation after ``layer``, a wavelet's with as many terms as it needs there."""
    dual = description.dual(parts, first=first)
    if not isinstance(dual, Wavelet) or (layer.weights == "normal" and layer.uniform is None):
        return dual
    pre = parts["normalization"] is not None and parts["normalization"].placement == "hidden_pre"
    return dataclasses.replace(dual, terms=description.terms(layer, first=first, pre=pre))
