"""Infinite-width kernels: each dual against an independent quadrature, each network against wide ones and stax."""

import importlib.util
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

import ntk_inr as ni
from ntk_inr.infinite import filters, maps, network, pairs, tiles
from ntk_inr.infinite.duals import Erf, Rectifier, Sine, Wavelet
from ntk_inr.infinite.gating import HardGate, SoftGate
from ntk_inr.infinite.network import InfiniteKernel, infinite_kernel
from ntk_inr.infinite.quadrature import Quadrature
from ntk_inr.infinite.resolve import dual_of
from ntk_inr.networks.filter_networks import FilterNetwork
from ntk_inr.networks.initializers import Law
from tests.conftest import quick

stax_installed = pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is None or importlib.util.find_spec("frozendict") is None,
    reason="neural-tangents is not installed",
)
NORMAL = Law(0.5)


class NormalGauss(ni.networks.Gauss):
    """With normal weights in every layer, which stax can take."""

    def law(self, *, first, readout):
        return NORMAL


class NormalSine(ni.networks.Sine):
    def law(self, *, first, readout):
        return NORMAL


def gaussian_pair(n=6, features=None, seed=0):
    """Return the law of n by n scattered pre-activations under x64, with near and collinear ones among them."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(n, 3)) * rng.uniform(0.2, 0.6, size=(n, 1))
    h[1], h[2] = 1.3 * h[0] + 0.01 * h[-1], h[0] + 1e-3
    k = jnp.asarray(h @ h.T)
    columns = None if features is None else jnp.asarray(rng.uniform(0.2, 0.7, size=(n, features)))
    side = pairs.Side(jnp.diagonal(k), columns)
    return pairs.pair_of(side, side, k, same=True)


def moments(dual, pair):
    """Return the moments in one program: their many small operations would each compile alone."""
    return jax.jit(lambda: dual.moments(pair))()


def distance(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


SMOOTH = {
    "sine": (Sine(2.1, 0.4), lambda u: jnp.sin(2.1 * u + 0.4)),
    "gauss": (Wavelet(0.8, 0.0, 0.0), lambda u: jnp.exp(-0.64 * u * u)),
    "gabor": (Wavelet(0.8, 2.0, 0.3), lambda u: jnp.exp(-0.64 * u * u) * jnp.cos(2 * u + 0.3)),
    "erf": (Erf(0.9), lambda u: jax.scipy.special.erf(0.9 * u)),
}


@pytest.mark.parametrize("bias", [None, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SMOOTH)
def test_closed_forms_are_what_quadrature_gives(x64, name, bias):
    closed, function = SMOOTH[name]
    pair, numeric = gaussian_pair(features=bias), Quadrature(function, order=220)
    # The Fourier series of wavelets under a uniform bias is cut at 1e-7.
    rtol = 1e-7 if bias and isinstance(closed, Wavelet) else 1e-10
    for found, expected in zip(moments(closed, pair), moments(numeric, pair), strict=True):
        np.testing.assert_allclose(found, expected, atol=rtol * float(jnp.abs(expected).max()))
    np.testing.assert_allclose(closed.mean(pair.left), numeric.mean(pair.left), atol=rtol)


@pytest.mark.parametrize("name", SMOOTH)
def test_slope_is_the_derivative_by_the_covariance_as_price_has_it(x64, name):
    dual, _ = SMOOTH[name]
    k = jnp.array([1.0, 0.7]), jnp.array([1.9, 0.4])
    sides = pairs.Side(k[0]), pairs.Side(k[1])

    @jax.jit
    def value(k12):
        return dual.moments(pairs.pair_of(*sides, k12, same=False))

    k12, step = jnp.array([[0.3, -0.4], [0.6, 0.1]]), 1e-5
    numeric = (value(k12 + step).value - value(k12 - step).value) / (2 * step)
    np.testing.assert_allclose(value(k12).slope, numeric, rtol=1e-8)


def truncated(threshold, mean, sigma, power):
    """Return E[v**power 1{v > threshold}] of v normal."""
    z = (threshold - mean) / sigma
    chance, density = scipy.special.ndtr(-z), np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    return chance if power == 0 else mean * chance + sigma * density


def gated_moment(s, c, spread, least, power):
    """Return E[(uv)**power] over u and v above ``least``, v's part in closed form given u, the rest by plain rules."""
    b, wb = np.polynomial.legendre.leggauss(200)
    t, wt = np.polynomial.legendre.leggauss(400)
    b = b[:, None]
    low = np.maximum((least[0] - spread[0] * b) / s[0], -9)
    z = low + (t + 1) / 2 * (np.maximum(low + 9, 9) - low)
    mass = np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * wt / 2 * (np.maximum(low + 9, 9) - low) * wb[:, None] / 2
    second = truncated(least[1], c * s[1] * z + spread[1] * b, s[1] * np.sqrt(1 - c * c), power)
    return np.sum(mass * (s[0] * z + spread[0] * b) ** power * second)


