"""The named variants: what the paper, the command line and the benchmarks compare."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn

from ntk_inr import _checks
from ntk_inr.networks.activations import Gauss, Sine
from ntk_inr.networks.encodings import GaussianFourier, NeRFEncoding, OneBlob, TriangleWave
from ntk_inr.networks.film import FiLM
from ntk_inr.networks.filter_networks import BACON, FourierNet, GaborNet
from ntk_inr.networks.hash_grid import HashGrid
from ntk_inr.networks.mlp import CoordinateMLP
from ntk_inr.networks.modulated_sines import Finer
from ntk_inr.networks.modulation import FourierModulation, GaborModulation, MLPModulation
from ntk_inr.networks.normalization import Sphere
from ntk_inr.networks.settings import names_like, with_settings, words_of
from ntk_inr.networks.sparsity import TopK
from ntk_inr.networks.wire import Wire


@dataclasses.dataclass(frozen=True)
class Variant:
    """A named architecture: a line about it, and what builds it from features, depth and out."""

    summary: str
    build: Callable[..., nn.Module]


def _mlp(summary: str, **settings: Any) -> Variant:
    return Variant(summary, functools.partial(CoordinateMLP, **settings))


def _sparse(summary: str, **gate: Any) -> Variant:
    """Return pe with a gate on a quarter of the units."""

    def build(features: int, **settings: Any) -> nn.Module:
        own = {"encoding": _PE, "sparsity": TopK(k=max(1, features // 4), **gate), **settings}
        return CoordinateMLP(features=features, **own)

    return Variant(summary, build)


_PE = NeRFEncoding(bands=6)
_RFF = GaussianFourier(features=128, scale=4.0)
_SPHERE = Sphere(placement="hidden_post")
_HADAMARD = FourierModulation(omega=10.0)

VARIANTS: dict[str, Variant] = {
    "relu": _mlp("ReLU network on raw coordinates"),
    "relu+hadamard": _mlp("ReLU, hidden layers times fixed Fourier features", modulation=_HADAMARD),
    "pe": _mlp("NeRF positional encoding, 6 octaves, then ReLU", encoding=_PE),
    "pe+sphere": _mlp("pe, hidden layers normalised to a sphere", encoding=_PE, normalization=_SPHERE),
    "pe+layer": _mlp("pe, pre-activations normalised by layer", encoding=_PE, normalization="layer"),
    "pe+batch": _mlp("pe, pre-activations normalised by batch", encoding=_PE, normalization="batch"),
    "pe+weight": _mlp("pe, weights normalised", encoding=_PE, normalization="weight"),
    "pe+hadamard": _mlp("pe, hidden layers times fixed Fourier features", encoding=_PE, modulation=_HADAMARD),
    "pe+sphere+hadamard": _mlp(
        "pe, modulated, then normalised", encoding=_PE, normalization=_SPHERE, modulation=_HADAMARD
    ),
    "pe+gabor": _mlp("pe, hidden layers times fixed Gabor filters", encoding=_PE, modulation=GaborModulation()),
    "pe+modulator": _mlp("pe, hidden layers times those of a second network", encoding=_PE, modulation=MLPModulation()),
    "pe+topk": _sparse("pe, a quarter of the units passes"),
    "pe+topk+sphere": _sparse("pe, a quarter of the units passes, on a sphere (TopK-SP)", mode="sphere"),
    "pe+topk+soft": _sparse("pe, a soft gate on a quarter of the units", mode="soft", temperature=0.1),
    "rff": _mlp("random Fourier features, sigma 4, then ReLU", encoding=_RFF),
    "rff+learned": _mlp(
        "rff, the frequencies trained", encoding=GaussianFourier(features=128, scale=4.0, trained=True)
    ),
    "triangle": _mlp("triangle waves, 6 octaves, then ReLU", encoding=TriangleWave(bands=6)),
    "oneblob": _mlp("one-blob encoding, 32 bins a coordinate, then ReLU", encoding=OneBlob(bins=32)),
    "hash": _mlp("multiresolution hash grid, 8 levels, then ReLU", encoding=HashGrid(levels=8, log2_size=12, base=8)),
    "siren": _mlp("sine activations, omega 30, SIREN initialisation", activation="sine"),
    "siren+fast": _mlp("siren, first omega 3000, for audio", activation=Sine(first_omega=3000.0)),
    "siren+film": _mlp("siren, modulated by a trained latent code", activation="sine", modulation=FiLM(latent=64)),
    "finer": _mlp("sines of growing frequency, omega 30, first biases up to 1", activation=Finer(bias_spread=1.0)),
    "spder": _mlp("damped sines, omega 30", activation="spder"),
    "hosc": _mlp("sharpened sines, omega 30, beta 8", activation="hosc"),
    "sinc": _mlp("cardinal sines, omega 30", activation="sinc"),
    "gauss": _mlp("Gaussian bumps, exp(-(30 u)^2)", activation=Gauss(width=1 / (30 * 2**0.5))),
    "quadratic": _mlp("bumps with long tails, 1 / (1 + (10 u)^2)", activation="quadratic"),
    "gabor": _mlp("real Gabor wavelets of one map, omega 20, scale 10", activation="gabor"),
    "tanh": _mlp("tanh network on raw coordinates", activation="tanh"),
    "gelu": _mlp("GELU network on raw coordinates", activation="gelu"),
    "wire": Variant("complex Gabor wavelets, omega 20, scale 10 (WIRE)", Wire),
    "wire2d": Variant("wire under windows of two dimensions (WIRE-2D)", functools.partial(Wire, wavelet="complex2d")),
    "wire+real": Variant(
        "real Gabor wavelets, wave and window of two maps (WIRE's real layer)", functools.partial(Wire, wavelet="real")
    ),
    "fouriernet": Variant("multiplicative Fourier filters, scale 64", functools.partial(FourierNet, scale=64.0)),
    "gabornet": Variant("multiplicative Gabor filters, scale 64", functools.partial(GaborNet, scale=64.0)),
    "bacon": Variant("band-limited multiplicative filters, 16 cycles a unit", functools.partial(BACON, bandwidth=16.0)),
}


def variants() -> dict[str, str]:
    """Return the named variants as ``{name: what it is}``.

    Example:
        >>> variants()["relu"]
        'ReLU network on raw coordinates'
    """
    return {name: entry.summary for name, entry in VARIANTS.items()}


def variant(name: str, *, features: int = 256, depth: int = 4, out: int = 1, **settings: Any) -> nn.Module:
    """Build a named variant.

    Args:
        name: one of :func:`variants`, and settings of it as :func:`settings_of` has them, by their full or short names:
            "siren:omega=10", "rff:scale=4,depth=3"; "siren:precision=bfloat16" for the settings that are words.
        features: width of the hidden layers.
        depth: number of hidden layers.
        out: number of outputs.
        **settings: further fields of the network, in place of the variant's own.

    Returns:
        A Flax Linen module from (n, d) to (n, out).

    Raises:
        ValueError: an unknown name or setting, with the nearest; a short name that several settings have; a setting
            that is no number, or no word that it may be.

    Example:
        >>> variant("siren", features=64, depth=3).activation
        'sine'
        >>> variant("siren:omega=10").activation.omega
        10
    """
    name, values = parse(name)
    _checks.check_choice(name, VARIANTS, "variant")
    net = VARIANTS[name].build(features=features, depth=depth, out=out, **settings)
    words = words_of(net)
    for setting, value in values.items():
        if isinstance(value, str) and not names_like(words, setting, alias=False):
            raise _no_number(name, setting, value)
    return with_settings(net, values)


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings that a text such as "rff:scale=4,depth=3" names.

    Raises:
        ValueError: a setting without a value, or with one that is neither a number nor a word.

    Example:
        >>> parse("rff:scale=4,depth=3")
        ('rff', {'scale': 4, 'depth': 3})
    """
    name, colon, settings = text.partition(":")
    values: dict[str, Any] = {}
    for setting in settings.split(",") if colon else ():
        key, _, value = (part.strip() for part in setting.partition("="))
        try:
            values[key] = int(value) if value.lstrip("+-").isdecimal() else float(value)
        except ValueError:
            if not value.isidentifier():
                raise _no_number(name, key, value) from None
            values[key] = value
    return name, values


