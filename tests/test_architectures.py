"""The field's architectures, each against its own formula."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_inr as ni
from ntk_inr.kernels.adapters import training_call
from ntk_inr.networks import hash_grid, initializers
from tests.conftest import quick


def arrays(tree):
    """Return a tree's leaves in NumPy, which broadcasts as the formulas are written."""
    return jax.tree.map(np.asarray, tree)


FORMULAS = {
    "finer": (ni.networks.Finer(omega=3.0, frozen_scale=False), lambda u: np.sin(3 * (np.abs(u) + 1) * u)),
    "spder": (ni.networks.Spder(omega=3.0), lambda u: np.sin(3 * u) * np.sqrt(np.abs(3 * u))),
    "sinc": (ni.networks.Sinc(omega=3.0), lambda u: np.sinc(3 * u / np.pi)),
    "hosc": (ni.networks.Hosc(sharpness=2.0, omega=3.0), lambda u: np.tanh(2 * np.sin(3 * u))),
    "quadratic": (ni.networks.Quadratic(width=0.3), lambda u: 1 / (1 + (u / 0.3) ** 2)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_and_their_slopes(x64, name):
    """Slopes by central differences, at zero too and just beside it, where series take over."""
    activation, formula = FORMULAS[name]
    u = np.concatenate([np.linspace(-2, 2, 81), [1e-4, -1e-4, 3.3e-3]])
    np.testing.assert_allclose(activation(jnp.asarray(u)), formula(u), atol=1e-12)
    slopes = jax.vmap(jax.grad(activation))(jnp.asarray(u))
    step = 1e-6
    # There the second derivative of these two is not bounded, or jumps.
    away = (np.abs(u) > 1e-3) | (name not in ("spder", "finer"))
    numeric = (formula(u + step) - formula(u - step)) / (2 * step)
    np.testing.assert_allclose(slopes[away], numeric[away], atol=1e-7)
    assert float(jax.grad(activation)(0.0)) == pytest.approx({"finer": 3.0, "hosc": 6.0}.get(name, 0.0), abs=1e-12)


LAYERED = {
    "siren": (ni.networks.Sine(omega=4.0), lambda w, u: np.sin(w * u)),
    "finer": (ni.networks.Finer(omega=4.0), lambda w, u: np.sin(w * (np.abs(u) + 1) * u)),
    "spder": (ni.networks.Spder(omega=4.0), lambda w, u: np.sin(w * u) * np.sqrt(np.abs(w * u))),
    "sinc": (ni.networks.Sinc(omega=4.0), lambda w, u: np.sinc(w * u / np.pi)),
    "hosc": (ni.networks.Hosc(2.0, omega=4.0), lambda w, u: np.tanh(2 * np.sin(w * u))),
    "gabor": (ni.networks.Gabor(1.5, omega=4.0), lambda w, u: np.exp(-((1.5 * u) ** 2)) * np.cos(w * u)),
}


@pytest.mark.parametrize("name", quick(LAYERED, "finer"))
def test_the_first_frequency_multiplies_weights_and_biases_of_the_first_layer(key, x, name):
    activation, formula = LAYERED[name]
    first = dataclasses.replace(activation, first_omega=9.0)
    apply, params = ni.init(ni.CoordinateMLP(features=6, depth=3, activation=first), key, x)
    h = np.asarray(x, np.float64)
    for layer, omega in enumerate((9, 4, 4)):
        p = arrays(params[f"hidden_{layer}"])
        h = formula(omega, h @ p["kernel"] + p["bias"])
    p = arrays(params["readout"])
    np.testing.assert_allclose(apply(params, x), h @ p["kernel"] + p["bias"], atol=2e-5)


def test_siren_fast_is_sirens_for_sound(key):
    """Its authors' sin(3000 (w t + b)) with w in U(±1) and b in U(±1), the other layers' sin(30 u)."""
    net, t = ni.variant("siren+fast", features=64, depth=2), np.linspace(-1, 1, 9)[:, None]
    apply, params = ni.init(net, key, jnp.asarray(t, jnp.float32))
    one, two, last = (arrays(params[name]) for name in ("hidden_0", "hidden_1", "readout"))
    h = np.sin(3000 * (np.float32(t) * one["kernel"] + one["bias"]))
    h = np.sin(30 * (h @ two["kernel"] + two["bias"]))
    # Phases of thousands of radians are rounded to 2e-4, which the second layer magnifies.
    np.testing.assert_allclose(apply(params, t), h @ last["kernel"] + last["bias"], atol=3e-3)
    assert 0.9 < np.abs(one["bias"]).max() <= 1
    assert np.abs(two["kernel"]).max() <= np.sqrt(6 / 64) / 30
    assert ni.networks.with_settings(net, {"first_omega_0": 300}).activation.first_omega == 300


def test_finers_scale_is_a_constant_to_its_derivative():
    slope = float(jax.grad(ni.networks.Finer(omega=2.0))(0.5))
    assert slope == pytest.approx(2 * 1.5 * np.cos(2 * 1.5 * 0.5), rel=1e-6)


def test_finers_first_biases_are_wide(key, x):
    net = ni.CoordinateMLP(features=4000, depth=2, activation=ni.networks.Finer(bias_spread=5.0))
    _, params = ni.init(net, key, x)
    assert 4.9 < float(jnp.abs(params["hidden_0"]["bias"]).max()) <= 5.0
    assert float(jnp.abs(params["hidden_1"]["bias"]).max()) <= 4000**-0.5


def test_initializer_overrides_the_activation(key, x):
    net = ni.CoordinateMLP(features=2000, depth=1, out=500, activation="sine", initializer="glorot")
    _, params = ni.init(net, key, x)
    for name, fans in (("hidden_0", (x.shape[1], 2000)), ("readout", (2000, 500))):
        kernel = params[name]["kernel"]
        # Glorot and Bengio's variance 2 / (fan_in + fan_out).
        assert float(kernel.var()) == pytest.approx(2 / sum(fans), rel=4 * (2 / kernel.size) ** 0.5)
    only = ni.CoordinateMLP(initializer=ni.networks.Scheme(ni.networks.Law(1.0)), bias_law=None)
    assert only.laws(readout=True) == (ni.networks.Law(1.0), None)


def test_geometric_networks_start_as_distances(key):
    net = ni.CoordinateMLP(features=4096, depth=3, initializer=ni.networks.geometric(radius=0.4))
    x = jax.random.uniform(key, (40, 3), minval=-1.0)
    apply, params = ni.init(net, key, x)
    # Each of the three layers keeps the norm to about 1/sqrt(width), the readout likewise.
    np.testing.assert_allclose(apply(params, x)[:, 0], jnp.linalg.norm(x, axis=1) - 0.4, atol=8 * 4096**-0.5)
    with pytest.raises(ValueError, match="standard"):
        ni.CoordinateMLP(initializer="geometric", parameterization="ntk")


def test_vi3nr_keeps_preactivations(key):
    activation, sigma, width = ni.networks.Gauss(0.3), 0.7, 1500
    scheme = ni.networks.vi3nr(activation, sigma=sigma)
    h = jax.random.uniform(key, (400, 3), minval=-1.0)
    for layer in range(4):
        law = scheme.law(first=layer == 0, readout=False)
        key, own = jax.random.split(key)
        u = h @ (law.std(h.shape[1]) * law.draw(own, (h.shape[1], width)))
        # The units of one draw share the examples: a few percent at three inputs.
        assert float(u.std()) == pytest.approx(sigma, rel=0.08)
        h = activation(u)


def test_vi3nr_balances_values_and_gradients():
    gauss = ni.networks.Gauss(0.5)
    # E phi^2 = 1/sqrt(d) and E phi'^2 = 16 sigma^2 / d^1.5 with d = 1 + 8 sigma^2.
    assert ni.networks.vi3nr(gauss).first.gain / 3 == pytest.approx((8 + 128**0.5) / 32, rel=1e-4)
    for function in (jnp.tanh, jax.nn.relu):
        with pytest.raises(ValueError, match="give sigma"):
            ni.networks.vi3nr(function)
    assert ni.networks.vi3nr(jax.nn.relu, sigma=1.0).hidden.gain == pytest.approx(2, rel=1e-5)


def test_batch_norm_by_the_batch_in_training_and_by_averages_after(key, x):
    net = ni.CoordinateMLP(
        features=8, depth=1, activation=lambda u: u, normalization=ni.networks.BatchNorm(momentum=0.0)
    )
    apply, params = ni.init(net, key, x)
    values, trained = training_call(apply)(apply, params, x, 0)
    # Without momentum the averages are this batch's own, so evaluation repeats it.
    np.testing.assert_allclose(trained(params, x), values, atol=1e-5)
    p = arrays(params)
    u = np.asarray(x) @ p["hidden_0"]["kernel"] + p["hidden_0"]["bias"]
    standard = (u - u.mean(0)) / np.sqrt(u.var(0) + 1e-5)
    expected = standard @ p["readout"]["kernel"] + p["readout"]["bias"]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert float(jnp.abs(apply(params, x) - values).max()) > 1e-2


def test_weight_norm_changes_the_kernel_alone(key, x):
    plain, normed = (ni.CoordinateMLP(features=8, depth=2, normalization=name) for name in (None, "weight"))
    (apply, params), (other, split) = (ni.init(net, key, x) for net in (plain, normed))
    kernels = ({name: layer["kernel"] for name, layer in tree.items()} for tree in (params, split))
    # Drawn by two programs, whose logarithms may round otherwise.
    jax.tree.map(functools.partial(np.testing.assert_array_max_ulp, maxulp=4), *kernels)
    np.testing.assert_allclose(other(split, x), apply(params, x), atol=1e-6)
    # The function does not see the length of v.
    longer = {name: {**layer, "kernel": 3 * layer["kernel"]} for name, layer in split.items()}
    np.testing.assert_allclose(other(longer, x), apply(params, x), atol=1e-6)


@pytest.mark.parametrize(
    "gate",
    [
        pytest.param(ni.TopK(k=optax.linear_schedule(8, 2, 6)), marks=pytest.mark.slow),
        ni.TopK(k=optax.linear_schedule(7, 2, 6), mode="soft", temperature=optax.exponential_decay(1.0, 1, 0.5)),
    ],
    ids=["hard", "soft"],
)
def test_gates_follow_their_schedule(key, x, gate):
    u = jax.random.normal(key, (5, 8))
    for step in (0, 3, 6):
        np.testing.assert_allclose(gate(u, step), gate.at(step)(u) if gate.at(step).k < 8 else u, atol=1e-6)
    with pytest.raises(ValueError, match=r"\.at\(step\)"):
        gate(u)
    apply, params = ni.init(ni.CoordinateMLP(features=8, depth=1, sparsity=gate), key, x)
    fixed, _ = ni.init(ni.CoordinateMLP(features=8, depth=1, sparsity=gate.at(6)), key, x)
    values, after = training_call(apply)(apply, params, x, 6)
    np.testing.assert_allclose(values, fixed(params, x), atol=1e-6)
    np.testing.assert_array_equal(after(params, x), values)
    with pytest.raises(ValueError, match=r"\.at\(step\)"):
        ni.infinite_kernel(ni.CoordinateMLP(features=8, sparsity=gate))


def test_models_without_state_train_as_they_are(key, x):
    apply, _ = ni.init(ni.variant("siren", features=8, depth=1), key, x)
    assert training_call(apply) is None
    assert training_call(lambda params, x: x) is None


def test_fouriernet_is_products_of_filters(key, x):
    net = ni.networks.FourierNet(features=6, depth=3, scale=5.0)
    apply, params = ni.init(net, key, x)
    p = arrays(params)
    filters = [np.sin(np.asarray(x) @ p[f"frequency_{i}"] + p[f"phase_{i}"]) for i in range(3)]
    z = filters[0]
    for layer in (1, 2):
        z = (z @ p[f"hidden_{layer}"]["kernel"] + p[f"hidden_{layer}"]["bias"]) * filters[layer]
    expected = z @ p["readout"]["kernel"] + p["readout"]["bias"]
    np.testing.assert_allclose(apply(params, x), expected, atol=1e-6)
    assert float(jnp.abs(p["frequency_0"]).max()) <= 5.0 / (x.shape[1] * 3) ** 0.5
    # The authors' code scales the hidden weights alone; the readout is PyTorch's linear layer.
    _, wide = ni.init(ni.networks.FourierNet(features=400, depth=2, out=50, weight_scale=6.0), key, x)
    for layer, bound in (("hidden_1", np.sqrt(6 / 400)), ("readout", 1 / 20)):
        assert 0.99 * bound < np.abs(wide[layer]["kernel"]).max() <= bound
        assert np.abs(wide[layer]["bias"]).max() <= 1 / 20
    frozen, params = ni.init(net.clone(trained=False), key, x)
    assert set(params) == {"hidden_1", "hidden_2", "readout"}
    np.testing.assert_allclose(frozen(params, x).shape, (len(x), 1))


def test_gabornets_filters_are_windows(key, x):
    net = ni.networks.GaborNet(features=6, depth=1, scale=5.0)
    apply, params = ni.init(net, key, x)
    p = arrays(params)
    distances = ((np.asarray(x)[:, None] - p["centre_0"][None]) ** 2).sum(2)
    filters = np.exp(-p["sharpness_0"] / 2 * distances) * np.sin(np.asarray(x) @ p["frequency_0"] + p["phase_0"])
    np.testing.assert_allclose(apply(params, x), filters @ p["readout"]["kernel"] + p["readout"]["bias"], atol=1e-6)


def test_bacon_keeps_its_band_limits(x64, key):
    net = ni.networks.BACON(features=32, depth=3, bandwidth=6.0, scales=(1, 2, 3), param_dtype=jnp.float64)
    n = 64
    x = jnp.asarray(-1 + 2 * np.arange(n)[:, None] / n)
    apply, params = ni.init(net, key, x)
    values = np.asarray(apply(params, x))
    power = np.abs(np.fft.rfft(values, axis=0)) / n
    # 6 cycles a unit are 12 in the period of 2, 4 for each of three layers.
    for column, limit in enumerate((4, 8, 12)):
        assert power[limit + 1 :, column].max() < 1e-12
        assert power[: limit + 1, column].max() > 1e-3
    np.testing.assert_allclose(apply(params, x + 2), values, atol=1e-9)
    assert ni.networks.BACON(depth=2, bandwidth=6.0).readouts == (2,)


def test_bacons_frequencies_are_its_authors(key):
    """Their round(pi f s / q) q, multiples of q = 2 pi on [-0.5, 0.5], for 256 pixels: half of that on [-1, 1]."""
    scales = 1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4
    net = ni.networks.BACON(features=3000, depth=5, bandwidth=256 / 4, input_scales=scales, scales=(2, 3, 5))
    variables = net.init(key, jnp.zeros((1, 2)))
    for layer, scale in enumerate(scales):
        theirs = round(np.pi * 256 * scale / (2 * np.pi)) * 2 * np.pi
        frequencies = np.asarray(variables["constants"][f"frequency_{layer}"])
        assert np.abs(frequencies).max() == pytest.approx(theirs / 2, rel=1e-6)
        np.testing.assert_allclose(frequencies / np.pi, np.round(frequencies / np.pi), atol=1e-4)
    readout = variables["params"]["readout_5"]["kernel"]
    assert 0.99 * np.sqrt(6 / 3000) < np.abs(readout).max() <= np.sqrt(6 / 3000)
    # Nine cycles for four layers: 4.5 half cycles each, which rounds to even.
    assert ni.networks.BACON(bandwidth=9.0).steps == (4, 4, 4, 4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bandwidth": 0.4, "depth": 4}, "more than 1,"),
        ({"depth": 2, "input_scales": (0.5,)}, "1 entries for 2 layers"),
        ({"depth": 2, "input_scales": (0.5, -0.5)}, "an entry of input_scales"),
        ({"depth": 2, "input_scales": (0.99, 0.01)}, "no layer's part rounds to 0"),
        ({"scales": (3, 1)}, "rising order"),
        ({"scales": (5,)}, "layers from 1 to 4"),
    ],
)
def test_bacon_refuses(settings, said):
    with pytest.raises(ValueError, match=said):
        ni.networks.BACON(**settings)


# By s = 2: the waves and windows of the reference code, ``z`` of its "linear" or "freqs", ``y`` of its second map.
WAVELETS = {
    "complex": lambda omega, z, y: np.exp(1j * omega * z - np.abs(2 * z) ** 2),
    "complex2d": lambda omega, z, y: np.exp(1j * omega * z) * np.exp(-4 * (np.abs(z) ** 2 + np.abs(y) ** 2)),
    "real": lambda omega, z, y: np.cos(omega * z) * np.exp(-((2 * y) ** 2)),
}


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_wire_is_complex_arithmetic(x64, key, wavelet):
    x = jax.random.uniform(key, (7, 2), minval=-1.0, dtype=jnp.float64)
    sizes = {"features": 12, "depth": 3, "scale": 2.0, "omega": 3.0, "first_omega": 5.0}
    net = ni.networks.Wire(**sizes, wavelet=wavelet, param_dtype=jnp.float64)
    apply, params = ni.init(net, key, x)
    p = arrays(params)

    def affine(name, h):
        layer = p.get(name)
        if layer is None:
            return None
        if "kernel" in layer:
            return h @ layer["kernel"] + layer["bias"]
        kernel, bias = (layer[f"{part}_real"] + 1j * layer[f"{part}_imaginary"] for part in ("kernel", "bias"))
        return h @ kernel + bias

    h = np.asarray(x)
    for layer, omega in enumerate((5, 3, 3)):
        h = WAVELETS[wavelet](omega, affine(f"hidden_{layer}", h), affine(f"window_{layer}", h))
    if wavelet == "real":
        expected = affine("readout", h)
    else:
        readout = p["readout_real"]["kernel"] + 1j * p["readout_imaginary"]["kernel"]
        expected = (h @ readout).real + p["readout_real"]["bias"]
    np.testing.assert_allclose(apply(params, x), expected, atol=1e-12)
    # Complex numbers count as two: 12 / sqrt(2) units, and 12 / 2 where there are two complex maps.
    assert len(p["hidden_1"]["kernel" if wavelet == "real" else "kernel_real"]) == (6 if wavelet == "complex2d" else 8)
    assert ("window_1" in p) == (wavelet != "complex")


def test_hash_grid_interpolates(x64, key):
    grid = ni.HashGrid(levels=3, features=2, log2_size=6, base=3, growth=2.0, param_dtype=jnp.float64)
    x = jax.random.uniform(key, (50, 2), minval=-1.0, dtype=jnp.float64)
    table = grid.init(key, x)["params"]["table"]
    encode = functools.partial(grid.apply, {"params": {"table": table}})
    np.testing.assert_allclose(grid.apply({"params": {"table": jnp.ones_like(table)}}, x), 1.0)  # weights sum to 1
    # Linear between neighbouring corners of the finest grid of 12 cells, and equal to the table at corners.
    corner = jnp.array([[-1 + 2 * 4 / 12, -1 + 2 * 7 / 12]])
    ends = encode(corner), encode(corner + jnp.array([[2 / 12, 0.0]]))
    np.testing.assert_allclose(encode(corner + jnp.array([[0.5 / 12, 0.0]])), 0.75 * ends[0] + 0.25 * ends[1])
    np.testing.assert_allclose(encode(jnp.array([[-1.0, -1.0]]))[0, :2], table[0])
    np.testing.assert_allclose(encode(jnp.array([[1.0, 1.0]]))[0, :2], table[15])  # 4 x 4 corners, each its own
    np.testing.assert_allclose(encode(corner - 1e-9), encode(corner + 1e-9), atol=1e-11)  # continuous
    np.testing.assert_array_equal(encode(jnp.array([[5.0, -7.0]])), encode(jnp.array([[1.0, -1.0]])))
    assert table.shape == (16 + 49 + 64, 2)  # 13 x 13 corners share 64
    hashed = hash_grid._rows(jnp.asarray(np.stack(np.meshgrid(*[np.arange(13)] * 2), -1), jnp.uint32), 12, 64)
    # 169 corners share 64 rows: about 93 % of the rows are used by a good hash.
    assert len(np.unique(hashed)) > 50
    with pytest.raises(ValueError, match="at most 7"):
        grid.init(key, jnp.zeros((1, 8)))


@pytest.mark.parametrize(("size", "interpolation"), [(8, "linear"), (None, "smoothstep")])
def test_hash_grid_is_instant_ngps(x64, key, size, interpolation):
    """Levels from N_min to N_max by b, rows by the paper's hash where corners are too many, weights of either kind."""
    low, high, levels = 4, 19, 3
    grid = ni.HashGrid(levels, 2, size, low, finest=high, interpolation=interpolation, param_dtype=jnp.float64)
    x = np.asarray(jax.random.uniform(key, (20, 2), minval=-1.0, dtype=jnp.float64))
    table = np.asarray(grid.init(key, jnp.asarray(x))["params"]["table"])
    b, expected, start = np.exp((np.log(high) - np.log(low)) / (levels - 1)), [], 0
    for level in range(levels):
        cells = int(np.floor(low * b**level + 1e-9))
        rows = (cells + 1) ** 2 if size is None else min((cells + 1) ** 2, 2**size)
        place = (x + 1) / 2 * cells
        corner, t = np.floor(place).astype(int), place - np.floor(place)
        t = t if interpolation == "linear" else 3 * t**2 - 2 * t**3
        value = 0
        for i, j in np.ndindex(2, 2):
            u, v = corner[:, 0] + i, corner[:, 1] + j
            full = rows == (cells + 1) ** 2
            row = u + v * (cells + 1) if full else (u ^ (v * 2654435761 % 2**32)) % 2**size
            weight = (t[:, 0] if i else 1 - t[:, 0]) * (t[:, 1] if j else 1 - t[:, 1])
            value = value + weight[:, None] * table[start + row]
        start += rows
        expected.append(value)
    assert (grid.cells[0], grid.cells[-1], len(table)) == (low, high, start)
    np.testing.assert_allclose(
        grid.apply({"params": {"table": table}}, jnp.asarray(x)), np.concatenate(expected, 1), atol=1e-12
    )


def test_layer_norm_may_train_a_gain_and_a_bias(key, x):
    norm = ni.networks.LayerNorm(trained=True)
    apply, params = ni.init(ni.CoordinateMLP(features=6, depth=1, normalization=norm), key, x)
    own = {"scale": jnp.linspace(0.5, 2.0, 6), "bias": jnp.linspace(-1.0, 1.0, 6)}
    p = arrays(params | {"layer_norm_0": own})
    u = np.asarray(x) @ p["hidden_0"]["kernel"] + p["hidden_0"]["bias"]
    u = (u - u.mean(1, keepdims=True)) / np.sqrt(u.var(1, keepdims=True) + 1e-6)
    h = np.maximum(u * p["layer_norm_0"]["scale"] + p["layer_norm_0"]["bias"], 0)
    expected = h @ p["readout"]["kernel"] + p["readout"]["bias"]
    np.testing.assert_allclose(apply(params | {"layer_norm_0": own}, x), expected, atol=1e-5)
    plain, same = ni.init(ni.CoordinateMLP(features=6, depth=1, normalization="layer"), key, x)
    assert set(params) - set(same) == {"layer_norm_0"}
    np.testing.assert_allclose(apply(params, x), plain(same, x), atol=1e-6)
    with pytest.raises(ValueError, match='placement "input"'):
        ni.infinite_kernel(ni.CoordinateMLP(normalization=ni.networks.LayerNorm("input", trained=True)))


def test_gabor_modulation_has_windows(key):
    x = jax.random.uniform(key, (6, 2), minval=-1.0)
    modulation = ni.networks.GaborModulation(omega=2.0, width=0.4, trained=True)
    factors, variables = modulation.init_with_output(key, x, 5, 2)
    p = arrays(variables["params"])
    waves = 2**0.5 * np.sin(2 * np.asarray(x) @ p["waves"]["v"] + p["waves"]["b"])
    distances = ((np.asarray(x)[:, None] - p["mu"][None]) ** 2).sum(2)
    np.testing.assert_allclose(factors, waves * np.exp(-distances / (2 * 0.4**2)), atol=1e-6)
    assert factors.shape == (6, 10)


def test_modulator_is_a_second_network(key, x):
    factors, variables = ni.networks.MLPModulation(shift=0.5).init_with_output(key, x, 5, 2)
    first, second = (arrays(variables["params"][f"hidden_{i}"]) for i in range(2))
    g = np.maximum(np.asarray(x) @ first["kernel"] + first["bias"], 0)
    g2 = np.maximum(np.concatenate([g, x], 1) @ second["kernel"] + second["bias"], 0)
    np.testing.assert_allclose(factors, np.concatenate([g, g2], 1) + 0.5, atol=1e-6)


def test_film_scales_and_shifts_by_its_code(key, x):
    net = ni.CoordinateMLP(features=6, depth=2, activation="sine", modulation=ni.networks.FiLM(latent=3))
    apply, params = ni.init(net, key, x)
    p, own = arrays(params), arrays(params["modulation"])
    scale, shift = ((own["latent"] @ own[name]).reshape(2, 6) for name in ("gain", "shift"))
    h = np.asarray(x)
    for layer in range(2):
        dense = p[f"hidden_{layer}"]
        h = np.sin(30 * ((1 + scale[layer]) * (h @ dense["kernel"] + dense["bias"]) + shift[layer]))
    np.testing.assert_allclose(apply(params, x), h @ p["readout"]["kernel"] + p["readout"]["bias"], atol=1e-5)
    plain = {**params, "modulation": {**params["modulation"], "latent": jnp.zeros(3)}}
    siren, _ = ni.init(ni.CoordinateMLP(features=6, depth=2, activation="sine"), key, x)
    rest = {name: leaf for name, leaf in params.items() if name != "modulation"}
    np.testing.assert_allclose(apply(plain, x), siren(rest, x), atol=1e-6)


def test_heads_follow_the_readout(key, x):
    plain, bounded, clipped = (
        ni.init(ni.CoordinateMLP(features=6, depth=1, head=head), key, x)
        for head in (None, "sigmoid", lambda v: jnp.clip(v, 0, 1))
    )
    values = plain[0](plain[1], x)
    np.testing.assert_allclose(bounded[0](bounded[1], x), jax.nn.sigmoid(values), atol=1e-6)
    np.testing.assert_allclose(clipped[0](clipped[1], x), jnp.clip(values, 0, 1))


def test_triangle_waves_and_blobs():
    x = jnp.linspace(-1, 1, 9)[:, None]
    waves = ni.networks.TriangleWave(bands=3).apply({}, x)
    np.testing.assert_allclose(waves[:, 0], -x[:, 0], atol=1e-6)  # so no two places have the same code
    np.testing.assert_allclose(waves[:, 1], 2 * np.abs(x[:, 0]) - 1, atol=1e-6)
    np.testing.assert_allclose(waves[:4, 2], waves[4:8, 2], atol=1e-6)  # the octave above has period 1
    blobs = ni.networks.OneBlob(bins=4).apply({}, jnp.array([[-0.75]]))
    np.testing.assert_allclose(blobs[0], np.exp(-(np.arange(4) ** 2) / 2), atol=1e-6)


def test_learnable_frequencies_are_parameters(key, x):
    net = ni.CoordinateMLP(features=6, depth=1, encoding=ni.GaussianFourier(4, 1.0, trained=True))
    _, params = ni.init(net, key, x)
    assert params["encoding"]["frequencies"].shape == (x.shape[1], 4)
    with pytest.raises(ValueError, match="has parameters"):
        ni.infinite_kernel(net)(x)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ni.CoordinateMLP(activation="siren"), "unknown activation 'siren'"),
        (lambda: ni.CoordinateMLP(initializer="xavier"), "unknown initializer"),
        (lambda: ni.CoordinateMLP(head="softmax"), "unknown head"),
        (lambda: ni.CoordinateMLP(normalization="bach"), "Did you mean 'batch'"),
        (lambda: ni.networks.BatchNorm(momentum=1.0), "share in"),
        (lambda: ni.HashGrid(log2_size=31), "at most 30"),
        (lambda: ni.HashGrid(growth=0.5), "growth"),
        (lambda: ni.HashGrid(finest=8), "finest is 8; expected at least 16"),
        (lambda: ni.HashGrid(interpolation="cubic"), "unknown interpolation"),
        (lambda: ni.HashGrid(log2_size=None, finest=2**16).sizes(2), "smaller log2_size"),
        (lambda: ni.networks.Sine(first_omega=0.0), "first_omega"),
        (lambda: ni.networks.Wire(wavelet="2d"), "unknown wavelet"),
        (lambda: ni.networks.OneBlob(bins=1), "bins"),
        (lambda: ni.networks.FourierNet(scale=0.0), "scale"),
        (lambda: ni.networks.GaborNet(alpha=-1.0), "alpha"),
        (lambda: ni.networks.Wire(omega=0.0), "omega"),
        (lambda: ni.networks.FiLM(latent=0), "latent"),
        (lambda: initializers.siren(0.0), "omega"),
        (lambda: ni.networks.geometric(-1.0), "radius"),
    ],
)
def test_bad_settings_are_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build()