def quantile(s, spread, q):
    """Return t with P(u > t) = q."""
    b, w = np.polynomial.legendre.leggauss(400)
    return scipy.optimize.brentq(lambda t: w @ scipy.special.ndtr((spread * b - t) / s) / 2 - q, -10, 10, xtol=1e-13)


@pytest.mark.parametrize("bias", [None, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dual", [Rectifier(), HardGate(0.1)], ids=["relu", "topk"])
def test_gates_against_conditional_means(x64, dual, bias):
    pair = gaussian_pair(features=bias)
    found = np.asarray(moments(dual, pair))
    sigma, c = np.sqrt(np.asarray(pair.left.k)), np.asarray(pair.c)
    spread = np.zeros(6) if bias is None else np.asarray(pair.left.features[:, 0])
    sides = list(zip(sigma, spread, strict=True))
    least = [0.0 if isinstance(dual, Rectifier) else quantile(*side, dual.q) for side in sides]
    for i, j in ((0, 3), (0, 1), (3, 4), (2, 5)):
        expected = [
            gated_moment(sigma[[i, j]], c[i, j], spread[[i, j]], [least[i], least[j]], power) for power in (1, 0)
        ]
        np.testing.assert_allclose(found[:, i, j], expected, rtol=3e-6)


def test_relatives_of_relu_are_recognised(x64):
    assert dual_of(jax.nn.relu) == Rectifier(1.0, 0.0)
    assert dual_of(jax.nn.leaky_relu) == Rectifier(1.0, -0.01)
    assert dual_of(jnp.abs) == Rectifier(1.0, 1.0)
    assert isinstance(dual_of(jnp.tanh), Quadrature)
    pair = gaussian_pair()
    identity = dual_of(lambda u: u).moments(pair)
    np.testing.assert_allclose(identity.value, pair.k12, atol=1e-14)
    np.testing.assert_allclose(identity.slope, 1.0)
    # abs(u) = u_+ + (-u)_+, and E|gg'| = (2/pi)(sin(t) + (pi/2 - t) cos(t)).
    theta = np.arccos(np.asarray(pair.c))
    size = np.sqrt(np.outer(pair.left.k, pair.left.k))
    expected = size * 2 / np.pi * (np.sin(theta) + (np.pi / 2 - theta) * np.cos(theta))
    np.testing.assert_allclose(dual_of(jnp.abs).moments(pair).value, expected, atol=1e-12)


@pytest.mark.parametrize(("name", "d"), [("sine", 2), ("gauss", 1), pytest.param("gabor", 2, marks=pytest.mark.slow)])
def test_uniform_first_layer_against_a_product_rule(x64, name, d):
    """The closed form (T11.4) and the Fourier series against Gauss-Legendre over the weights and the bias."""
    closed, function = SMOOTH[name]
    x = jax.random.uniform(jax.random.key(1), (5, d), minval=-1.0, dtype=jnp.float64).at[1].set(0.0)

    @jax.jit
    def activated():
        state = maps.dense_uniform(x, None, 1.0, uniform=0.7)
        cross = maps.activate(maps.dense_uniform(x, x[:3], 1.0, uniform=0.7), closed)
        return maps.activate(state, closed), maps.activate(state, Quadrature(function)), cross

    found, expected, cross = activated()
    for field in ("k", "theta", "left_mean"):
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), atol=1e-7)
    np.testing.assert_allclose(cross.k, found.k[:, :3], atol=1e-7)
    np.testing.assert_allclose(cross.right, found.right[:3], atol=1e-7)


