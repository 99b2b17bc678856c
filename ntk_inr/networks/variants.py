"""The named variants: what the paper, the command line and the benchmarks compare."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from ntk_inr import _checks
from ntk_inr.networks.encodings import GaussianFourier, NeRFEncoding
from ntk_inr.networks.mlp import CoordinateMLP
from ntk_inr.networks.modulation import FourierModulation
from ntk_inr.networks.normalization import Sphere


@dataclasses.dataclass(frozen=True)
class Variant:
    """A named architecture: a line about it, and what builds it from features, depth and out."""

    summary: str
    build: Callable[..., nn.Module]


def _mlp(summary: str, **settings: Any) -> Variant:
    return Variant(summary, functools.partial(CoordinateMLP, **settings))


_PE = NeRFEncoding(bands=6)
_SPHERE = Sphere(placement="hidden_post")
_HADAMARD = FourierModulation(omega=10.0)

VARIANTS: dict[str, Variant] = {
    "relu": _mlp("ReLU network on raw coordinates"),
    "relu+hadamard": _mlp("ReLU, hidden layers times fixed Fourier features", modulation=_HADAMARD),
    "pe": _mlp("NeRF positional encoding, 6 octaves, then ReLU", encoding=_PE),
    "pe+sphere": _mlp("pe, hidden layers normalised to a sphere", encoding=_PE, normalization=_SPHERE),
    "pe+hadamard": _mlp("pe, hidden layers times fixed Fourier features", encoding=_PE, modulation=_HADAMARD),
    "pe+sphere+hadamard": _mlp(
        "pe, modulated, then normalised", encoding=_PE, normalization=_SPHERE, modulation=_HADAMARD
    ),
    "rff": _mlp("random Fourier features, sigma 4, then ReLU", encoding=GaussianFourier(features=128, scale=4.0)),
    "siren": _mlp("sine activations, omega 30, SIREN initialisation", activation="sine"),
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
        name: one of :func:`variants`.
        features: width of the hidden layers.
        depth: number of hidden layers.
        out: number of outputs.
        **settings: further fields of the network, in place of the variant's own.

    Returns:
        A Flax Linen module from (n, d) to (n, out).

    Raises:
        ValueError: unknown name; the message suggests the nearest.

    Example:
        >>> variant("siren", features=64, depth=3).activation
        'sine'
    """
    _checks.check_choice(name, VARIANTS, "variant")
    return VARIANTS[name].build(features=features, depth=depth, out=out, **settings)
