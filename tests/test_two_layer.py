"""The closed forms of two-layer networks against the golden values, and against networks that were drawn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from ntk_inr.closed_forms import two_layer
from ntk_inr.closed_forms.gates import Threshold
from ntk_inr.closed_forms.two_layer import two_layer_moments
from ntk_inr.infinite.soft_gates import soft_gates
from ntk_inr.networks.two_layer import two_layer_network
from tests.conftest import quick


class Lift(nn.Module):
    """[x, 1]: the lift of the golden values."""

    @nn.compact
    def __call__(self, x):
        return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)


def sphere(placement, radius=None):
    """A sphere whose epsilon counts for nothing, as in the theory."""
    return ni.Sphere(placement=placement, radius=radius, epsilon=1e-12)


SIDE = -1 + 2 * np.arange(12) / 12
GRID = np.stack(np.meshgrid(SIDE, SIDE, indexing="ij"), axis=-1).reshape(-1, 2)
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


@pytest.mark.parametrize("name", quick(GOLDEN, "baseline", "sphere after", "NeRF", "Hadamard", "TopK", "TopK-SP"))
def test_golden_values(x64, name):
    settings, mean, variance, cv, largest = GOLDEN[name]
    m = two_layer_moments(GRID, **settings)
    assert m.status == "limit"
    np.testing.assert_allclose(float(m.mean), mean, rtol=1e-6)
    np.testing.assert_allclose(float(m.variance), variance, rtol=1e-6)
    np.testing.assert_allclose(float(m.cv), cv, atol=5.1e-5)
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
        m = ni.moments(ni.ntk(*ni.init(net, key, x), x))
        return jnp.stack([m.mean, m.variance])

    found = np.asarray(one(jax.random.split(jax.random.key(key), seeds)), np.float64)
    return found.mean(axis=0), found.std(axis=0) / seeds**0.5


def predicted(m):
    return np.array([float(m.mean), float(m.variance)])


SLOW = ni.FourierModulation(1.5)
BOTH = ("weights", "readout")
EVERY = ("weights", "bias", "readout")
EXACT = {
    "baseline": ({}, 8),
    "sphere on input, constant readout, both layers": (
        {"normalization": ni.Sphere("input", radius=1.3), "readout": "constant", "trained": BOTH},
        16,
    ),
    "NeRF, all groups": (
        {
            "encoding": ni.NeRFEncoding(bands=2),
            "readout": "normal",
            "trained": EVERY,
            "bias_std": 0.5,
            "scale": 0.9,
            "weight_std": 0.7,
            "output_bias": 0.5,
        },
        12,
    ),
    "Hadamard twice, both layers": ({"modulation": [SLOW, ni.FourierModulation(0.7)], "trained": BOTH}, 24),
    "everything trained": (
        {
            "modulation": [ni.FourierModulation(1.2, trained=True), SLOW, ni.FourierModulation(0.6, trained=True)],
            "trained": EVERY,
            "bias_std": 0.4,
        },
        48,
    ),
}


@pytest.mark.parametrize("name", quick(EXACT, "everything trained"))
def test_independent_units_are_exact_in_expectation(points, name):
    settings, width = EXACT[name]
    m = two_layer_moments(points, width=width, **settings)
    assert (m.status, m.condition) == ("expectation", "")
    found, error = drawn(two_layer_network(width, **settings), points, 5000)
    assert (np.abs(predicted(m) - found) < 4 * error).all(), (predicted(m), found, error)
    limit = two_layer_moments(points, **settings)
    assert abs(float(limit.variance) - found[1]) > 5 * error[1]


TOPK = ni.TopK(k=32)
FIRST_ORDER = {
    "TopK": ({"sparsity": ni.TopK(k=8)}, 64),
    "TopK, modulated": (
        {"sparsity": TOPK, "modulation": SLOW, "readout": "normal", "bias_std": 0.5, "trained": ("weights", "bias")},
        128,
    ),
    "sphere after, modulated": (
        {
            "normalization": ni.Sphere("hidden_post", radius=2.0),
            "modulation": SLOW,
            "readout": "normal",
            "bias_std": 0.5,
        },
        256,
    ),
    "sphere before, modulated": (
        {"normalization": ni.Sphere("hidden_pre"), "modulation": [SLOW, SLOW], "readout": "constant"},
        128,
    ),
    "TopK-SP, modulated": ({"sparsity": ni.TopK(k=64, mode="sphere"), "modulation": SLOW}, 256),
    "random encoding, TopK": ({"encoding": ni.GaussianFourier(features=16, scale=0.3), "sparsity": TOPK}, 128),
}


@pytest.mark.parametrize("name", quick(FIRST_ORDER, "TopK-SP, modulated"))
def test_tied_units_and_random_encodings_are_right_to_first_order(points, name):
    settings, width = FIRST_ORDER[name]
    m = two_layer_moments(points, width=width, **settings)
    assert m.status == "asymptotic"
    assert m.condition
    found, error = drawn(two_layer_network(width, **settings), points, 2500)
    off = np.abs(predicted(m) - found)
    assert (off < 4 * error + [0.002 * found[0], 0.02 * found[1]]).all(), (predicted(m), found, error)
    if settings.get("modulation"):
        limit = two_layer_moments(points, width=width, limit=True, **settings)
        assert off[1] < abs(float(limit.variance) - found[1]) / 2


def test_fixed_supports_fluctuate_less_than_binomial_ones(points):
    """(7.6); the test above holds the prediction to 2 % of networks that were drawn."""
    exact, limit = (two_layer_moments(points, width=64, sparsity=ni.TopK(k=8), limit=far) for far in (False, True))
    rho = np.asarray(points @ points.T)
    overlap = np.asarray(limit.kernel) / rho
    binomial = float(limit.variance) + (rho**2 * overlap * (1 - overlap)).sum() / 64 / len(points)
    assert binomial > 1.05 * float(exact.variance)


SOFT = {"k": 128, "mode": "soft", "temperature": 0.3}
# Each with the settings of a network that it could be mistaken for.
LIMITS = {
    "sphere after, constant": (
        {"normalization": ni.Sphere("hidden_post"), "readout": "constant", "trained": BOTH},
        {"readout": "signs"},
    ),
    "TopK-SP, constant": ({"sparsity": ni.TopK(k=256, mode="sphere"), "readout": "constant"}, {"readout": "signs"}),
    "TopK of a sphere, constant": (
        {"sparsity": ni.TopK(k=128), "normalization": ni.Sphere("hidden_pre"), "readout": "constant"},
        {"readout": "signs"},
    ),
    "TopK, all trained": (
        {"sparsity": ni.TopK(k=128), "modulation": ni.FourierModulation(1.2, trained=True), "trained": BOTH},
        {"modulation": ni.FourierModulation(1.2)},
    ),
    "gated": ({"sparsity": ni.TopK(**SOFT, soft="gated")}, {"sparsity": ni.TopK(**SOFT)}),
    "straight through": (
        {"sparsity": ni.TopK(**SOFT, soft="straight_through"), "trained": BOTH},
        {"sparsity": ni.TopK(**SOFT)},
    ),
    "shrinkage of a sphere": (
        {"sparsity": ni.TopK(**SOFT), "normalization": ni.Sphere("hidden_pre", radius=4.0)},
        {"normalization": ni.Sphere("hidden_pre", radius=22.0)},
    ),
}


@pytest.mark.parametrize("name", quick(LIMITS, "TopK, all trained"))
def test_limits_are_approached_by_wide_networks(points, name):
    settings, other = LIMITS[name]
    width = 512
    m = two_layer_moments(points, width=width, **settings)
    assert m.status == "limit"
    assert "leading value" in m.condition
    found, error = drawn(two_layer_network(width, **settings), points, 80)
    off = np.abs(predicted(m) / found - 1) - 4 * error / found
    assert (off < [0.02, 0.05]).all(), (predicted(m), found, error)
    mistaken = predicted(two_layer_moments(points, width=width, limit=True, **settings | other))
    assert np.abs(mistaken / found - 1).max() > 0.1


@pytest.mark.parametrize("settings", [EXACT["NeRF, all groups"][0], FIRST_ORDER["TopK-SP, modulated"][0]])
def test_wide_networks_meet_the_limit(x64, points, settings):
    width = 10**8
    if "sparsity" in settings:
        settings = settings | {"sparsity": ni.TopK(k=width // 4, mode="sphere")}
    x = points.astype(jnp.float64)
    m = two_layer_moments(x, width=width, **settings)
    limit = two_layer_moments(x, width=width, limit=True, **settings)
    assert (m.status, limit.status) == (("expectation" if width and "bias_std" in settings else "asymptotic"), "limit")
    np.testing.assert_allclose(predicted(m), predicted(limit), rtol=1e-6)


def test_formula_2_3_as_it_is_written(x64, points):
    x, a, m = np.asarray(points, np.float64), 1.3, 24
    rho, r = x @ x.T, np.linalg.norm(x, axis=1)
    p = (np.pi - np.arccos(np.clip(rho / np.outer(r, r), -1, 1))) / (2 * np.pi)
    np.fill_diagonal(p, 0.5)
    ends = np.outer(np.diag(rho), np.diag(rho))
    n = len(x)
    v = a**4 * ((rho**2 * (p**2 + p * (1 - p) / m)).sum() / n - (ends * (0.25 + (p - 0.25) / m)).sum() / n**2)
    found = two_layer_moments(jnp.asarray(x), width=m, scale=a)
    np.testing.assert_allclose(predicted(found), [a**2 * np.trace(rho) / (2 * n), v], rtol=1e-12)
    np.testing.assert_allclose(found.kernel, a**2 * rho * p, rtol=1e-12)


def test_a_constant_readout_of_modulated_units_has_the_law_of_signs(points):
    settings = {"width": 64, "normalization": ni.Sphere("hidden_post"), "modulation": SLOW}
    constant, signs = (two_layer_moments(points, readout=readout, **settings) for readout in ("constant", "signs"))
    assert predicted(constant).tolist() == predicted(signs).tolist()


def test_a_key_draws_the_encoding_and_none_averages_it(x64, key, points):
    x = points.astype(jnp.float64)
    encoding = ni.GaussianFourier(features=64, scale=0.2)
    gamma, _ = encoding.init_with_output(key, x)
    one = two_layer_moments(x, encoding=encoding, key=key)
    np.testing.assert_allclose(predicted(one), predicted(two_layer_moments(gamma)), rtol=1e-12)
    draws = [two_layer_moments(x, encoding=encoding, key=k) for k in jax.random.split(key, 20)]
    averaged = two_layer_moments(x, encoding=encoding)
    for name in ("variance", "proxy"):
        values = np.array([float(getattr(draw, name)) for draw in draws])
        assert abs(float(getattr(averaged, name)) - values.mean()) < 4 * values.std() / 20**0.5 + 2e-3 * values.mean()
    # (4.2): the floor of 1 / 2M.
    delta2 = ((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)
    e2 = jnp.exp(-4 * np.pi**2 * 0.2**2 * delta2)
    np.testing.assert_allclose(averaged.factors.tau_x, e2 + (1 - e2) ** 2 / 128, rtol=1e-10)


def test_factors_make_the_variance_where_norms_are_equal(points):
    settings = {"normalization": ni.Sphere("input"), "modulation": SLOW}
    m = two_layer_moments(points, **settings)
    np.testing.assert_allclose(float(m.proxy_ratio), 1.0, rtol=1e-5)
    factors = m.factors
    assert factors.active_fraction == 0.5
    assert factors.active_units is None
    tau = factors.tau_x * factors.tau_s * factors.tau_g
    np.testing.assert_allclose(tau, m.kernel**2 / factors.scale**2, rtol=1e-5)
    assert 0 < float(factors.mean_tau_g) < 1
    unequal = two_layer_moments(points, width=64, sparsity=ni.TopK(k=8))
    assert unequal.factors.active_units == 8
    assert unequal.factors.tau_g is unequal.factors.mean_tau_g is None
    assert abs(float(unequal.proxy_ratio) - 1) > 0.01
    np.testing.assert_allclose(float(unequal.factors.scale), float((points**2).sum(axis=1).mean()) / 8, rtol=1e-6)
    later = two_layer_moments(points, trained=("readout",))
    assert later.factors is later.proxy is later.proxy_ratio is None


def test_points_of_one_direction_have_one_support(points):
    """TopK gives collinear points the same k units, where the expansion of (7.5) about other angles doesn't."""
    x = jnp.concatenate([points, 3 * points])
    H = two_layer_moments(x, width=64, sparsity=ni.TopK(k=8)).kernel
    n = len(points)
    np.testing.assert_allclose(jnp.diagonal(H[:n, n:]), 3 / 8 * (points**2).sum(axis=1), rtol=1e-5)


