import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import ntk_inr as ni
from ntk_inr.networks import initializers
from ntk_inr.networks.settings import parts_of, setting_name
from tests.conftest import quick, small
from tests.networks import NETWORKS

# What of a network has no infinite width, and is named.
REFUSED = {
    "pe+batch": "normalization BatchNorm",
    "pe+weight": "normalization WeightNorm",
    "pe+gabor": "modulation GaborModulation",
    "pe+modulator": "modulation MLPModulation",
    "siren+film": "modulation FiLM",
    "wire": "net is Wire",
    "wire2d": "net is Wire",
    "wire+real": "net is Wire",
    "bacon at two scales": r"scales=\(1, 2\) reads out several layers",
    "residual, balanced, with a head": "head='sigmoid'",
    "distance in space": "initializer='geometric' draws weights of nonzero mean",
    "two layers": "net is TwoLayerNetwork",
}


def test_the_networks_have_every_public_part():
    """So that what is new stands in tests/networks.py, and every law is tested on it."""
    parts = [part for net, _ in NETWORKS.values() for part in (net, *parts_of(net).values())]
    public = {name for name in ni.networks.__all__ if isinstance(getattr(ni.networks, name), type)}
    # The base of some, the layer of all, and how they are trained.
    assert public - {type(part).__name__ for part in parts} == {"FilterNetwork", "Dense", "Recipe"}
    assert set(ni.variants()) <= set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_values_with_settings_and_a_limit_or_a_refusal(unchecked, name):
    net, d = NETWORKS[name]
    again = pickle.loads(pickle.dumps(net))
    assert again == net
    assert hash(again) == hash(net)
    settings = ni.settings_of(net)
    for path, value in settings.items():
        assert setting_name(net, path) == path
        if value is not None:
            assert ni.settings_of(ni.networks.with_settings(net, {path: value})) == settings
    if "depth" in settings:
        other = {"features": 12, "depth": 3}
        assert ni.settings_of(ni.networks.with_settings(net, other)) == settings | other
        net = ni.networks.with_settings(net, other).clone(out=3)
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, d)))
    outputs = 3 * len(getattr(net, "readouts", "1")) if "depth" in settings else 1
    assert jax.eval_shape(net.apply, variables, jnp.zeros((5, d))).shape == (5, outputs)
    refusal = REFUSED.get(name)
    if refusal is None:
        assert callable(ni.infinite_kernel(net))
    else:
        with pytest.raises((TypeError, ValueError), match=refusal):
            ni.infinite_kernel(net)


@pytest.mark.parametrize("name", quick(NETWORKS, "fouriernet"))
def test_laws_of_the_values_of_networks(key, name):
    """The kernel's own law, that it is the float64 Jacobian's, is tested in tests/test_ntk.py on all of these."""
    net, d = NETWORKS[name]
    x = jax.random.uniform(key, (7, d), minval=-1.0)
    apply, params = ni.init(net, key, x)
    values = apply(params, x)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
    if name in ("rff+learned", "hash"):
        with pytest.raises(ValueError, match=f"encoding {type(net.encoding).__name__} has parameters"):
            ni.infinite_kernel(net)(x)
    elif name not in REFUSED:
        limit = np.asarray(ni.infinite_kernel(net)(x).ntk)
        np.testing.assert_array_equal(limit, limit.T)
        assert np.linalg.eigvalsh(limit).min() > 0
    close(jax.jit(lambda apply, params, x: apply(params, x))(apply, params, x), values)
    stacked = jax.tree.map(lambda leaf: jnp.stack([jnp.zeros_like(leaf), leaf]), (apply, params))
    close(jax.vmap(lambda apply, params: apply(params, x))(*stacked)[1], values)
    budget = ni.variance_budget(apply, params, x)
    moments = ni.moments(ni.ntk(apply, params, x))
    np.testing.assert_allclose([budget.matrix.sum(), budget.variance], moments.variance, rtol=1e-4)
    if name in ni.variants():
        other, own = ni.init(net.clone(parameterization="ntk"), key, x)
        close(other(own, x), values)


def test_nerf_similarity_is_formula_4_1(x):
    bands = 5
    gamma = ni.NeRFEncoding(bands=bands).apply({}, x)
    delta = x[:, None, :] - x[None, :, :]
    frequencies = (np.pi * 2.0 ** np.arange(bands)).reshape(1, 1, 1, -1)
    expected = np.cos(np.asarray(delta)[..., None] * frequencies).sum(axis=(2, 3))
    np.testing.assert_allclose(gamma @ gamma.T, expected, atol=2e-4)


