"""Multiplicative filter networks: FourierNet, GaborNet and BACON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr.networks import trig
from ntk_inr.networks.dense import PARAMETERIZATIONS, Dense
from ntk_inr.networks.encodings import CONSTANTS
from ntk_inr.networks.fields import real, whole, word
from ntk_inr.networks.initializers import BIAS_UNIFORM, Law
from ntk_inr.networks.modulation import squared_distances
from ntk_inr.networks.products import Precision, check_precision, of_coordinates


class FilterNetwork(nn.Module):
    r"""Share what multiplicative filter networks have in common, (6.6).

    .. math:: z_1 = g_1(x), \quad z_{l+1} = (W_lz_l + b_l)\circ g_{l+1}(x), \quad f = Wz_L + b

    There is no other nonlinearity. Subclasses give the filters g.

    Attributes:
        features: number of filters of each layer.
        depth: number of layers L, each with filters of its own; the reference code's ``n_layers`` is L - 1.
        out: number of outputs c.
        weight_scale: s, for hidden weights :math:`U(\pm\sqrt{s/m})`. The readout's are :math:`U(\pm1/\sqrt m)` whatever
            it is, as in the reference code, and all biases have that law.
        trained: train the filters too.
        parameterization: of W and b, "standard" or "ntk"; see :class:`~ntk_inr.networks.Dense`.
        param_dtype: dtype that parameters are drawn in.
        precision: of the products of hidden layers and of the readout; see :class:`~ntk_inr.CoordinateMLP`.

    Raises:
        ValueError: a size below 1, a scale not above 0, or an unknown parameterization or precision.

    Source: Fathony et al. 2021, Multiplicative Filter Networks (ICLR, openreview OmtmcPkkhT), and its
    reference code for the laws.
    """

    features: int = whole(256)
    depth: int = whole(4)
    out: int = 1
    weight_scale: float = real(1.0)
    trained: bool = True
    parameterization: Literal["standard", "ntk"] = "standard"
    param_dtype: Any = jnp.float32
    precision: Precision | None = word(None, Precision)

    def __post_init__(self) -> None:
        for name in ("features", "depth", "out"):
            _checks.check_positive(getattr(self, name), name, integer=True)
        _checks.check_positive(self.weight_scale, "weight_scale")
        _checks.check_choice(self.parameterization, PARAMETERIZATIONS, "parameterization")
        check_precision(self.precision)
        super().__post_init__()

    def law(self, *, readout: bool = False) -> Law:
        """Return the law of the hidden weights, or of the readout's."""
        return BIAS_UNIFORM if readout else Law(self.weight_scale / 3, "uniform")

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n out"]:
        """Return the network's values at coordinates ``x``, shape (n, out)."""
        z = self.filter(x, 0)
        for layer in range(1, self.depth):
            z = self.affine(self.features, f"hidden_{layer}")(z) * self.filter(x, layer)
        return self.affine(self.out, "readout", readout=True)(z)

    def filter(self, x: Array, layer: int) -> Array:
        """Return the filters of a layer, (n, features)."""
        raise NotImplementedError(f"{type(self).__name__} defines no filters; use FourierNet, GaborNet or BACON.")

    def affine(self, features: int, name: str, *, readout: bool = False) -> Dense:
        """Return the affine map of a layer."""
        return Dense(
            features,
            self.law(readout=readout),
            BIAS_UNIFORM,
            parameterization=self.parameterization,
            param_dtype=self.param_dtype,
            precision=self.precision,
            readout=readout,
            name=name,
        )

    def entry(self, name: str, draw: Any, *, trained: bool) -> Array:
        """Return an array of a filter, from the parameters where ``trained``, else from the "constants" collection."""
        if trained:
            return self.param(name, draw)
        return self.variable(CONSTANTS, name, lambda: draw(self.make_rng("params"))).value

    def waves(self, x: Array, layer: int, frequency: Any, *, trained: bool) -> Array:
        """Return sines of the frequencies that ``frequency(key)`` draws, (d, features), at phases U(-pi, pi)."""

        def phase(key: Array) -> Array:
            return jax.random.uniform(key, (self.features,), self.param_dtype, -jnp.pi, jnp.pi)

        omega = self.entry(f"frequency_{layer}", frequency, trained=trained).astype(x.dtype)
        return trig.sin(
            of_coordinates(x, omega)
            + self.entry(f"phase_{layer}", phase, trained=self.trained).astype(x.dtype)[None, :]
        )

    def uniform(self, key: Array, x: Array, scale: float) -> Array:
        """Return uniform frequencies (d, features), bounded so that the sum over all layers has the size ``scale``."""
        reach = scale / (x.shape[1] * self.depth) ** 0.5
        return jax.random.uniform(key, (x.shape[1], self.features), self.param_dtype, -reach, reach)


