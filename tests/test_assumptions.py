"""What the check of assumptions says where the answer is known: T2, T8, and networks made to fail."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from ntk_inr.kernels import memory
from ntk_inr.variance import assumptions
from ntk_inr.variance.assumptions import check_assumptions
from tests import kernel_models
from tests.conftest import small


def two_layer(d, width, readout=None):
    """T2: only the first layer is trained, under a fixed readout of signs."""
    rng = np.random.default_rng(0)
    readout = rng.choice([-1.0, 1.0], width) if readout is None else readout
    readout = jnp.asarray(readout[:, None] / width**0.5, jnp.float32)
    return lambda params, x: jax.nn.relu(x @ params) @ readout, weights(d, width)


def weights(d, width, seed=0):
    return np.random.default_rng(seed).normal(size=(d, width)).astype(np.float32)


def mlp(encode, fan_in, out=1):
    """Two hidden layers of ReLU units with biases, He-normal."""
    rng = np.random.default_rng(0)
    layers = {}
    for i, (m, k) in enumerate([(fan_in, 24), (24, 24), (24, out)]):
        kernel, bias = rng.normal(size=(m, k)) * (2 / m) ** 0.5, rng.uniform(-1, 1, (1, k)) / m**0.5
        layers[f"layer_{i}"] = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}

    def apply(params, x):
        h = encode(x)
        for i in range(3):
            h = h @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"]
            h = h if i == 2 else jax.nn.relu(h)
        return h

    return apply, layers


def nerf(bands):
    return lambda x: ni.NeRFEncoding(bands=bands).apply({}, x)


def sphere(n, d):
    points = np.random.default_rng(7).normal(size=(n, d))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def pixels(side):
    axis = (2 * np.arange(side) + 1) / side - 1
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)


def find(report, assumption, layer=""):
    [found] = [f for f in report.findings if f.assumption == assumption and layer in f.layer]
    return found


def test_all_hold_for_a_wide_network_on_the_sphere():
    """The setting of T2: equal norms, directions of many dimensions, one layer, large width."""
    report = check_assumptions(*two_layer(24, 4096), sphere(200, 24))
    assert not report.failed
    np.testing.assert_allclose(find(report, "weak correlation of B").measured, 1 / 4 + 1 / (24 * np.pi**2), rtol=0.01)
    np.testing.assert_allclose(report.proxy, report.variance, rtol=0.1)
    np.testing.assert_allclose(report.independent, report.variance, rtol=0.1)
    assert find(report, "independent layers").measured == pytest.approx(1, abs=1e-12)
    assert np.isclose(find(report, "sub-Gaussian units of B").measured, 2, rtol=0.05)  # gates: on half the time


def test_raw_pixel_coordinates_break_equal_norms_and_weak_correlation():
    report = check_assumptions(*mlp(lambda x: x, 2), pixels(12))
    for name in ("constant diagonal of F", "weak correlation of F"):
        assert not find(report, name, "layer_1").holds
    assert not find(report, "constant diagonal of F", "layer_0").holds
    assert not find(report, "constant diagonal of K").holds
    assert "stay alike from one coordinate to another" in report.table()


@pytest.fixture(scope="module")
def encoded():
    """A network with an encoding that a grid of 12 x 12 pixels does not alias, and its report there."""
    model = mlp(nerf(3), 12)
    return model, check_assumptions(*model, pixels(12))


def test_a_positional_encoding_restores_them(encoded):
    _, report = encoded
    for name in ("constant diagonal of F", "weak correlation of F"):
        assert find(report, name, "layer_0").holds


@pytest.mark.parametrize("heavy", [False, True])
def test_heavy_tailed_weights_are_not_sub_gaussian(heavy):
    readout = np.random.default_rng(0).standard_t(1.5 if heavy else 50.0, 1024)
    report = check_assumptions(*two_layer(8, 1024, readout), sphere(100, 8))
    tails, gram = (find(report, name) for name in ("sub-Gaussian units of B", "concentrated Gram B"))
    assert (tails.holds, gram.holds) == (not heavy, not heavy)
    if heavy:
        assert tails.error_percent < -10
        assert "units of B have kurtosis" in report.table()


def test_the_variance_that_finite_width_adds_is_that_of_2_3():
    """Off the diagonal (2.3) adds (n - 1) mean(rho^2 p (1 - p)) / m to (n - 1) mean(rho^2 p^2)."""
    x, width = sphere(80, 3), 256
    cosine = np.clip(np.asarray(x @ x.T, float), -1, 1)
    p = (np.pi - np.arccos(cosine)) / (2 * np.pi)
    off = ~np.eye(80, dtype=bool)
    fluctuating, wide = ((cosine**2 * part)[off].mean() for part in (p * (1 - p) / width, p**2))
    shares = []
    apply, _ = two_layer(3, width)
    for seed in range(6):
        report = check_assumptions(apply, weights(3, width, seed), x)
        shares.append(-find(report, "concentrated Gram B").error_percent / 100)
        assert find(report, "concentrated Gram K").error_percent == pytest.approx(-100 * shares[-1])
    np.testing.assert_allclose(np.mean(shares), fluctuating / (wide + fluctuating), rtol=0.05)


def test_fluctuations_are_the_mean_over_all_ways_to_halve_the_units():
    units = np.random.default_rng(0).normal(size=(5, 2, 6))
    gram = np.einsum("icm,jcm->ij", units, units)
    halves = []
    for chosen in itertools.combinations(range(6), 3):
        rest = [unit for unit in range(6) if unit not in chosen]
        first, second = (2 * np.einsum("icm,jcm->ij", units[..., at], units[..., at]) for at in (list(chosen), rest))
        halves.append((first - second) ** 2 / 4)
    spread, _ = assumptions._variances(assumptions._Part("F", gram + 0.5, units, 0.5, True))
    np.testing.assert_allclose(spread, np.mean(halves, axis=0), rtol=1e-12)


def test_gaussian_units_fluctuate_as_independent_gaussian_ones():
    units = np.random.default_rng(0).normal(size=(30, 1, 4000))
    gram = units[:, 0] @ units[:, 0].T
    spread, lawful = assumptions._variances(assumptions._Part("F", gram, units, 0.0, True))
    np.testing.assert_allclose(spread, lawful, rtol=0.2)


def test_the_independent_level_is_reached_by_units_that_vary_independently():
    units = np.random.default_rng(0).normal(0.4, 1.0, size=(3000, 1, 5)) * np.arange(1, 6)
    gram = units[:, 0] @ units[:, 0].T + 2.0
    side = assumptions._Part("F", gram, units, 2.0, True)
    measured = assumptions._mean(gram**2) / np.diagonal(gram).mean() ** 2
    np.testing.assert_allclose(assumptions._independent_level(side, math.nan), measured, rtol=0.02)


def explained(model, x):
    """Return the report, once its corrections are seen to lead from the proxy to the measured variance."""
    report = check_assumptions(*model, x)
    exact = ni.moments(np.asarray(ni.ntk(*model, x), float))
    np.testing.assert_allclose(report.variance, exact.variance, rtol=1e-5)
    total = sum(step.log_ratio for step in report.corrections)
    np.testing.assert_allclose(report.proxy * math.exp(total), report.variance, rtol=1e-12)
    assert report.corrections[-1].variance == report.variance
    np.testing.assert_allclose(sum({f.layer: f.share for f in report.findings if f.layer != "kernel"}.values()), 1)
    return report


WIDTH = kernel_models.WIDTH
SHAPES = {
    "tied": {"in": (2, WIDTH), "w": (WIDTH, WIDTH), "b": (WIDTH,), "out": (WIDTH, 3)},
    "odd_entries": {
        "frequency": (1, WIDTH),
        "left": (WIDTH, 2),
        "turned": (WIDTH, WIDTH),
        "scale": (WIDTH,),
        "out": (WIDTH, 3),
        "shift": (1, 3),
    },
    "tokens": {"w": (2, WIDTH), "b": (WIDTH,), "out": (WIDTH, 3)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_corrections_add_up_where_terms_are_no_product_of_two(x, name):
    """Weights used twice, parameters in no product, several tokens."""
    rng = np.random.default_rng(0)
    params = {leaf: rng.normal(size=shape).astype(np.float32) / 4 for leaf, shape in SHAPES[name].items()}
    assert "H" in {f.assumption[-1] for f in explained((getattr(kernel_models, name), params), x).findings}


@pytest.mark.parametrize("name", ["pe", "one-dimensional", "weights used twice"])
def test_layers_are_the_terms_of_the_budget(x, key, name):
    """With the readout's bias in the product of its weights, and the weights of one coordinate apart."""
    x = x[:, :1] if name == "one-dimensional" else x
    model = small("relu" if name == "one-dimensional" else "pe", key, x)
    if name == "weights used twice":
        params = {leaf: np.ones(shape, np.float32) * np.arange(shape[-1]) for leaf, shape in SHAPES["tied"].items()}
        model = kernel_models.tied, jax.tree.map(lambda leaf: leaf / WIDTH, params)
    budget = ni.variance_budget(*model, x)
    shares = {f.layer: f.share for f in check_assumptions(*model, x).findings if f.layer != "kernel"}
    assert tuple(shares) == budget.names
    own = np.diagonal(budget.matrix)
    np.testing.assert_allclose(list(shares.values()), own / own.sum(), rtol=1e-4)


