"""The closed forms of two-layer networks against the golden values, and against networks that were drawn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from ntk_inr.networks.two_layer import two_layer_network
from ntk_inr.variance.gates import Threshold
from ntk_inr.variance.soft_gates import soft_gates
from ntk_inr.variance.two_layer import two_layer_moments


class Lift(nn.Module):
    """[x, 1]: the lift of the golden values."""

    @nn.compact
    def __call__(self, x):
        return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)


def sphere(placement, radius=None):
    """A sphere whose epsilon counts for nothing, as in the theory."""
    return ni.Sphere(placement=placement, radius=radius, epsilon=1e-12)


FOURIER = ni.FourierModulation(4.0)
# TopK's own sphere has an epsilon of 1e-6: large weights leave nothing of it, and scale the kernel by 1e-4.
LARGE = {"weight_std": 100.0, "width": 64, "limit": True}
LIFTED = {"encoding": Lift()}
GOLDEN = {
    "baseline": (LIFTED, 0.83796296, 30.333040, 6.5725, 69.608998),
    "sphere on input": (LIFTED | {"normalization": sphere("input", 1.0)}, 0.5, 11.488755, 6.7790, 73.737335),
    "sphere after": (LIFTED | {"normalization": sphere("hidden_post")}, 1.0, 45.955020, 6.7790, 73.737335),
    "sphere before": (LIFTED | {"normalization": sphere("hidden_pre")}, 0.5, 11.488755, 6.7790, 73.737335),
    "sphere after, constant": (
        LIFTED | {"normalization": sphere("hidden_post"), "readout": "constant"},
        *(0.36338023, 3.1115736, 4.8543, 47.935589),
    ),
    "sphere before, constant": (
        LIFTED | {"normalization": sphere("hidden_pre"), "readout": "constant"},
        *(0.34084506, 5.3679873, 6.7975, 75.220286),
    ),
    "NeRF": ({"encoding": ni.NeRFEncoding(bands=3)}, 3.0, 31.289683, 1.8646, 7.1944264),
    "Hadamard": (LIFTED | {"modulation": FOURIER}, 0.83796296, 3.0752787, 2.0928, 10.844014),
    "Hadamard three times": (LIFTED | {"modulation": [FOURIER] * 3}, 0.83796296, 0.81693380, 1.0786, 4.8080830),
    "Hadamard trained": (
        LIFTED | {"modulation": ni.FourierModulation(4.0, trained=True)},
        *(12.258573, 903.92475, 2.4526, 16.023475),
    ),
    "both layers": (LIFTED | {"trained": ("weights", "readout")}, 1.6759259, 159.71991, 7.5409, 84.974041),
    "TopK": (
        LIFTED | {"normalization": sphere("input", 1.0), "sparsity": ni.TopK(k=8), "width": 64, "limit": True},
        *(0.125, 0.46362095, 5.4472, 55.327394),
    ),
    "TopK-SP": (
        LIFTED | LARGE | {"sparsity": ni.TopK(k=8, mode="sphere")},
        *(0.34549142e-4, 3.5417473e-8, 5.4472, 55.327394),
    ),
    "TopK-SP, constant": (
        LIFTED | LARGE | {"sparsity": ni.TopK(k=8, mode="sphere"), "readout": "constant"},
        *(0.021770213e-4, 0.0071264682e-8, 3.8777, 33.307137),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(x64, name):
    settings, mean, variance, cv, largest = GOLDEN[name]
    side = -1 + 2 * np.arange(12) / 12
    grid = jnp.asarray(np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2))
    m = two_layer_moments(grid, **settings)
    assert m.status == "limit"
    np.testing.assert_allclose(float(m.mean), mean, rtol=1e-6)
    np.testing.assert_allclose(float(m.variance), variance, rtol=1e-6)
    np.testing.assert_allclose(float(m.cv), cv, rtol=1e-5)
    np.testing.assert_allclose(float(jnp.linalg.eigvalsh(m.kernel)[-1] / m.mean), largest, rtol=1e-6)
    moments = ni.moments(m.kernel)
    np.testing.assert_allclose(float(m.effective_rank), float(moments.effective_rank), rtol=1e-9)


@pytest.fixture
def points():
    """Coordinates of different norms, not on a sphere, not symmetric."""
    scattered = np.random.default_rng(0).uniform(-1, 1, (9, 2))
    return jnp.asarray(np.concatenate([scattered, np.full((9, 1), 0.6)], axis=1), jnp.float32)


def drawn(net, x, seeds, key=0):
    """Return mean and variance of the eigenvalues over networks that were drawn, (2,), and standard errors."""

    @jax.jit
    @jax.vmap
    def one(key):
        return jnp.stack(ni.moments(ni.ntk(*ni.init(net, key, x), x))[:2])

    found = np.asarray(one(jax.random.split(jax.random.key(key), seeds)), np.float64)
    return found.mean(axis=0), found.std(axis=0) / seeds**0.5


def predicted(m):
    return np.array([float(m.mean), float(m.variance)])


SLOW = ni.FourierModulation(1.5)
BOTH = ("weights", "readout")
EVERY = ("weights", "bias", "readout")
# By settings: the width, and whether the limit is far enough from the truth there to be told apart.
EXACT = {
    "baseline": ({}, 8, True),
    "normal readout": ({"readout": "normal", "scale": 1.3}, 24, True),
    "all groups": (
        {"readout": "normal", "trained": EVERY, "bias_std": 0.5, "scale": 0.9, "weight_std": 1.3, "output_bias": 0.5},
        *(16, False),
    ),
    "constant readout, both layers": ({"readout": "constant", "trained": BOTH}, 16, True),
    "bias alone": ({"trained": ("bias",), "bias_std": 0.3}, 16, True),
    "sphere on input": ({"normalization": ni.Sphere("input", radius=1.3), "trained": BOTH}, 16, True),
    "NeRF": ({"encoding": ni.NeRFEncoding(bands=2)}, 16, True),
    "Hadamard": ({"modulation": SLOW}, 16, True),
    "Hadamard twice, both layers": ({"modulation": [SLOW, ni.FourierModulation(0.7)], "trained": BOTH}, 24, True),
    "Hadamard trained alone": ({"modulation": ni.FourierModulation(1.2, trained=True), "trained": ()}, 24, True),
    "everything trained": (
        {
            "modulation": [ni.FourierModulation(1.2, trained=True), SLOW, ni.FourierModulation(0.6, trained=True)],
            "trained": EVERY,
            "bias_std": 0.4,
        },
        *(48, True),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_independent_units_are_exact_in_expectation(points, name):
    settings, width, far = EXACT[name]
    m = two_layer_moments(points, width=width, **settings)
    assert (m.status, m.condition) == ("expectation", "")
    found, error = drawn(two_layer_network(width, **settings), points, 6000)
    assert (np.abs(predicted(m) - found) < 4 * error).all(), (predicted(m), found, error)
    if far:
        limit = two_layer_moments(points, **settings)
        assert abs(float(limit.variance) - found[1]) > 6 * error[1]