def test_topk_suppresses_at_least_by_the_square_of_its_share(points):
    """Theorem (7.4), in the limit."""
    plain = two_layer_moments(points)
    variances = [
        two_layer_moments(points, width=64, limit=True, sparsity=ni.TopK(k=k)).variance / (2 * k / 64) ** 2
        for k in (32, 16, 4)
    ]
    np.testing.assert_allclose(float(variances[0]), float(plain.variance), rtol=1e-5)
    assert variances[0] > variances[1] > variances[2]


@pytest.mark.slow
def test_soft_gates_tend_to_hard_ones_and_gated_ones_to_a_spike(x64):
    q, c = 1 / 8, jnp.asarray([[1.0, 0.4], [0.4, 1.0]])
    gate = Threshold(q, exact=True)

    def overlap(soft, temperature):
        return soft_gates(q, soft, jnp.full(2, temperature)).overlap(c)

    gap = [float(jnp.abs(overlap("shrinkage", T) - gate.overlap(c)).max()) for T in (0.02, 0.01)]
    assert gap[0] < 0.01
    np.testing.assert_allclose(gap[0] / gap[1], 2.0, rtol=0.05)
    H = overlap("gated", 0.01)
    # (7.11) on the diagonal, (7.12) off it.
    spike = q + gate.t * gate.density + gate.t**2 * gate.density / 0.06
    np.testing.assert_allclose(H[0, 0], spike, rtol=0.01)
    price = float(jax.grad(gate.second)(c[0, 1]))
    np.testing.assert_allclose(H[0, 1], price, rtol=1e-3)
    assert price > 2 * float(gate.overlap(c)[0, 1])


