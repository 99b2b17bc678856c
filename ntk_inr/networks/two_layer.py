"""The two-layer network that the closed forms T2 to T7 describe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks.encodings import CONSTANTS
from ntk_inr.networks.modulation import FourierModulation
from ntk_inr.networks.normalization import Sphere
from ntk_inr.networks.products import of_coordinates
from ntk_inr.networks.sparsity import TopK

Readout = Literal["signs", "normal", "constant"]
Group = Literal["weights", "bias", "readout"]


class TwoLayerNetwork(nn.Module):
    """The module that :func:`two_layer_network` checks and builds; its fields are that function's arguments."""

    width: Any  # like the other numbers, traced where the closed forms take a network as a description
    encoding: nn.Module | None = None
    normalization: Sphere | None = None
    modulation: tuple[FourierModulation, ...] = ()
    sparsity: TopK | None = None
    readout: Readout = "signs"
    trained: tuple[Group, ...] = ("weights",)
    scale: Any = 1.0
    weight_std: Any = 1.0
    bias_std: Any = None
    output_bias: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n 1"]:
        """Return the network's values at coordinates ``x``, shape (n, 1)."""
        gamma = self._normalized(x if self.encoding is None else self.encoding(x), "input")
        u = of_coordinates(
            gamma, self._drawn("weights", "weights", (gamma.shape[-1], self.width), self.weight_std, x.dtype)
        )
        if self.bias_std is not None:
            u = u + self._drawn("bias", "bias", (1, self.width), self.bias_std, x.dtype)
        u = self._normalized(u, "hidden_pre")
        h = nn.relu(u) if self.sparsity is None else self.sparsity(u)
        for modulator in self.modulation:
            h = h * modulator(x, self.width)
        z = self._normalized(h, "hidden_post")
        c = self._drawn("readout", "readout", (self.width, 1), self.scale, x.dtype, self._unit_readout)
        f = z @ c / self.width**0.5
        if self.output_bias is None:
            return f
        return f + self.output_bias * self._drawn("output_bias", "readout", (1, 1), 1.0, x.dtype)

    def _normalized(self, h: Array, at: str) -> Array:
        return h if self.normalization is None or self.normalization.placement != at else self.normalization(h)

    def _drawn(
        self,
        name: str,
        group: str,
        shape: tuple[int, ...],
        std: Any,
        dtype: Any,
        law: Callable[..., Array] = jax.random.normal,
    ) -> Array:
        """Return ``std * law``, a parameter where its group is trained and a constant where it is not."""

        def draw(key: Array) -> Array:
            return std * law(key, shape, self.param_dtype)

        if group in self.trained:
            return self.param(name, draw).astype(dtype)
        return self.variable(CONSTANTS, name, lambda: draw(self.make_rng("params"))).value.astype(dtype)

    def _unit_readout(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        if self.readout == "constant":
            return jnp.ones(shape, dtype)
        return (jax.random.rademacher if self.readout == "signs" else jax.random.normal)(key, shape, dtype)


def two_layer_network(
    width: int,
    *,
    encoding: nn.Module | None = None,
    normalization: Sphere | None = None,
    modulation: FourierModulation | Iterable[FourierModulation] | None = None,
    sparsity: TopK | None = None,
    readout: Readout = "signs",
    trained: Iterable[Group] = ("weights",),
    scale: Any = 1.0,
    weight_std: Any = 1.0,
    bias_std: Any = None,
    output_bias: Any = None,
    param_dtype: Any = jnp.float32,
) -> TwoLayerNetwork:
    r"""Build the two-layer network whose kernel :func:`ntk_inr.two_layer_moments` knows in closed form.

    .. math:: f(x) = \tfrac1{\sqrt m}\sum_r c_r z_r(x) + \beta c_0, \qquad u_r = w_r^\top\gamma(x) + b_r

    with z the ReLU of u times the modulators, or what ``sparsity`` leaves of u itself, and normalised where
    ``normalization`` says: "input" acts on gamma, "hidden_pre" on u, "hidden_post" on the modulated activations.
    Groups that ``trained`` leaves out are drawn too, but kept in the "constants" collection.

    Args:
        width: units m.
        encoding: a module (n, d) -> (n, k); None feeds the coordinates.
        normalization: a :class:`Sphere`, or None.
        modulation: a :class:`FourierModulation` of the coordinates, or several, drawn independently. Those with
            ``trained=True`` are parameters.
        sparsity: a :class:`TopK` in place of the ReLU, or None.
        readout: law of c: "signs" is ±scale, "normal" is N(0, scale²), "constant" is scale.
        trained: which of "weights" (w), "bias" (b) and "readout" (c and c0) are parameters.
        scale: a.
        weight_std: standard deviation of w.
        bias_std: standard deviation of b; None leaves the biases out.
        output_bias: beta, with c0 ~ N(0, 1); None leaves it out.
        param_dtype: dtype that weights, biases and readout are drawn in.

    Returns:
        A Flax Linen module from (n, d) to (n, 1).

    Raises:
        TypeError: a part of another kind than described here.
        ValueError: a size or scale that is not above 0, more active units than units, an unknown readout or
            group, a trained group that the network doesn't have, or nothing trained.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> net = two_layer_network(64, readout="normal", trained=("weights", "readout"))
        >>> apply, params = ni.init(net, jax.random.key(0), jnp.zeros((1, 2)))
        >>> jax.tree.map(jnp.shape, params), apply(params, jnp.zeros((5, 2))).shape
        ({'readout': (64, 1), 'weights': (2, 64)}, (5, 1))

    Source: the models of T2 (2.1), T3 (3.1), T5 (5.4), T6 (6.1) and T7 (7.1).
    """
    _checks.check_positive(width, "width", integer=True)
    modulators = _modulators(modulation)
    _check_parts(encoding, normalization, sparsity)
    _checks.check_choice(readout, get_args(Readout), "readout")
    groups = _groups(trained, modulators, has_bias=bias_std is not None)
    for name, value in (
        ("scale", scale),
        ("weight_std", weight_std),
        ("bias_std", bias_std),
        ("output_bias", output_bias),
    ):
        if value is not None and not isinstance(value, jax.core.Tracer):
            _checks.check_positive(value, name)
    if sparsity is not None and sparsity.settled()[0] > width:
        raise ValueError(f"sparsity keeps k = {sparsity.k} units but width is {width}; choose k up to {width}.")
    return TwoLayerNetwork(
        width=width,
        encoding=encoding,
        normalization=normalization,
        modulation=modulators,
        sparsity=sparsity,
        readout=readout,
        trained=groups,
        scale=scale,
        weight_std=weight_std,
        bias_std=bias_std,
        output_bias=output_bias,
        param_dtype=param_dtype,
    )


def _modulators(modulation: Any) -> tuple[FourierModulation, ...]:
    if modulation is None:
        return ()
    several = (modulation,) if isinstance(modulation, nn.Module) else tuple(modulation)
    for modulator in several:
        if not isinstance(modulator, FourierModulation):
            raise TypeError(
                f"modulation holds {modulator!r}; expected ni.FourierModulation(omega), whose moments are known, or a "
                "sequence of them."
            )
    # Linen draws one instance once, however often it is listed: copies are independent.
    return tuple(modulator.clone(name=f"modulation_{i}") for i, modulator in enumerate(several))


def _check_parts(encoding: Any, normalization: Any, sparsity: Any) -> None:
    if encoding is not None and not isinstance(encoding, nn.Module):
        raise TypeError(
            f"encoding is {encoding!r}; expected a Flax Linen module such as ni.NeRFEncoding(bands=4), or None."
        )
    if normalization is not None and not isinstance(normalization, Sphere):
        raise TypeError(
            f"normalization is {normalization!r}; expected ni.Sphere(placement=...) or None. LayerNorm subtracts the "
            'mean over units, which with a constant readout leaves f = 0; Sphere(placement="hidden_pre") is its limit '
            "where the pre-activations have mean zero."
        )
    if sparsity is not None and not isinstance(sparsity, TopK):
        raise TypeError(f"sparsity is {sparsity!r}; expected ni.TopK(k=...) or None.")


def _groups(trained: Any, modulation: tuple[FourierModulation, ...], *, has_bias: bool) -> tuple[Group, ...]:
    groups = (trained,) if isinstance(trained, str) else tuple(trained)
    for group in groups:
        _checks.check_choice(group, get_args(Group), "group in trained")
    if "bias" in groups and not has_bias:
        raise ValueError('trained names "bias" but bias_std is None, so there is none; pass bias_std=1.0.')
    if not groups and not any(modulator.trained for modulator in modulation):
        raise ValueError(
            f"trained is {trained!r}, so nothing would be trained; name one or more of {', '.join(get_args(Group))}."
        )
    return groups