def test_nerf_can_append_its_input(x):
    assert ni.NeRFEncoding(bands=3, include_input=True).apply({}, x).shape == (23, 14)


def test_gaussian_fourier_has_constant_norm_and_mean_similarity_4_2(key, x):
    encoding = ni.GaussianFourier(features=20_000, scale=0.4)
    gamma, variables = encoding.init_with_output(key, x)
    np.testing.assert_allclose((gamma**2).sum(axis=1), 20_000, rtol=1e-4)
    delta2 = ((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=-1)
    expected = jnp.exp(-2 * jnp.pi**2 * 0.4**2 * delta2)
    # Var cos <= 1/2, so five standard errors of the mean over 20000 frequencies are 0.025.
    np.testing.assert_allclose(gamma @ gamma.T / 20_000, expected, atol=0.025)
    assert set(variables) == {"constants"}


def test_fixed_matrices_live_outside_params(key, x):
    for name in ("rff", "pe+hadamard"):
        variables = ni.variant(name, features=8, depth=2).init(key, x)
        assert "constants" in variables
        assert set(variables["params"]) == {"hidden_0", "hidden_1", "readout"}


def test_modulation_has_unit_energy_and_gaussian_similarity_6_2(key, x):
    g, _ = ni.FourierModulation(omega=2.0).init_with_output(key, x, 40_000)
    delta2 = ((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=-1)
    # Var(g g') <= 1.5, so five standard errors over 40000 units are 0.031.
    np.testing.assert_allclose(g @ g.T / 40_000, jnp.exp(-2 * delta2), atol=0.031)


def test_trained_modulation_is_a_parameter(key, x):
    _, params = small("pe", key, x, modulation=ni.FourierModulation(trained=True))
    assert set(params["modulation"]) == {"v", "b"}


@pytest.mark.parametrize("radius", [None, 0.5])
def test_sphere_puts_rows_on_the_sphere(key, radius):
    h = jax.random.normal(key, (7, 16))
    norms = jnp.linalg.norm(ni.Sphere(radius=radius, epsilon=1e-12)(h), axis=1)
    np.testing.assert_allclose(norms, 4.0 if radius is None else radius, rtol=1e-6)


def test_sphere_is_differentiable_at_zero():
    gradient = jax.grad(lambda h: ni.Sphere()(h).sum())(jnp.zeros((1, 4)))
    assert bool(jnp.isfinite(gradient).all())


@pytest.mark.parametrize("placement", ["input", "hidden_post", "hidden_pre"])
def test_sphere_placements(key, x, placement):
    """Each placement normalises the array that it names, and no two give the same function."""
    sphere = ni.Sphere(placement=placement, epsilon=1e-12)
    net = ni.CoordinateMLP(features=24, depth=1, encoding=ni.NeRFEncoding(4), normalization=sphere)
    apply, params = ni.init(net, key, x)
    gamma = ni.NeRFEncoding(4).apply({}, x)
    first, last = params["hidden_0"], params["readout"]
    h = sphere(gamma) if placement == "input" else gamma
    u = h @ first["kernel"] + first["bias"][None, :]
    z = nn.relu(sphere(u) if placement == "hidden_pre" else u)
    z = sphere(z) if placement == "hidden_post" else z
    np.testing.assert_allclose(apply(params, x), z @ last["kernel"] + last["bias"][None, :], atol=1e-5)


def test_layer_norm_standardises_rows(key):
    z = ni.networks.LayerNorm(epsilon=1e-12)(3 + jax.random.normal(key, (7, 16)))
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(axis=1), 1, rtol=1e-5)


def test_residual_layers_add_what_enters_them(key, x):
    apply, params = small("relu", key, x, residual=True)
    h = nn.relu(x @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"][None, :])
    h = h + nn.relu(h @ params["hidden_1"]["kernel"] + params["hidden_1"]["bias"][None, :])
    out = h @ params["readout"]["kernel"] + params["readout"]["bias"][None, :]
    np.testing.assert_allclose(apply(params, x), out, rtol=1e-5, atol=1e-5)


def test_biases_follow_their_law_or_are_left_out(key, x):
    _, params = small("relu", key, x, bias_law=None)
    assert set(params["hidden_0"]) == {"kernel"}
    _, params = ni.init(ni.CoordinateMLP(features=20_000, depth=1, bias_law=initializers.Law(3.0)), key, x)
    # Normal of variance 3 / 2; five standard errors of a variance from 20000 draws.
    np.testing.assert_allclose(params["hidden_0"]["bias"].var(), 1.5, rtol=5 * np.sqrt(2 / 20_000))


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        (ni.networks.Sine(omega=3.0, phase=0.5), lambda u: np.sin(3 * u + 0.5)),
        (ni.networks.Gauss(width=0.3), lambda u: np.exp(-(u**2) / 0.18)),
        (ni.networks.Gabor(scale=2.0, omega=5.0, phase=0.2), lambda u: np.exp(-4 * u**2) * np.cos(5 * u + 0.2)),
        (ni.networks.Erf(slope=0.7), lambda u: scipy.special.erf(0.7 * u)),
    ],
)
def test_activations_are_their_formulas(activation, formula):
    u = jnp.linspace(-2, 2, 41)
    np.testing.assert_allclose(activation(u), formula(np.asarray(u, np.float64)), atol=2e-6)