class FourierNet(FilterNetwork):
    r"""Filters :math:`\sin(\omega^\top x + \phi)`, so that the network is a sum of sines.

    .. math:: \omega_t \sim U(\pm s/\sqrt{dL}), \qquad \phi \sim U(\pm\pi)

    Sizes and laws of the layers are set as in :class:`~ntk_inr.networks.filter_networks.FilterNetwork`.

    Attributes:
        scale: s, radians per unit length.

    Raises:
        ValueError: a scale or a size out of range.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> apply, params = ni.init(FourierNet(features=32, depth=3), jax.random.key(0), jnp.zeros((1, 2)))
        >>> apply(params, jnp.zeros((5, 2))).shape
        (5, 1)

    Source: Fathony et al. 2021 (openreview OmtmcPkkhT), section 3.1.
    """

    scale: float = real(256.0)

    def __post_init__(self) -> None:
        _checks.check_positive(self.scale, "scale")
        super().__post_init__()

    def filter(self, x: Array, layer: int) -> Array:
        """Return the filters of a layer, (n, features)."""
        return self.waves(x, layer, lambda key: self.uniform(key, x, self.scale), trained=self.trained)


class GaborNet(FilterNetwork):
    r"""Filters :math:`e^{-\frac\gamma2\lVert x-\mu\rVert^2}\sin(\omega^\top x + \phi)`, waves under windows.

    .. math:: \gamma \sim \Gamma(\alpha/L, \beta), \quad \mu \sim U[-1, 1]^d,
        \quad \omega_t \sim \sqrt\gamma\,U(\pm s/\sqrt{dL}), \quad \phi \sim U(\pm\pi)

    Sizes and laws of the layers are set as in :class:`~ntk_inr.networks.filter_networks.FilterNetwork`.

    Attributes:
        scale: s, radians per unit length where gamma is 1.
        alpha: shape of gamma's law, for all layers together.
        beta: its rate.

    Raises:
        ValueError: scale, alpha, beta or a size out of range.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> apply, params = ni.init(GaborNet(features=32, depth=3), jax.random.key(0), jnp.zeros((1, 2)))
        >>> apply(params, jnp.zeros((5, 2))).shape
        (5, 1)

    Source: Fathony et al. 2021 (openreview OmtmcPkkhT), section 3.2.
    """

    scale: float = real(256.0)
    alpha: float = real(6.0)
    beta: float = real(1.0)

    def __post_init__(self) -> None:
        for name in ("scale", "alpha", "beta"):
            _checks.check_positive(getattr(self, name), name)
        super().__post_init__()

    def filter(self, x: Array, layer: int) -> Array:
        """Return the filters of a layer, (n, features)."""

        def sharpness(key: Array) -> Array:
            return jax.random.gamma(key, self.alpha / self.depth, (self.features,), self.param_dtype) / self.beta

        def centre(key: Array) -> Array:
            return jax.random.uniform(key, (self.features, x.shape[1]), self.param_dtype, -1.0, 1.0)

        gamma = self.entry(f"sharpness_{layer}", sharpness, trained=self.trained)
        mu = self.entry(f"centre_{layer}", centre, trained=self.trained)

        def frequency(key: Array) -> Array:
            return jnp.sqrt(gamma)[None, :] * self.uniform(key, x, self.scale)

        waves = self.waves(x, layer, frequency, trained=self.trained)
        gamma, mu = gamma.astype(x.dtype), mu.astype(x.dtype)
        return waves * jnp.exp(-gamma[None, :] / 2 * squared_distances(x, mu))