def test_proxy_and_factors_are_those_of_the_definition():
    """(8.4), with means over pairs of two matrices formed by hand."""
    x = sphere(40, 3)
    apply, params = two_layer(3, 32)
    gates = np.asarray(x @ params > 0, float)
    F, B = np.asarray(x @ x.T, float), gates @ gates.T / 32
    off = ~np.eye(40, dtype=bool)
    tau_f, tau_b = ((G**2 / np.outer(np.diagonal(G), np.diagonal(G)))[off] for G in (F, B))
    scale = 39 * np.diagonal(F).mean() ** 2 * np.diagonal(B).mean() ** 2
    report = check_assumptions(apply, params, x)
    np.testing.assert_allclose(report.proxy, scale * tau_f.mean() * tau_b.mean(), rtol=1e-5)
    ratio = (tau_f * tau_b).mean() / (tau_f.mean() * tau_b.mean())
    factors = find(report, "independent factors")
    np.testing.assert_allclose([factors.measured, factors.error_percent], [ratio, 100 / ratio - 100], rtol=1e-5)
    np.testing.assert_allclose(report.corrections[0].variance, scale * (tau_f * tau_b).mean(), rtol=1e-5)
    norms = find(report, "constant diagonal of B")
    np.testing.assert_allclose(norms.measured, np.diagonal(B).std() / np.diagonal(B).mean(), rtol=1e-5)