@pytest.mark.parametrize("q", [0.5, 0.49, 1 / 8, 0.01])
def test_moments_of_hard_gates_are_those_of_quadrature(x64, q):
    gate = Threshold(q, exact=True)
    nodes, weights = np.polynomial.legendre.leggauss(300)
    u = gate.t + (nodes + 1) * 4.5
    weights = 4.5 * weights * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
    for c in (-0.6, 0.3, 0.99):
        s = np.sqrt(1 - c * c)
        edge = (gate.t - c * u) / s
        tail, density = np.asarray(jax.scipy.stats.norm.sf(edge)), np.exp(-(edge**2) / 2) / np.sqrt(2 * np.pi)
        v = c * u * tail + s * density
        v2 = ((c * u) ** 2 + s * s) * tail + s * (c * u + gate.t) * density
        expected = [(weights * f).sum() for f in (tail, u * tail, u * v, u**2 * tail, u**2 * v2)]
        m = gate.moments(jnp.asarray(c))
        found = [float(value) for value in (m.overlap, m.first, m.second, m.square, m.squares)]
        np.testing.assert_allclose(found, expected, rtol=3e-9)
    ends = gate.moments(jnp.asarray(1.0))
    found = [float(value) for value in (ends.overlap, ends.second, ends.square, ends.squares, ends.bias)]
    np.testing.assert_allclose(found, [q, gate.energy, gate.energy, gate.fourth_moment, 0], rtol=1e-12)