def test_sines_first_layer_is_formula_11_4(x64):
    x = jax.random.uniform(jax.random.key(1), (5, 2), minval=-1.0, dtype=jnp.float64)
    state = jax.jit(lambda: maps.activate(maps.dense_uniform(x, None, 1 / 2, uniform=0.7), Sine(9.0, 0.0)))()
    apart, along = (np.sinc(9 * (x[:, None] + s * x[None]) / 2 / np.pi).prod(2) for s in (-1, 1))
    np.testing.assert_allclose(state.k, (apart - along * np.sinc(2 * 9 * 0.7 / np.pi)) / 2, atol=1e-12)


def test_golden_values_of_the_theory(x64):
    """The 12 x 12 grid of the theory's last section: kernels of a first layer, trained."""
    axis = -1 + 2 * np.arange(12) / 12
    grid = np.stack([m.ravel() for m in np.meshgrid(axis, axis, indexing="ij")] + [np.ones(144)], 1)
    rho = jnp.asarray(grid @ grid.T)
    side = pairs.Side(jnp.diagonal(rho))
    pair = pairs.pair_of(side, side, rho, same=True)
    factors = maps.fourier_modulation(jnp.asarray(grid[:, :2]), None, 4.0, trained=True)
    relu, first = Rectifier().moments(pair), maps.State(rho, rho, side.k, side.k, side.k * 0, side.k * 0, same=True)
    active = maps.activate(first, Rectifier())
    norms = np.sqrt(np.outer(side.k, side.k))
    for kernel, mean, variance in (
        (rho * relu.slope, 0.83796296, 30.333040),
        (pair.c * relu.slope, 0.5, 11.488755),
        (rho * relu.slope + relu.value, 1.6759259, 159.71991),
        (rho * relu.slope * factors.k, 0.83796296, 3.0752787),
        (maps.product(active, factors).theta, 12.258573, 903.92475),
        (pair.c * HardGate(1 / 8).moments(pair).slope, 0.125, 0.46362095),
        # (T7.7): the sphere of radius sqrt(m) behind the gate.
        (norms * 0 + maps.normalize(maps.activate(first, HardGate(1 / 8))).theta, 0.34549142, 3.5417473),
    ):
        found = ni.moments(kernel)
        np.testing.assert_allclose([found.mean, found.variance], [mean, variance], rtol=2e-7)


@pytest.mark.parametrize("soft", quick(["shrinkage", "gated", "straight_through"], "shrinkage"))
def test_soft_gates_against_sampled_units(x64, key, soft):
    m, q, temperature = 40_000, 0.2, 0.3
    pair = gaussian_pair(4)
    root = jnp.linalg.cholesky(pair.k12 + 1e-9 * jnp.eye(4))
    u = root @ jax.random.normal(key, (4, m))
    layer = ni.TopK(k=int(q * m), mode="soft", temperature=temperature, soft=soft)
    h, slope = layer(jnp.tanh(u)), jax.vmap(jax.grad(lambda u: layer(jnp.tanh(u)).sum()))(u)
    dual = SoftGate(jnp.tanh, q, temperature, soft, order=128)
    found = moments(dual, pair)
    # Entries are of order 0.1 to 1 and their sampling errors of 1 / sqrt(m) = 5e-3 of that.
    np.testing.assert_allclose(found.value, h @ h.T / m, atol=0.01)
    np.testing.assert_allclose(found.slope, slope @ slope.T / m, atol=0.01)
    np.testing.assert_allclose(jax.jit(dual.mean)(pair.left), h.mean(1), atol=0.01)


def test_soft_shrinkage_tends_to_the_hard_gate(x64):
    pair = gaussian_pair(4)
    # The error is of first order in T: extrapolated, it is gone.
    twice, once = (moments(SoftGate(lambda u: u, 0.2, t, "shrinkage", order=300), pair).slope for t in (0.08, 0.04))
    np.testing.assert_allclose(2 * once - twice, moments(HardGate(0.2), pair).slope, atol=0.01)