def test_siren_weights_follow_section_3_2(key, x):
    _, params = ni.init(ni.variant("siren", features=512, depth=2), key, x)
    assert float(jnp.abs(params["hidden_0"]["kernel"]).max()) <= 1 / 2
    bound = np.sqrt(6 / 512) / 30
    hidden = params["hidden_1"]["kernel"]
    assert float(jnp.abs(hidden).max()) <= bound
    # The variance of U(±b) is b**2 / 3; its estimate from 262144 draws is good to 0.5 %.
    np.testing.assert_allclose(float(hidden.var()), bound**2 / 3, rtol=5e-3)


@pytest.mark.slow
def test_ntk_parameterization_keeps_the_kernel_bounded(key, x):
    means = [
        float(ni.moments(ni.ntk(*ni.init(ni.variant("relu", features=width, parameterization="ntk"), key, x), x)).mean)
        for width in (64, 1024)
    ]
    assert means[1] < 3 * means[0]


def test_unit_draws_have_unit_variance(key):
    for law in (initializers.HE_NORMAL, initializers.BIAS_UNIFORM):
        # Five standard errors of a variance from 1e5 draws.
        assert abs(float(law.draw(key, (100_000,)).var()) - 1) < 5 * np.sqrt(2 / 100_000)


def test_any_callable_is_an_activation(key, x):
    apply, params = ni.init(ni.CoordinateMLP(features=8, depth=1, activation=jnp.tanh), key, x)
    assert apply(params, x).shape == (23, 1)


def test_pieces_work_alone_in_another_network(key, x):
    net = nn.Sequential([ni.NeRFEncoding(bands=2), ni.networks.Dense(8), nn.relu, ni.Sphere(), ni.networks.Dense(1)])
    apply, params = ni.init(net, key, x)
    assert ni.ntk(apply, params, x).shape == (23, 23)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ni.variant("pe+shpere"), "Did you mean 'pe\\+sphere'"),
        (lambda: ni.CoordinateMLP(features=0), "features is 0; expected at least 1"),
        (lambda: ni.CoordinateMLP(activation="rely"), "Did you mean 'relu'"),
        (lambda: ni.CoordinateMLP(normalization="spere"), "Did you mean 'sphere'"),
        (lambda: ni.CoordinateMLP(parameterization="mup"), "unknown parameterization"),
        (lambda: ni.NeRFEncoding(bands=0), "bands is 0"),
        (lambda: ni.GaussianFourier(scale=-1.0), "scale is -1.0"),
        (lambda: ni.Sphere(placement="output"), "unknown placement"),
        (lambda: ni.Sphere(radius=0.0), "radius is 0.0"),
        (lambda: ni.FourierModulation(omega=float("nan")), "omega is nan"),
        (lambda: ni.networks.Sine(omega=0.0), "omega is 0.0"),
    ],
)
def test_wrong_settings_say_what_is_expected(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("setting", [{"features": 2.5}, {"depth": True}, {"activation": 3}])
def test_wrong_kinds_are_type_errors(unchecked, setting):
    with pytest.raises(TypeError):
        ni.CoordinateMLP(**setting)


def test_init_and_split_refuse_what_they_cannot_take(unchecked, key, x):
    with pytest.raises(TypeError, match="expected a Flax Linen module"):
        ni.init(lambda p, x: x, key, x)
    with pytest.raises(TypeError, match="expected a pair"):
        ni.split(ni.variant("relu"))
    with pytest.raises(ValueError, match="no 'params'"):
        ni.split((ni.NeRFEncoding(), {}))
    with pytest.raises(TypeError, match="floating point"):
        ni.init(ni.variant("relu"), key, np.zeros((3, 2), int))