@pytest.mark.parametrize("soft", ["shrinkage", "gated", "straight_through"])
def test_moments_of_soft_gates_are_those_of_quadrature(x64, soft):
    temperatures, q = np.array([0.3, 0.1]), 1 / 8
    gates = soft_gates(q, soft, jnp.asarray(temperatures))
    nodes, weights = np.polynomial.legendre.leggauss(600)
    u, weights = 8.5 * nodes, 8.5 * weights
    z = (u[None, :] - np.asarray(gates.threshold)[:, None]) / temperatures[:, None]
    s = 1 / (1 + np.exp(-z))
    value = temperatures[:, None] * np.logaddexp(0, z) if soft == "shrinkage" else u * s
    slope = s + u * s * (1 - s) / temperatures[:, None] if soft == "gated" else s
    normal = weights * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(s @ normal, q, rtol=1e-8)
    for c in (-0.4, 0.9):
        C = jnp.asarray([[1.0, c], [c, 1.0]])
        pair = np.exp(-(u[:, None] ** 2 - 2 * c * np.outer(u, u) + u[None, :] ** 2) / (2 * (1 - c * c)))
        pair = np.outer(weights, weights) * pair / (2 * np.pi * np.sqrt(1 - c * c))
        for found, f in ((gates.overlap(C), slope), (gates.second(C), value)):
            expected = np.diag(f**2 @ normal)
            expected[0, 1] = expected[1, 0] = f[0] @ pair @ f[1]
            np.testing.assert_allclose(found, expected, rtol=2e-6)
    np.testing.assert_allclose(gates.energy, value**2 @ normal, rtol=2e-6)