def test_sphere_rescales_a_homogeneous_network_as_5_10(x64, x):
    """Without biases and with one norm, Theta is divided by the plain network's gain and cv stays."""
    x = jnp.asarray(x, jnp.float64) / jnp.linalg.norm(jnp.asarray(x, jnp.float64), axis=1)[:, None]

    def theta(gain, sphere):
        state = maps.inputs(x)
        for _ in range(3):
            state = maps.activate(maps.dense(state, gain), Rectifier())
            state = maps.normalize(state) if sphere else state
        return maps.dense(state, 1.0).theta

    plain, sphere = theta(3.0, False), theta(3.0, True)
    np.testing.assert_allclose(sphere, plain / (1.5**3 / 2), rtol=1e-9)


# Each kind of dual and each part occurs, in one of the two parameterizations.
WIDE = {
    "relu+residual": {"residual": True},
    "topk_sphere": {"sparsity": ni.TopK(24, mode="sphere")},
    "pe+sine+sphere_pre": {
        "encoding": ni.NeRFEncoding(1),
        "activation": ni.networks.Sine(3.0, 0.4),
        "normalization": ni.Sphere("hidden_pre", radius=10.0),
    },
    "sine+layer with gains": {
        "activation": ni.networks.Sine(2.0, first_omega=6.0),
        "normalization": ni.networks.LayerNorm(trained=True),
    },
    "gauss+layer_post": {"activation": ni.networks.Gauss(0.4), "normalization": ni.networks.LayerNorm("hidden_post")},
    "gabor+factors": {
        "activation": ni.networks.Gabor(2.0, 2.0, 0.3, first_omega=5.0),
        "modulation": ni.FourierModulation(2.0),
    },
    "tanh+layer+trained": {
        "activation": jnp.tanh,
        "normalization": "layer",
        "modulation": ni.FourierModulation(2.0, trained=True),
    },
}


FILTERS = {
    "fourier": ni.networks.FourierNet(192, 3, 4, scale=6.0, weight_scale=3.0),
    "fourier fixed": ni.networks.FourierNet(192, 2, 4, scale=6.0, trained=False, parameterization="ntk"),
    "gabor": ni.networks.GaborNet(192, 2, 4, scale=4.0, alpha=3.0, weight_scale=3.0),
    "bacon": ni.networks.BACON(192, 3, 4, bandwidth=3.0, input_scales=(1 / 6, 1 / 3, 1 / 2), parameterization="ntk"),
}


def wide(name):
    if name in FILTERS:
        return FILTERS[name]
    parameterization = "ntk" if list(WIDE).index(name) % 2 else "standard"
    return ni.CoordinateMLP(features=192, depth=2, out=4, parameterization=parameterization, **WIDE[name])


@pytest.mark.parametrize("name", quick([*WIDE, *FILTERS], "fourier"))
def test_against_wide_networks(key, name):
    x, seeds, net = jax.random.uniform(key, (4, 2), minval=-1.0), 64, wide(name)

    def sample(key):
        apply, params = ni.init(net, key, x)
        values = apply(params, x)
        return InfiniteKernel(values @ values.T / 4, ni.ntk(apply, params, x))

    found = jax.lax.map(sample, jax.random.split(key, seeds), batch_size=8)
    limit = infinite_kernel(net)(x)
    for samples, expected in ((found.nngp, limit.nngp), (found.ntk, limit.ntk)):
        stderr = samples.std(0, ddof=1) / seeds**0.5
        size = jnp.sqrt(jnp.outer(jnp.diagonal(expected), jnp.diagonal(expected)))
        # Four standard errors, and a correction of order 1/width.
        assert bool((jnp.abs(samples.mean(0) - expected) < 4 * stderr + 5 / net.features * size).all())