def _no_number(name: str, setting: str, value: str) -> ValueError:
    written = f"{setting}={value}" if value else setting
    return ValueError(
        f"variant {name!r} has the setting {written!r}; write name=number, such as {name}:features=128,depth=3."
    )


def written(name: str, settings: Mapping[str, Any]) -> str:
    """Return the text that :func:`variant` builds the network with these settings from.

    Example:
        >>> written("rff", {"encoding.scale": 4.0}), written("rff:depth=3", {"features": 64}), written("relu", {})
        ('rff:encoding.scale=4.0', 'rff:depth=3,features=64', 'relu')
    """
    numbers = ",".join(f"{key}={value}" for key, value in settings.items())
    return f"{name}{',' if ':' in name else ':'}{numbers}" if numbers else name


def networks_of(
    variants: str | nn.Module | Sequence[str] | Mapping[str, nn.Module],
    *,
    features: int = 256,
    depth: int = 4,
    out: int = 1,
) -> dict[str, nn.Module]:
    """Return networks by name, from names as :func:`variant` takes them, a module, or modules by names of one's own.

    Raises:
        ValueError: none, one named twice, or a name that is unknown.

    Example:
        >>> {name: net.features for name, net in networks_of(["relu", "siren:features=64"]).items()}
        {'relu': 256, 'siren:features=64': 64}
    """
    if isinstance(variants, Mapping):
        networks = dict(variants)
    elif isinstance(variants, nn.Module):
        networks = {type(variants).__name__: variants}
    else:
        names = [variants] if isinstance(variants, str) else list(variants)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"variants names {', '.join(repeated)} more than once; name each once.")
        networks = {name: variant(name, features=features, depth=depth, out=out) for name in names}
    if not networks:
        raise ValueError("variants is empty; name at least one, such as 'relu' (ni.variants() lists them).")
    return networks