class BACON(FilterNetwork):
    r"""A Fourier network whose frequencies are fixed multiples of pi, so that its layers have known band limits.

    The frequencies of layer l are uniform on the multiples of pi up to :math:`2\pi B_l`, for
    :math:`B_l = s_lB` rounded to halves, so a network of period 2 in each coordinate; what layer l gives has none
    above :math:`\sum_{j\le l} B_j` cycles per unit length. Phases are trained, weights are
    :math:`U(\pm\sqrt{6/m})`, the readout's too, which keeps the variance of z. The other settings are as in
    :class:`~ntk_inr.networks.filter_networks.FilterNetwork`.

    Attributes:
        bandwidth: B, cycles per unit length; N/4 is the Nyquist limit of N samples over [-1, 1], so that the reference
            code's ``frequency`` is 4 B.
        scales: layers that have a readout of their own, 1 to L; their values stand side by side, (n, len(scales) c),
            coarse to fine. None is the last layer alone.
        input_scales: the part of the bandwidth that each layer has, :math:`s_1 \dots s_L`; for images the reference
            code has (1/8, 1/8, 1/4, 1/4, 1/4) with readouts after layers 2, 3 and 5. None is 1/L for each.

    Raises:
        ValueError: a bandwidth of which a layer's part rounds to 0, scales that are not layers in rising
            order, or input_scales that are not L numbers above 0.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> net = BACON(features=32, depth=4, bandwidth=8.0, scales=(2, 4))
        >>> apply, params = ni.init(net, jax.random.key(0), jnp.zeros((1, 2)))
        >>> apply(params, jnp.zeros((5, 2))).shape
        (5, 2)

    Source: Lindell et al. 2022, arXiv 2112.04645.
    """

    weight_scale: float = real(6.0)
    bandwidth: float = real(16.0)
    scales: Sequence[int] | None = None
    input_scales: Sequence[float] | None = None

    def __post_init__(self) -> None:
        _checks.check_positive(self.bandwidth, "bandwidth")
        super().__post_init__()
        if self.input_scales is not None:
            if len(self.input_scales) != self.depth:
                raise ValueError(
                    f"input_scales has {len(self.input_scales)} entries for {self.depth} layers; expected one for each."
                )
            for scale in self.input_scales:
                _checks.check_positive(scale, "an entry of input_scales")
        if min(self.steps) < 1:
            bound = 1 / (4 * min(self.input_scales or [1 / self.depth]))
            raise ValueError(
                f"bandwidth is {self.bandwidth} for {self.depth} layers; expected more than {bound:g}, so that "
                "no layer's part rounds to 0 cycles."
            )
        chosen = self.readouts
        if list(chosen) != sorted(set(chosen)) or not chosen or chosen[0] < 1 or chosen[-1] > self.depth:
            raise ValueError(f"scales is {self.scales!r}; expected layers from 1 to {self.depth} in rising order.")

    @property
    def steps(self) -> tuple[int, ...]:
        """The highest frequency of each layer, in units of pi."""
        scales = self.input_scales or [1 / self.depth] * self.depth
        return tuple(round(2 * self.bandwidth * scale) for scale in scales)

    @property
    def readouts(self) -> tuple[int, ...]:
        """The layers that have a readout, the first being 1."""
        return (self.depth,) if self.scales is None else tuple(self.scales)

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n values"]:
        """Return the values of each readout at coordinates ``x``, shape (n, len(scales) out)."""
        z, values = self.filter(x, 0), []
        for layer in range(1, self.readouts[-1] + 1):
            if layer > 1:
                z = self.affine(self.features, f"hidden_{layer - 1}")(z) * self.filter(x, layer - 1)
            if layer in self.readouts:
                values.append(self.affine(self.out, f"readout_{layer}", readout=True)(z))
        return jnp.concatenate(values, axis=-1)

    def law(self, *, readout: bool = False) -> Law:
        """Return the law of the hidden weights and of the readout's."""
        return super().law()

    def filter(self, x: Array, layer: int) -> Array:
        """Return the filters of a layer, (n, features)."""

        def frequency(key: Array) -> Array:
            most = self.steps[layer]
            steps = jax.random.randint(key, (x.shape[1], self.features), -most, most + 1)
            return (jnp.pi * steps).astype(self.param_dtype)

        return self.waves(x, layer, frequency, trained=False)