@pytest.mark.slow
def test_gabor_filters_against_sampled_ones(x64, key):
    """Values, and gradients by each of the filters' own parameters."""
    net, units = ni.networks.GaborNet(200_000, 1, scale=4.0, alpha=1.4, param_dtype=jnp.float64), 200_000
    x = jax.random.uniform(key, (4, 2), minval=-1.0, dtype=jnp.float64)
    p = net.init(key, x)["params"]

    def value(x, omega, phase, mu, gamma):
        return jnp.exp(-gamma / 2 * ((x - mu) ** 2).sum()) * jnp.sin(omega @ x + phase)

    own = p["frequency_0"].T, p["phase_0"], p["centre_0"], p["sharpness_0"]
    units_of = jax.vmap(jax.value_and_grad(value, argnums=(1, 2, 3, 4)), in_axes=(None, 0, 0, 0, 0))
    values, slopes = jax.vmap(units_of, in_axes=(0, None, None, None, None))(x, *own)
    state = jax.jit(lambda: filters._filters(net, net.scale, x, x, same=True))()
    gradients = jnp.concatenate([leaf.reshape(4, units, -1) for leaf in slopes], axis=2)
    products = jnp.einsum("imp,jmp->ijm", gradients, gradients)
    for samples, expected in ((values[:, None] * values[None], state.k), (products, state.theta)):
        # Of 32 entries none is off by four standard errors, except once in 500 runs.
        stderr = samples.std(2) / units**0.5
        assert bool((jnp.abs(samples.mean(2) - expected) < 4 * stderr).all())


@pytest.mark.slow
def test_filter_networks_answer_to_their_scale(x64, key):
    x = jax.random.uniform(key, (5, 2), minval=-1.0, dtype=jnp.float64)
    for net in (ni.networks.FourierNet(16, 2, scale=5.0), ni.networks.GaborNet(16, 2, scale=5.0)):
        kernel = infinite_kernel(net)
        slope = jax.grad(lambda scale, kernel=kernel: kernel(x, hyper={"scale": scale}).ntk.sum())(5.0)
        ends = (kernel(x, hyper={"scale": 5.0 + step}).ntk.sum() for step in (1e-4, -1e-4))
        assert float(slope) == pytest.approx(float(-np.subtract(*reversed(list(ends))) / 2e-4), rel=1e-5)
        np.testing.assert_array_equal(kernel(x).ntk, kernel(x).ntk.T)
        np.testing.assert_allclose(kernel(x, x[:2]).ntk, kernel(x).ntk[:, :2], rtol=1e-10)


def test_filters_of_ones_own_are_refused():
    class Own(FilterNetwork):
        def filter(self, x, layer):
            return x

    with pytest.raises(ValueError, match="Own has filters"):
        infinite_kernel(Own())
    with pytest.raises(ValueError, match="backend"):
        infinite_kernel(ni.networks.FourierNet(), backend="neural-tangents")


STAX = {
    "relu": {},
    "leaky": {"activation": jax.nn.leaky_relu},
    "sine": {"activation": NormalSine(2.0, 0.3)},
    "gauss": {"activation": NormalGauss(0.6)},
    "erf": {"activation": "erf", "bias_law": None},
    "layer": {"normalization": ni.networks.LayerNorm(epsilon=1e-5)},
    "pe+factors": {"encoding": ni.NeRFEncoding(2), "modulation": ni.FourierModulation(2.0)},
    "trained factors": {"modulation": ni.FourierModulation(2.0, trained=True)},
}


@stax_installed
@pytest.mark.parametrize("name", quick(STAX, "layer", "pe+factors"))
def test_agrees_with_stax(x64, x, name):
    x = jnp.asarray(x, jnp.float64)
    parameterization = "ntk" if list(STAX).index(name) % 2 else "standard"
    settings = {"bias_law": NORMAL, **STAX[name]}
    net = ni.CoordinateMLP(features=64, depth=3, parameterization=parameterization, **settings)
    own, theirs = infinite_kernel(net, order=100), infinite_kernel(net, backend="neural-tangents", order=100)
    for second in (None,) if name == "leaky" else (x[:5] + 0.1,):
        ours, stax = own(x, second), theirs(x, second)
        assert max(distance(ours.nngp, stax.nngp), distance(ours.ntk, stax.ntk)) < 1e-7


def cv(kernel):
    n = len(kernel)
    mean = jnp.trace(kernel) / n
    return jnp.sqrt((kernel**2).sum() / n - mean**2) / mean


HYPER = {
    "activation.omega": {"activation": ni.networks.Sine(4.0, 0.3)},
    "activation.width": {"activation": ni.networks.Gauss(0.6)},
    "encoding.scale": {"encoding": ni.GaussianFourier(8, 0.5), "activation": "erf"},
    "modulation.omega": {"modulation": ni.FourierModulation(2.0, trained=True), "normalization": "sphere"},
}