def test_corrections_add_up_and_only_units_that_depend_on_the_parameters_fluctuate(x):
    report = explained(mlp(nerf(2), 8, out=3), x)
    told = {(f.assumption[-1], f.layer.split("/")[0]) for f in report.findings if "concentrated" in f.assumption}
    assert told == {("K", "kernel"), ("B", "layer_0"), ("F", "layer_1"), ("B", "layer_1"), ("F", "layer_2")}


def test_a_subset_estimates_the_whole_and_says_so(encoded):
    model, whole = encoded
    part, again, other = (check_assumptions(*model, pixels(12), size=100, key=jax.random.key(i)) for i in (0, 0, 1))
    assert (part.n, part.size) == (144, 100)
    assert "measured on 100 coordinates, a uniform subset of 144" in part.table()
    assert "all there are" in whole.table()
    np.testing.assert_allclose([part.variance, part.proxy], [whole.variance, whole.proxy], rtol=0.1)
    assert part.variance == again.variance != other.variance
    assert whole.variance_stderr == 0 < part.variance_stderr
    assert abs(part.variance - whole.variance) < 4 * part.variance_stderr


def test_more_coordinates_than_memory_holds_ask_for_a_subset(monkeypatch, encoded):
    monkeypatch.setattr(memory, "available_on_host", lambda: 500_000)
    with pytest.raises(ValueError, match=r"144 coordinates need .* pass key="):
        check_assumptions(*encoded[0], pixels(12))


def test_tolerance_moves_thresholds(encoded):
    model, report = encoded
    lax = check_assumptions(*model, pixels(12), tolerance=100.0)
    assert len(report.failed) > len(lax.failed) == 0


def test_refuses_traced_values():
    with pytest.raises(ValueError, match="can't be used inside jit"):
        jax.jit(lambda p, x: check_assumptions(lambda p, x: x @ p, p, x))(np.ones((4, 1)), np.ones((2, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 1}, "size is 1; expected at least 2"),
        ({"size": 3}, "size=3 is of a subset that is drawn; pass key="),
        ({"tolerance": 0.0}, "tolerance is 0.0; expected a finite number above 0"),
        ({"x": np.ones((1, 2), np.float32)}, "x holds one coordinate"),
        ({"x": np.full((3, 2), np.nan, np.float32)}, "NaN"),
        ({"x": np.eye(2, dtype=np.float32), "apply": lambda p, x: x @ p}, "zero off its diagonal"),
        ({"apply": lambda p, x: x}, "zero off its diagonal"),
    ],
)
def test_bad_input(unchecked, change, message):
    given = {"apply": lambda p, x: jnp.tanh(x @ p), "params": jnp.ones((2, 1)), "x": np.ones((4, 2), np.float32)}
    given |= change
    with pytest.raises(ValueError, match=message):
        check_assumptions(given.pop("apply"), given.pop("params"), given.pop("x"), **given)
