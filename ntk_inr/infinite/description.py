"""The parts, laws and features of a :class:`ntk_inr.CoordinateMLP` that its infinite-width kernel depends on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr.infinite import maps
from ntk_inr.infinite.duals import Dual, Sine, Wavelet
from ntk_inr.infinite.gating import HardGate
from ntk_inr.infinite.maps import State
from ntk_inr.infinite.resolve import dual_of
from ntk_inr.networks import activations, normalization
from ntk_inr.networks.encodings import CONSTANTS, GaussianFourier, NeRFEncoding
from ntk_inr.networks.initializers import Law, siren_hidden
from ntk_inr.networks.mlp import CoordinateMLP
from ntk_inr.networks.modulation import FourierModulation, squared_distances
from ntk_inr.networks.normalization import LayerNorm, Sphere
from ntk_inr.networks.settings import declared_in, with_fields

_PARTS = ("encoding", "activation", "normalization", "modulation", "sparsity")


@dataclasses.dataclass(frozen=True)
class Layer:
    """The laws of a dense layer, as :func:`ntk_inr.infinite.maps.dense` takes them.

    Attributes:
        weights: law of the weights.
        fan_in: number of inputs m.
        gain: m times the weights' variance.
        bias: variance of the biases that count as normal.
        uniform: half-width of the biases that count as uniform; None for none.
        gradient: weights of the weights' and of the biases' own gradients in the kernel.
    """

    weights: Literal["normal", "uniform"]
    fan_in: int
    gain: Any
    bias: Any
    uniform: Any
    gradient: tuple[Any, Any]

    def apply(self, state: State) -> State:
        """Return the state after the layer, its weights counted as normal."""
        return maps.dense(state, self.gain, self.bias, gradient=self.gradient, uniform=self.uniform)

    @property
    def half_width(self) -> Any:
        """The half-width of the weights' law, where it is uniform."""
        return (3 * self.gain / self.fan_in) ** 0.5


def layer_of(
    law: Law, bias_law: Law | None, fan_in: int, fan_out: int, parameterization: str, *, exact: bool = False
) -> Layer:
    """Return the laws of a dense layer; ``exact`` keeps uniform biases apart from the normal sum of weights."""
    gain = fan_in * law.variance(fan_in, fan_out)
    variance = 0.0 if bias_law is None else bias_law.variance(fan_in, fan_out)
    gradient = (gain, variance) if parameterization == "ntk" else (float(fan_in), float(bias_law is not None))
    uniform = (3 * variance) ** 0.5 if exact else None
    return Layer(law.distribution, fan_in, gain, 0.0 if exact else variance, uniform, gradient)


class Points(NamedTuple):
    """Coordinates as the kernel takes them.

    Attributes:
        x: the coordinates, (n, d).
        h: what enters the first layer, (n, f); None for the features of infinitely many random frequencies.
    """

    x: Float[Array, "n d"]
    h: Float[Array, "n f"] | None