@pytest.mark.parametrize("name", quick(HYPER, "activation.omega", "encoding.scale"))
def test_gradients_are_finite_differences(x64, x, name):
    """By a setting and by the coordinates, two of which coincide and one is the origin."""
    x = jnp.asarray(x[:5], jnp.float64).at[1].set(x[0]).at[2].set(0.0)
    net = ni.CoordinateMLP(features=64, depth=2, **HYPER[name])
    kernel, (part, field) = infinite_kernel(net), name.split(".")
    # Coinciding coordinates move together, and the origin stays: the kernel has a cone there.
    along = jax.random.normal(jax.random.key(2), x.shape).at[2].set(0.0)
    along = along.at[1].set(along[0])

    @jax.jit
    def measured(x, setting):
        return cv(kernel(x, hyper={name: setting}).ntk)

    at, step = getattr(getattr(net, part), field), 1e-5
    by_x, by_setting = jax.jit(jax.grad(measured, argnums=(0, 1)))(x, at)
    assert bool(jnp.isfinite(by_x).all())
    ahead, behind = (measured(x + side * step * along, at + side * step) for side in (1, -1))
    np.testing.assert_allclose((by_x * along).sum() + by_setting, (ahead - behind) / (2 * step), rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"depth": 2}, id="relu"),
        pytest.param({"sparsity": ni.TopK(8)}, id="topk", marks=pytest.mark.slow),
        pytest.param({"activation": jnp.tanh, "sparsity": ni.TopK(8, "soft", 0.5)}, id="soft", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_finite_where_sides_coincide(x, settings):
    x = x[:5].at[1].set(0.0)
    kernel = infinite_kernel(ni.CoordinateMLP(features=64, **{"depth": 1, **settings}))
    gradient = jax.grad(lambda x1: kernel(x1, x).ntk.sum())(x)
    assert bool(jnp.isfinite(gradient).all())


def test_default_network_in_float32_and_float64(x, x64):
    net = ni.CoordinateMLP(features=64, encoding=ni.NeRFEncoding(3))
    for kernel in (infinite_kernel(net), infinite_kernel(net.clone(encoding=None))):
        single, double = kernel(x), kernel(jnp.asarray(x, jnp.float64))
        for a, b in zip(*map(jax.tree.leaves, (single, double)), strict=True):
            assert a.dtype == jnp.float32
            assert distance(jnp.asarray(a, jnp.float64), b) < 1e-6
            assert bool((a == a.T).all())
            assert float(jnp.linalg.eigvalsh(b).min()) > -1e-9 * float(jnp.linalg.eigvalsh(b).max())


def test_tiles_are_one_kernel(key, monkeypatch):
    x = jax.random.uniform(key, (23, 2), minval=-1.0)
    net = ni.CoordinateMLP(features=64, depth=1, activation="erf", bias_law=None, modulation=ni.FourierModulation(1.0))

    def found():
        kernel = infinite_kernel(net)
        return *jax.tree.leaves([kernel(x), kernel(x, x[:9])]), jax.grad(lambda x: kernel(x).ntk.sum())(x)

    whole = found()
    monkeypatch.setattr(tiles, "_SIDE", 6)
    network._program.cache_clear()
    tiled = found()
    for a, b in zip(tiled, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))
    assert bool((tiled[1] == tiled[1].T).all())


def test_uniform_biases_of_sines_at_the_networks_own_width(key):
    """SIREN's hidden biases move the phase by up to 30 / sqrt(width): normal ones would be 13 % off."""
    x = jax.random.uniform(key, (16, 2), minval=-1.0)
    net = ni.variant("siren", features=128, depth=2)
    kernels = jax.lax.map(lambda key: ni.ntk(*ni.init(net, key, x), x), jax.random.split(key, 64))
    noise = jnp.linalg.norm(kernels.std(0)) / 8
    assert jnp.linalg.norm(kernels.mean(0) - infinite_kernel(net)(x).ntk) < 2 * noise