def test_moments_differentiate_and_compile(x64, points):
    x = points.astype(jnp.float64)

    def variance(x, std):
        return two_layer_moments(x, width=24, modulation=SLOW, weight_std=std, bias_std=0.5, trained=BOTH).variance

    difference = (variance(x, 1.0 + 1e-4) - variance(x, 1.0 - 1e-4)) / 2e-4
    np.testing.assert_allclose(float(jax.grad(variance, 1)(x, 1.0)), float(difference), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(variance)(x, 1.0), variance(x, 1.0), rtol=1e-12)

    def threshold(temperature):
        return soft_gates(1 / 8, "shrinkage", temperature[None]).threshold[0]

    slope = jax.grad(threshold)(jnp.asarray(0.3))
    difference = (threshold(jnp.asarray(0.3 + 1e-4)) - threshold(jnp.asarray(0.3 - 1e-4))) / 2e-4
    np.testing.assert_allclose(float(slope), float(difference), rtol=1e-6)


def test_numbers_do_not_compile_again(points):
    settings = {"normalization": ni.Sphere("hidden_post")}
    two_layer_moments(points, width=32, modulation=SLOW, **settings)
    compiled = two_layer._computed._cache_size()
    two_layer_moments(points, width=48, modulation=ni.FourierModulation(0.3), scale=2.0, weight_std=0.7, **settings)
    assert two_layer._computed._cache_size() == compiled


def test_single_precision_suffices():
    settings, mean, variance, _, _ = GOLDEN["TopK"]
    m = two_layer_moments(GRID.astype(np.float32), **settings)
    assert m.kernel.dtype == jnp.float32
    np.testing.assert_allclose(predicted(m), [mean, variance], rtol=2e-6)


@pytest.mark.parametrize("trained", [("weights",), ("bias", "readout"), EVERY, ()])
def test_trained_groups_are_the_only_parameters(key, points, trained):
    modulation = [SLOW, SLOW, ni.FourierModulation(2.0, trained=True)]
    net = two_layer_network(16, modulation=modulation, trained=trained, bias_std=1.0, output_bias=0.5)
    variables = net.init(key, points)
    names = {"readout": {"readout", "output_bias"}}
    expected = {"modulation_2"}.union(*(names.get(group, {group}) for group in trained))
    assert set(variables["params"]) == expected
    assert (
        set(variables["constants"])
        == {"weights", "bias", "readout", "output_bias", "modulation_0", "modulation_1"} - expected
    )
    fixed = variables["constants"]
    assert not np.allclose(fixed["modulation_0"]["v"], fixed["modulation_1"]["v"])


def test_network_is_the_stated_function(key, points):
    net = two_layer_network(
        32, readout="normal", trained=EVERY, bias_std=0.5, output_bias=0.7, normalization=sphere("hidden_pre")
    )
    apply, params = ni.init(net, key, points)
    u = points @ params["weights"] + params["bias"]
    u = u / jnp.linalg.norm(u, axis=1)[:, None] * 32**0.5
    f = nn.relu(u) @ params["readout"] / 32**0.5 + 0.7 * params["output_bias"]
    np.testing.assert_allclose(apply(params, points), f, rtol=1e-4, atol=1e-5)


def test_initial_laws(key, points):
    net = two_layer_network(20_000, scale=1.5, weight_std=2.0, bias_std=0.5, trained=EVERY)
    params = net.init(key, points)["params"]
    np.testing.assert_allclose(float(params["weights"].std()), 2.0, rtol=0.02)
    np.testing.assert_allclose(float(params["bias"].std()), 0.5, rtol=0.03)
    assert set(np.unique(params["readout"]).tolist()) == {-1.5, 1.5}


def test_topk_has_exactly_k_active_units(key, points):
    """(7.1): the mean of the eigenvalues is then the same for every draw."""
    found, _ = drawn(two_layer_network(32, sparsity=ni.TopK(k=5), scale=1.2), points, 5)
    exact = 1.2**2 * 5 / 32 * float((points**2).sum(axis=1).mean())
    np.testing.assert_allclose(found[0], exact, rtol=1e-5)


def test_sphere_on_input_is_a_congruence(key, points):
    """(5.1), for every draw."""
    H, K = (
        ni.ntk(*ni.init(two_layer_network(32, normalization=normalization), key, points), points)
        for normalization in (None, sphere("input", 1.7))
    )
    D = 1.7 / jnp.linalg.norm(points, axis=1)
    np.testing.assert_allclose(K, D[:, None] * H * D[None, :], rtol=1e-4)