@dataclasses.dataclass(frozen=True)
class Description:
    """A network and the fixed matrices that belong to it.

    Attributes:
        net: the network.
        fixed: the encoding's fixed arrays, or None.
        order: nodes of Gauss-Hermite.
        counted: settings that the terms of a Fourier series are counted for, where they are not the network's own.
    """

    net: CoordinateMLP
    fixed: Mapping[str, Any] | None
    order: int
    counted: tuple[tuple[str, float], ...] = ()

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        """The parts that have settings, by name, with names resolved."""
        parts = {name: getattr(self.net, name) for name in _PARTS}
        parts["activation"] = activations.resolve(parts["activation"])
        parts["normalization"] = normalization.resolve(parts["normalization"])
        return parts

    @functools.cached_property
    def hyper(self) -> list[str]:
        """The names of the parts' real settings, such as "activation.omega"."""
        return [
            f"{name}.{field}"
            for name, part in self.parts.items()
            if dataclasses.is_dataclass(part) and (name != "encoding" or isinstance(part, GaussianFourier))
            for field, how in declared_in(part).items()
            if how["setting"] is float and getattr(part, field) is not None
        ]

    def counting(self, hyper: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
        """Return the settings that size a wavelet's Fourier series where ``hyper`` replaces some.

        Of a traced value, whose size is not known, it is half or double of the network's own.
        """
        sizes = {}
        for field, headroom in (("omega", 2.0), ("first_omega", 2.0), ("scale", 2.0), ("width", 0.5)):
            value = hyper.get(f"activation.{field}")
            if isinstance(value, jax.core.Tracer):
                value = headroom * getattr(self.parts["activation"], field)
            if value is not None:
                sizes[f"activation.{field}"] = float(value)
        return tuple(sizes.items())

    def replaced(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parts with settings replaced."""
        parts = dict(self.parts)
        for name, value in hyper.items():
            part, field = name.split(".")
            parts[part] = with_fields(parts[part], {field: value})
        return parts

    def check(self) -> None:
        """Raise where the limit of a part is not known."""
        known: dict[str, tuple[type, ...]] = {"normalization": (Sphere, LayerNorm), "modulation": (FourierModulation,)}
        for name, kinds in known.items():
            if self.parts[name] is not None and not isinstance(self.parts[name], kinds):
                raise ValueError(
                    f"{name} {type(self.parts[name]).__name__} has no infinite-width limit known here, only "
                    f"{', '.join(kind.__name__ for kind in kinds)}; take ni.ntk of a wide network."
                )
        normalization = self.parts["normalization"]
        if isinstance(normalization, LayerNorm) and normalization.trained and normalization.placement == "input":
            raise ValueError(
                'a trained LayerNorm of placement "input" has gains of features whose part of the kernel is not known '
                'here; take placement="hidden_pre" or "hidden_post", trained=False, or ni.ntk of a wide network.'
            )
        if self.net.head is not None:
            raise ValueError(
                f"head={self.net.head!r} follows the readout, whose values are random at any width; take the kernel "
                "with head=None, before it."
            )
        if any(law.shift for law in self.net.every_law()):
            raise ValueError(
                f"initializer={self.net.initializer!r} draws weights of nonzero mean, whose limit is not a kernel; "
                "take ni.ntk of a wide network."
            )
        gated = isinstance(self.dual(self.parts), HardGate)
        if gated and self.layer(self.parts, 1, first=True).weights == "uniform":
            raise ValueError(
                "sparsity is a hard gate after a first layer of uniform weights, whose threshold is not known here; "
                "use an activation whose law is normal in the first layer."
            )

    def dual(self, parts: Mapping[str, Any], *, first: bool = False) -> Dual:
        """Return the dual of a layer's activation with the sparsity that follows it."""
        activation = activations.of_layer(parts["activation"], first=first)
        return dual_of(activation, parts["sparsity"], units=self.net.features, order=self.order)

    def law(self, parts: Mapping[str, Any], **layer: bool) -> Law:
        """Return the law of a dense layer's weights, at settings that may be traced."""
        declared, law = self.parts["activation"], self.net.laws(**layer)[0]
        own = self.net.initializer is None and hasattr(declared, "omega")
        if not own or law != siren_hidden(declared.omega):
            return law
        return siren_hidden(parts["activation"].omega)

    def layer(self, parts: Mapping[str, Any], fan_in: int, *, first: bool = False, readout: bool = False) -> Layer:
        """Return the laws of a dense layer."""
        law, (_, bias_law) = self.law(parts, first=first, readout=readout), self.net.laws(first=first, readout=readout)
        fan_out = self.net.out if readout else self.net.features
        exact = False
        if bias_law is not None and bias_law.distribution == "uniform":
            # A hidden bias whose spread falls with the width leaves the sum normal, unless a sine's omega magnifies it.
            exact = first or bias_law.power == 0 or isinstance(self.dual(parts), Sine)
        return layer_of(law, bias_law, fan_in, fan_out, self.net.parameterization, exact=exact and not readout)

    def terms(self, layer: Layer, *, first: bool, pre: bool) -> int:
        """Return how many Fourier terms a wavelet needs of a layer's pre-activations, inputs in [-1, 1].

        ``pre``: they are normalised.
        """
        dual = self.dual(self.replaced(dict(self.counted)), first=first)
        assert isinstance(dual, Wavelet)
        widths = min((3 * layer.fan_in) ** 0.5, 7.0) if layer.weights == "uniform" else 7.0
        reach = widths * (1.0 if pre else layer.gain**0.5) + (layer.uniform or 0.0) + 7 * layer.bias**0.5
        return Wavelet.count(float(dual.scale), float(dual.omega), float(reach))

    def features(self, parts: Mapping[str, Any], x: Array) -> Any:
        """Return what enters the first layer, (n, f); None for the features of infinitely many random frequencies."""
        encoding = self.net.encoding
        if encoding is None:
            return x
        if isinstance(encoding, GaussianFourier) and not encoding.trained:
            if self.fixed is None:
                return None
            # The frequencies were drawn at the network's own scale.
            scale = parts["encoding"].scale / encoding.scale
            return encoding.apply({CONSTANTS: {"frequencies": scale * self.fixed["frequencies"]}}, x)
        if isinstance(encoding, NeRFEncoding):
            return encoding.apply({}, x)
        needed = set(jax.eval_shape(encoding.init, jax.random.key(0), x))
        name = type(encoding).__name__
        if "params" in needed:
            raise ValueError(
                f"encoding {name} has parameters, whose part of the kernel is not known here; take ni.ntk of a wide "
                "network, or an encoding that is not trained."
            )
        if needed and self.fixed is None:
            raise ValueError(f"encoding {name} has fixed arrays; pass constants=net.init(key, x).")
        return encoding.apply({CONSTANTS: self.fixed or {}} if needed else {}, x)

    def points(self, parts: Mapping[str, Any], x: Array) -> Points:
        """Return the coordinates with what enters the first layer, normalised where that is asked for."""
        h = self.features(parts, x)
        normalization = parts["normalization"]
        if h is not None and normalization is not None and normalization.placement == "input":
            h = normalization(h)
        return Points(x, h)

    def inputs(self, parts: Mapping[str, Any], left: Points, right: Points | None) -> tuple[State, int]:
        """Return the state of what enters the first layer, and how many features that are."""
        if left.h is not None:
            return maps.inputs(left.h, None if right is None else right.h), left.h.shape[1]
        encoding, other = parts["encoding"], left if right is None else right
        k = jnp.exp(-2 * (jnp.pi * encoding.scale) ** 2 * squared_distances(left.x, other.x)) / 2
        halves = (jnp.full_like(points.x[:, 0], 0.5) for points in (left, other))
        state = maps.state_of(k, *halves, same=right is None)
        units = 2 * encoding.features
        return normalized(parts["normalization"], "input", state, units), units


def normalized(normalization: Sphere | LayerNorm | None, at: str, state: State, units: int) -> State:
    """Return the state after a normalization, if ``at`` is its place."""
    if normalization is None or normalization.placement != at:
        return state
    if isinstance(normalization, LayerNorm):
        state = maps.normalize(state, 1.0, normalization.epsilon, centred=at == "hidden_post")
        return maps.trained_affine(state) if normalization.trained else state
    energy = 1.0 if normalization.radius is None else normalization.radius**2 / units
    return maps.normalize(state, energy, normalization.epsilon)