def test_compiles_once_for_a_shape(x, monkeypatch):
    traces, tiled = [], tiles.tiled

    def activation(u):
        traces.append(1)
        return jnp.tanh(u)

    programs = []
    monkeypatch.setattr(tiles, "tiled", lambda *parts: programs.append(1) or tiled(*parts))

    def net(**settings):
        return ni.CoordinateMLP(features=16, depth=1, activation=activation, **settings)

    kernel = infinite_kernel(net(), order=8)
    kernel(x)
    count = len(traces)
    kernel(0.5 * x)
    assert len(traces) == count
    # Equal networks, and those of other fixed arrays, share what is compiled.
    infinite_kernel(net(), order=8)(x)
    assert len(programs) == 1
    frequencies = net(encoding=ni.GaussianFourier(4))
    drawn = [infinite_kernel(frequencies, constants=frequencies.init(jax.random.key(i), x))(x).ntk for i in (0, 1)]
    assert len(programs) == 2
    assert distance(*drawn) > 0.01
    sine = infinite_kernel(ni.CoordinateMLP(features=16, depth=1, activation="sine"))
    first, second = (sine(x, hyper={"activation.omega": omega}).ntk for omega in (3.0, 4.0))
    assert distance(first, second) > 0.01
    np.testing.assert_allclose(
        second,
        infinite_kernel(ni.CoordinateMLP(features=16, depth=1, activation=ni.networks.Sine(4.0)))(x).ntk,
        rtol=1e-5,
    )
    # Worker processes get it as it is described; what is compiled stays here.
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(sine))(x).ntk, sine(x).ntk)
    filtered = infinite_kernel(ni.networks.FourierNet(features=8, depth=1))
    assert pickle.loads(pickle.dumps(filtered)).net == filtered.net


@pytest.mark.slow
def test_random_frequencies_as_they_are_and_in_the_limit(key, x):
    encoding = ni.GaussianFourier(5_000, 0.4)
    net = ni.CoordinateMLP(features=64, depth=1, encoding=encoding, activation="erf", bias_law=None)
    variables = net.init(key, x)
    limit, drawn = infinite_kernel(net)(x).nngp, infinite_kernel(net, constants=variables)
    # Five standard errors of the features' similarity are 0.05, and the kernel is smooth in it.
    np.testing.assert_allclose(drawn(x).nngp, limit, atol=0.05)
    gamma = encoding.apply({"constants": variables["constants"]["encoding"]}, x)
    exact = maps.activate(maps.dense(maps.inputs(gamma), 1.0), Erf(1.0)).k
    np.testing.assert_allclose(drawn(x).nngp, exact, rtol=1e-5, atol=1e-6)
    # At the drawn frequencies the kernel answers to the scale as theirs do to it.
    scaled = jax.tree.map(lambda leaf: 2 * leaf, variables["constants"])
    expected = infinite_kernel(net, constants=scaled)(x).nngp
    np.testing.assert_allclose(drawn(x, hyper={"encoding.scale": 0.8}).nngp, expected, rtol=1e-3, atol=1e-5)


def test_standard_parameterization_grows_with_the_width(x):
    net = ni.CoordinateMLP(depth=2, activation="erf", bias_law=None)
    small, large = (infinite_kernel(net.clone(features=m))(x).ntk.mean() for m in (1024, 2048))
    assert 1.9 < float(large / small) < 2.01
    bounded = ni.CoordinateMLP(depth=1, activation="erf", parameterization="ntk")
    kernels = [infinite_kernel(bounded.clone(features=m))(x).ntk for m in (2**40, 2**41)]
    assert distance(*kernels) < 1e-6


class Lifted(nn.Module):
    """An encoding of a user, without variables."""

    def __call__(self, x):
        return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)


class Frozen(nn.Module):
    """An encoding of a user, with a fixed matrix."""

    @nn.compact
    def __call__(self, x):
        matrix = self.variable("constants", "matrix", lambda: jnp.ones((x.shape[1], 3))).value
        return x @ matrix