POSITIVE = "expected a finite number above 0"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"width": 0}, ValueError, "width is 0; expected at least 1"),
        ({"width": 2.5}, TypeError, "width is 2.5"),
        ({"width": 8, "sparsity": ni.TopK(k=9)}, ValueError, "keeps k = 9 units but width is 8"),
        ({"width": 8, "sparsity": ni.TopK(k=5)}, ValueError, "at most half.*k up to 4, or a width from 10"),
        ({"sparsity": ni.TopK(k=5)}, ValueError, "pass width=m, and limit=True"),
        ({"normalization": ni.Sphere(radius=1.0)}, ValueError, "has radius 1.0.*radius=None"),
        ({"encoding": np.sin}, TypeError, "expected a Flax Linen module"),
        ({"encoding": nn.Dense(3)}, ValueError, "parameters of its own.*ni.ntk"),
        ({"normalization": ni.networks.LayerNorm()}, TypeError, "constant readout leaves f = 0"),
        ({"modulation": [np.sin]}, TypeError, "expected ni.FourierModulation"),
        ({"sparsity": 3}, TypeError, "expected ni.TopK"),
        ({"readout": "sign"}, ValueError, "Did you mean 'signs'"),
        ({"trained": "wieghts"}, ValueError, "Did you mean 'weights'"),
        ({"trained": ("bias",)}, ValueError, "pass bias_std=1.0"),
        ({"trained": ()}, ValueError, "nothing would be trained"),
        ({"scale": 0.0}, ValueError, f"scale is 0.0; {POSITIVE}"),
        ({"weight_std": -1.0}, ValueError, f"weight_std is -1.0; {POSITIVE}"),
        ({"bias_std": 0.0}, ValueError, f"bias_std is 0.0; {POSITIVE}"),
        ({"output_bias": float("nan")}, ValueError, f"output_bias is nan; {POSITIVE}"),
        (
            {"width": 8, "sparsity": ni.TopK(k=2, mode="sphere"), "normalization": ni.Sphere()},
            ValueError,
            "drop one of them",
        ),
        (
            {"width": 1024, "sparsity": ni.TopK(**SOFT), "normalization": ni.Sphere(), "readout": "constant"},
            ValueError,
            'nearest is readout="signs"',
        ),
    ],
)
def test_bad_settings_say_what_is_expected(unchecked, points, settings, error, message):
    with pytest.raises(error, match=message):
        two_layer_moments(points, **settings)


class Noise(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.variable("noise", "shift", lambda: jax.random.normal(self.make_rng("params"), (1, 1))).value


def test_bad_coordinates_say_what_is_expected(unchecked, key, points):
    with pytest.raises(TypeError, match="x has dtype int"):
        two_layer_moments(np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="row 4 of x enters the first layer as the zero vector"):
        two_layer_moments(points.at[4].set(0.0))
    assert np.isfinite(predicted(two_layer_moments(points.at[4].set(0.0), bias_std=0.1))).all()
    with pytest.raises(ValueError, match="encoding Noise draws noise at random; pass key="):
        two_layer_moments(points, encoding=Noise())
    assert two_layer_moments(points, encoding=Noise(), key=key).status == "limit"


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"sparsity": ni.TopK(k=8)},
        {"normalization": ni.Sphere("hidden_post")},
        {"limit": True, "modulation": ni.FourierModulation(omega=2.0, trained=True)},
    ],
    ids=str,
)
def test_figures_without_scale_depend_on_none(parts):
    """Squares of these kernels leave float32's range."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    right = two_layer_moments(x, width=64, **parts)
    assert np.isfinite(right.variance)
    sizes = [(2e-16, 1.0), (1e12, 1.0)] + [(1.0, 1e11), (1.0, 1e-15)] * (len(parts) < 1)
    for scale, size in sizes:
        found = two_layer_moments(np.float32(size) * x, width=64, scale=scale, **parts)
        for name in ("cv", "effective_rank", "proxy_ratio"):
            np.testing.assert_allclose(getattr(found, name), getattr(right, name), rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(found.mean / (scale * size) ** 2, right.mean, rtol=1e-4)
        np.testing.assert_allclose(found.factors.tau_x, right.factors.tau_x, rtol=1e-4)