def test_encodings_of_a_user(key, x):
    net = ni.CoordinateMLP(features=16, depth=1, bias_law=None, encoding=Lifted())
    lifted = infinite_kernel(net)(x).nngp
    rho = x @ x.T + 1
    state = maps.activate(maps.dense(maps.inputs(Lifted()(x)), 2.0), Rectifier())
    np.testing.assert_allclose(lifted, state.k, rtol=1e-6)
    np.testing.assert_allclose(jnp.diagonal(lifted), jnp.diagonal(rho) / 3, rtol=1e-6)
    frozen = net.clone(encoding=Frozen())
    assert infinite_kernel(frozen, constants=frozen.init(key, x))(x).nngp.shape == (23, 23)
    with pytest.raises(ValueError, match="Frozen has fixed arrays; pass constants"):
        infinite_kernel(frozen)(x)
    with pytest.raises(ValueError, match="Dense has parameters"):
        infinite_kernel(net.clone(encoding=nn.Dense(3)))(x)


MLP = ni.CoordinateMLP


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: infinite_kernel(MLP(activation=nn.softmax)), "softmax is not elementwise"),
        (lambda: infinite_kernel(MLP(activation=lambda u: u * jnp.arange(5.0)[None, :])), "not elementwise"),
        (lambda: infinite_kernel(MLP(activation=lambda u: u.sum(-1))), "gives float32 of shape"),
        (lambda: infinite_kernel(MLP(activation=lambda u: jnp.exp(1j * u))), "real elementwise"),
        (lambda: infinite_kernel(MLP(activation="sine", sparsity=ni.TopK(9))), "hard gate .* Sine"),
        (lambda: infinite_kernel(MLP(features=8, sparsity=ni.TopK(9))), "keeps k=9 of 8 units"),
        (lambda: infinite_kernel(MLP(features=8, sparsity=ni.TopK(8, "soft", 0.1))), "no finite threshold"),
        (lambda: infinite_kernel(MLP(), backend="stax"), "unknown backend"),
        (lambda: infinite_kernel(MLP(), order=0), "order is 0"),
        (lambda: infinite_kernel(MLP())(np.zeros(3)), "Reshape it"),
        (lambda: infinite_kernel(MLP())(np.zeros((3, 2)), np.zeros((3, 1))), "both come from one domain"),
        (lambda: infinite_kernel(MLP())(np.zeros((3, 2)), hyper={"omega": 1.0}), "has no settings"),
        (
            lambda: infinite_kernel(MLP(activation="sine"))(np.zeros((3, 2)), hyper={"omgea": 1.0}),
            "unknown setting of CoordinateMLP 'omgea'; known: activation.omega, activation.phase, omega, phase",
        ),
    ],
)
def test_refusals_name_the_part(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_takes_only_our_network(unchecked):
    with pytest.raises(TypeError, match=r"net is Dense.*compose the maps"):
        infinite_kernel(nn.Dense(1))


@stax_installed
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "is uniform"),
        ({"activation": "gauss"}, "weights are uniform"),
        ({"bias_law": NORMAL, "residual": True}, "residual"),
        ({"bias_law": NORMAL, "sparsity": ni.TopK(8)}, "sparsity"),
        ({"bias_law": NORMAL, "normalization": "sphere"}, "normalization=Sphere"),
        ({"bias_law": NORMAL, "normalization": ni.Sphere("hidden_pre", 2.0)}, "radius 2.0"),
        ({"bias_law": NORMAL, "encoding": ni.GaussianFourier(8)}, "GaussianFourier"),
    ],
)
def test_what_stax_does_not_have_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message + '.*backend="own"'):
        infinite_kernel(ni.CoordinateMLP(**settings), backend="neural-tangents")


@pytest.mark.parametrize(
    ("start", "name", "value"),
    [
        (ni.networks.Gabor(omega=10.0, scale=5.0), "activation.omega", 60.0),
        (ni.networks.Gabor(omega=10.0, scale=5.0), "activation.scale", 20.0),
        (ni.networks.Gauss(0.1), "activation.width", 0.02),
    ],
)
def test_series_have_the_terms_that_a_replaced_setting_needs(start, name, value):
    x = jnp.linspace(-1, 1, 12)[:, None]
    net = ni.CoordinateMLP(features=64, depth=2, activation=start)
    expected = ni.infinite_kernel(ni.networks.with_settings(net, {name: value}))(x)
    found = ni.infinite_kernel(net)(x, hyper={name: value})
    np.testing.assert_allclose(found.ntk, expected.ntk, atol=1e-5 * float(expected.ntk.max()))
