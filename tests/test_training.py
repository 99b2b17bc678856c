import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_inr as ni
from tests.conftest import in_float64, quick, small


@pytest.fixture
def y(x):
    return jnp.sin(3 * x[:, :1]) * x[:, 1:] / 2 + 0.5


def linear(params, x):
    """A model whose kernel never changes, so that T10 is exact for it."""
    features = jnp.concatenate([x, x**2, jnp.sin(4 * x)], axis=1)
    return features @ params


def two_columns(y):
    return jnp.concatenate([y, 1 - y**2], axis=1)


def half_frozen(params, x):
    """Another one, half of whose derivative training does not see."""
    return linear(params, x) + 0.3 * jax.lax.stop_gradient(jnp.cos(2 * x) @ params[:2])


@pytest.mark.parametrize("model", [linear, half_frozen])
def test_prediction_is_exact_for_a_linear_model(x, y, x64, model):
    x, y = in_float64((x, two_columns(y)))
    params = in_float64(np.random.default_rng(0).normal(size=(6, 2)))
    kernel = ni.kernels.training_kernel(model, params, x)
    rate = float(ni.max_learning_rate(kernel, c=2)) / 2
    # So many that a symmetric kernel is decomposed.
    curve = ni.predict_training(kernel, model(params, x) - y, learning_rate=rate, steps=100)
    run = ni.fit(model, params, x, y, optimizer=optax.sgd(rate), steps=100)
    np.testing.assert_allclose(run.losses, curve.loss[:-1], rtol=1e-10)
    np.testing.assert_allclose(run.psnr, curve.psnr, rtol=1e-10)
    np.testing.assert_allclose(model(run.params, x) - y, curve.residual, rtol=1e-9, atol=1e-12)
    assert run.steps_to(15.0) == curve.steps_to(15.0)


def frozen_sine(u):
    return jnp.sin(jax.lax.stop_gradient(jnp.abs(u) + 1) * u)


@jax.custom_vjp
def doubled(u):
    return 2 * u


doubled.defvjp(lambda u: (2 * u, None), lambda _, g: (2 * g,))


def nested(params, x):
    """In loops and calls of every kind, beside a rule of its own and a second, frozen use of a matrix."""
    h = jax.jit(frozen_sine)(doubled(x @ params["in"]))
    layers = (params["stack"], params["bias"])
    h = jax.lax.scan(lambda h, layer: (frozen_sine(h @ layer[0] + layer[1][None]), None), h, layers)[0]
    h = jax.checkpoint(frozen_sine)(h + params["bias"][:1]) @ jax.lax.stop_gradient(params["stack"][0]).T
    return jax.lax.cond(h.sum() < 1e9, frozen_sine, jnp.sin, h) @ params["out"]


def in_a_while_loop(params, x):
    u = x @ params["in"]
    steps = jax.lax.while_loop(lambda state: state[0] < 5, lambda state: (state[0] + 1, jnp.cos(state[1])), (0, u))
    return (u * jax.lax.stop_gradient(steps[1])) @ params["out"]


def rounded(params, x):
    """The straight-through estimator: nothing of the value follows ``in``."""
    u = x @ params["in"]
    return (u + jax.lax.stop_gradient(jnp.round(8 * u) / 8 - u)) @ params["out"]


FROZEN = {"nested": nested, "while": in_a_while_loop, "rounded": rounded}
SOFT = {"mode": "soft", "temperature": 0.1}
BUILT = {"finer": {}, "pe+topk+soft": {}, "pe": {"sparsity": ni.TopK(k=2, **SOFT, soft="straight_through")}}
WHOLE = {"hash": {"encoding": ni.HashGrid(levels=2, log2_size=4, base=2)}, "siren": {}, "pe+topk": {}}


@pytest.mark.parametrize("name", quick([*FROZEN, *BUILT, *WHOLE], "nested", "while", "finer", "pe+topk+soft", "hash"))
def test_a_small_step_follows_the_training_kernel(key, x64, name):
    """Exact to first order, where that of ``ni.ntk`` is not if ``stop_gradient`` leaves out some of the derivative."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (7, 2)), rng.normal(size=(7, 2))
    if name in FROZEN:
        shapes = {"in": (2, 6), "stack": (2, 6, 6), "bias": (2, 6), "out": (6, 2)}
        params = {leaf: jnp.asarray(0.4 * rng.normal(size=shape)) for leaf, shape in shapes.items()}
        apply = FROZEN[name]
    else:
        net = ni.variant(name, features=8, depth=1, out=2, **{**BUILT, **WHOLE}[name])
        apply, params = in_float64(ni.init(net, key, x.astype(np.float32)))
    residual = apply(params, x) - y
    gradient = jax.grad(lambda params: ((apply(params, x) - y) ** 2).sum() / (2 * y.size))(params)
    near = [apply(jax.tree.map(lambda p, g, s=s: p - s * g, params, gradient), x) for s in (1e-5, -1e-5)]
    change = (near[0] - near[1]) / 2e-5

    def error(kernel):
        expected = -jnp.einsum("ijop,jp->io", kernel, residual) / y.size
        return float(jnp.linalg.norm(change - expected) / jnp.linalg.norm(change))

    plan = ni.explain(apply, params, x)
    assert plan.frozen == ("ni.kernels.training_kernel" in str(plan)) == (name not in WHOLE)
    own, followed = (of(apply, params, x, outputs="full") for of in (ni.ntk, ni.kernels.training_kernel))
    assert error(followed) < 1e-6
    assert (error(own) > 1e-3) == plan.frozen
    if name in ("finer", "while"):
        parts = ni.kernels.training_kernel(apply, params, x, x[:4], outputs="diagonal", block=3, out="host")
        np.testing.assert_allclose(parts, jnp.einsum("ijoo->ijo", followed)[:, :4], rtol=1e-9, atol=1e-12)
        traced = jax.jit(functools.partial(ni.kernels.training_kernel, apply))(params, x)
        np.testing.assert_allclose(traced, jnp.einsum("ijoo->ij", followed) / 2, rtol=1e-9, atol=1e-12)


def test_a_full_derivative_that_jax_has_in_no_mode_says_why(x):
    def apply(params, x):
        return doubled(in_a_while_loop(params, x))

    params = {"in": jnp.ones((2, 3)), "out": jnp.ones((3, 1))}
    assert ni.explain(apply, params, x).frozen
    with pytest.raises(ValueError, match=r"neither in reverse.*nor forward.*Write the loop as a scan"):
        ni.kernels.training_kernel(apply, params, x)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_a_kernel_that_is_not_symmetric_has_a_rate_and_no_spectrum(array):
    rng = np.random.default_rng(0)
    lower = rng.normal(size=(40, 40))
    kernel = (lower @ lower.T + 40 * np.eye(40)) @ (np.eye(40) + 0.02 * rng.normal(size=(40, 40)))
    limit = float(ni.max_learning_rate(array(kernel)))
    for factor, grows in ((0.99, False), (1.01, True)):
        loss = ni.predict_training(array(kernel), np.ones((40, 1)), learning_rate=factor * limit, steps=3000).loss
        assert (loss[-1] > loss[0]) == grows
    some_pairs = functools.partial(ni.top_eigenpairs, k=2, key=jax.random.key(0))
    for function in (ni.eigenvalues, ni.spectra.eigensystem, ni.condition_number, ni.moments, some_pairs):
        with pytest.raises(ValueError, match=r"not symmetric.*ni\.predict_training.*ni\.max_learning_rate"):
            function(array(kernel))
    assert ni.max_learning_rate(array(np.array([[0.0, 1.0], [-1.0, 0.0]]))) == 0


def test_three_forms_of_the_kernel_predict_the_same(x, y, x64):
    x, y = in_float64((x, two_columns(y)))
    params = in_float64(np.random.default_rng(0).normal(size=(6, 2)))
    residual = linear(params, x) - y
    kernel = ni.ntk(linear, params, x)
    forms = [
        kernel,
        ni.spectra.eigensystem(kernel),
        ni.spectra.eigensystem(np.asarray(kernel)),
        ni.ntk(linear, params, x, outputs="full"),
    ]
    curves = [ni.predict_training(form, residual, learning_rate=0.1, steps=200) for form in forms]
    for curve in curves[1:]:
        np.testing.assert_allclose(curve.loss, curves[0].loss, rtol=1e-10)
        np.testing.assert_allclose(curve.residual, curves[0].residual, atol=1e-12)


def test_full_kernel_is_exact_where_outputs_share_features(key, x, y, x64):
    """At finite width the hidden layers couple outputs; to first order in the step only "full" sees it."""
    model = in_float64(small("siren", key, x, out=2))
    x, y = in_float64((x, two_columns(y)))
    residual = model[0](model[1], x) - y
    errors = {}
    for outputs in ("trace", "full"):
        kernel = ni.ntk(*model, x, outputs=outputs)
        curve = ni.predict_training(kernel, residual, learning_rate=1e-7, steps=1)
        run = ni.fit(*model, x, y, optimizer=optax.sgd(1e-7), steps=1)
        errors[outputs] = abs(np.diff(run.history["loss"])[-1] / np.diff(curve.loss)[-1] - 1)
    assert errors["full"] < 1e-4 < errors["trace"]


@pytest.mark.slow
def test_wide_network_follows_its_initial_kernel(key, x, y):
    """T10.5: in the NTK parameterization the gap closes as the width grows."""
    gaps = []
    for width in (64, 4096):
        model = ni.init(ni.CoordinateMLP(features=width, depth=1, parameterization="ntk"), key, x)
        kernel = ni.ntk(*model, x)
        rate = float(ni.max_learning_rate(kernel)) / 2
        curve = ni.predict_training(kernel, model[0](model[1], x) - y, learning_rate=rate, steps=100)
        run = ni.fit(*model, x, y, optimizer=optax.sgd(rate), steps=100)
        gaps.append(np.abs(run.losses / curve.loss[:-1] - 1).max())
    assert gaps[1] < gaps[0] / 4  # 1 / sqrt(64) of it in theory, from one draw


def test_long_predictions_decompose_the_kernel_and_agree():
    kernel = jnp.asarray(np.diag([3.0, 1.0]), jnp.float32)
    residual = jnp.ones((2, 1))
    long = ni.predict_training(kernel, residual, learning_rate=0.5, steps=20)
    short = ni.predict_training(kernel, residual, learning_rate=0.5, steps=5)
    np.testing.assert_allclose(long.loss[:6], short.loss, rtol=1e-5)


def complex_net(params, x):
    return jnp.exp(1j * (x @ params["in"]) @ params["w"]).imag @ params["out"]


def test_complex_parameters_train_as_two_real_ones(x, y):
    rng = np.random.default_rng(0)
    parts = {"in": rng.normal(size=(2, 8)), "w": rng.normal(size=(2, 8, 4)) / 3, "out": rng.normal(size=(4, 1)) / 2}
    parts = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), parts)

    def joined(parts):
        return {**parts, "w": jax.lax.complex(*parts["w"])}

    runs = [
        ni.fit(complex_net, joined(parts), x, y, steps=20),
        ni.fit(lambda p, x: complex_net(joined(p), x), parts, x, y, steps=20),
    ]
    np.testing.assert_allclose(runs[0].losses, runs[1].losses, rtol=1e-4)
    assert runs[0].losses[-1] < runs[0].losses[0]
    assert jnp.iscomplexobj(runs[0].params["w"])
    with pytest.raises(ValueError, match="takes real parameters"):
        ni.fit(complex_net, joined(parts), x, y, optimizer=optax.lbfgs(), steps=2)
    with pytest.raises(TypeError, match="dtype complex64; expected a real"):
        ni.fit(lambda p, x: (x @ p["in"]) @ p["w"] @ p["out"], joined(parts), x, y, steps=2)


def test_history_is_logarithmic_and_complete(key, x, y):
    reports = []
    held = (x * 0.5, y)
    run = ni.fit(
        *small("pe", key, x), x, y, steps=200, validation=held, ntk_points=8,
        progress=lambda done, total, figures: reports.append((done, total)),
    )  # fmt: skip
    steps = run.history["step"]
    assert steps[0] == 0
    assert steps[-1] == 200
    assert np.all(np.diff(np.diff(np.log(steps[20:]))) < 0.2)
    assert {len(column) for column in run.history.values()} == {len(steps)}
    assert set(run.history) >= {"loss", "psnr", "seconds", "validation_psnr", "ntk_mean", "ntk_variance", "ntk_cv"}
    assert reports[-1] == (200, 200)
    assert np.all(np.diff(run.history["seconds"]) >= 0)
    np.testing.assert_allclose(run.history["loss"][:-1], run.losses[steps[:-1]], rtol=1e-4)
    mse = np.mean((np.asarray(small("pe", key, x)[0](run.params, x)) - np.asarray(y)) ** 2)
    np.testing.assert_allclose(run.history["psnr"][-1], -10 * np.log10(mse), rtol=1e-4)


def test_ntk_points_record_the_kernel_of_the_moment(key, x, y):
    model = small("pe", key, x)
    run = ni.fit(*model, x, y, steps=3, ntk_points=23)
    for at, params in ((0, model[1]), (-1, run.params)):
        m = ni.moments(ni.ntk(model[0], params, x))
        np.testing.assert_allclose(run.history["ntk_cv"][at], m.cv, rtol=1e-4)


def test_early_stop_at_a_target(key, x, y):
    run = ni.fit(*small("siren", key, x), x, y, steps=3000, stop_at=25.0)
    assert run.status == "target reached"
    assert run.steps < 3000
    assert run.history["psnr"][-1] >= 25.0
    assert run.psnr[run.steps_to(25.0)] >= 25.0 > run.psnr[run.steps_to(25.0) - 1]
    assert 0 < run.seconds_to(25.0) <= run.history["seconds"][-1]
    assert run.steps_to(500.0) is None
    assert run.seconds_to(500.0) is None


def test_a_good_start_that_gets_worse_is_no_divergence(x, x64):
    """Adam kicks a perfect start away by its learning rate, however small the first loss."""
    params = jnp.ones((2, 1))
    run = ni.fit(lambda p, x: x @ p, params, x.astype(float), x.astype(float) @ params + 1e-9, steps=5)
    assert run.history["loss"][1] > 1e4 * run.history["loss"][0]
    assert (run.status, run.steps) == ("ended above the start", 5)
    assert ni.fit(lambda p, x: x @ p, params, x.astype(float), x.astype(float) @ params, steps=5).status == "finished"


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_divergence_is_a_result_with_the_last_good_parameters(key, x, y, rate):
    model = small("relu", key, x)
    run = ni.fit(*model, x, y, optimizer=optax.sgd(rate), steps=50)
    assert run.status == "diverged"
    assert run.steps < 50
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(run.params))
    assert np.isfinite(run.losses).all()
    assert len(run.psnr) == run.steps + 1


def test_minibatches_visit_each_example_once_an_epoch(x):
    """Gradients of sum_i w_i x_i at rate 1 count the visits of each example."""
    n = 24

    def picks(params, x):
        return x @ params

    x, y = jnp.eye(n), -jnp.ones((n, 1))
    # d loss / d w_i = (w_i - y_i) / batch; with w = 0 and a tiny rate each visit adds rate / batch.
    rate = 1e-4
    run = ni.fit(
        picks, jnp.zeros((n, 1)), x, y, optimizer=optax.sgd(rate), steps=3 * 4, batch_size=6, key=jax.random.key(1)
    )
    np.testing.assert_allclose(-run.params * 6 / rate, 3.0, rtol=1e-3)
    part = ni.fit(
        picks, jnp.zeros((n, 1)), x, y, optimizer=optax.sgd(rate), steps=2, batch_size=6, key=jax.random.key(1)
    )
    visits = np.round(np.asarray(-part.params * 6 / rate))
    assert sorted(visits[:, 0]) == [0] * 12 + [1] * 12
    assert not run.full_batch
    assert run.psnr.shape == run.history["psnr"].shape
    assert run.steps_to(run.history["psnr"][-1]) == run.history["step"][-1]


def test_seeds_together_equal_seeds_alone(x, y):
    net = ni.variant("rff", features=16, depth=2)
    keys = jax.random.split(jax.random.key(0), 3)
    models = jax.vmap(lambda k: ni.init(net, k, x))(keys)
    together = ni.fit_seeds(*models, x, y, steps=20, ntk_points=5)
    assert len(together) == 3
    for s, run in enumerate(together):
        alone = ni.fit(*jax.tree.map(lambda leaf, s=s: leaf[s], models), x, y, steps=20)
        np.testing.assert_allclose(run.losses, alone.losses, rtol=1e-3)
        assert run.history["ntk_cv"].shape == run.history["step"].shape


def test_one_diverging_seed_does_not_stop_the_others(x, y):
    def scaled(params, x):
        return linear(params["w"], x) * params["scale"]

    params = {"w": jnp.ones((2, 6, 1)), "scale": jnp.array([1.0, 1e4])}
    good, bad = ni.fit_seeds(scaled, params, x, y, optimizer=optax.sgd(1e-2), steps=30)
    assert (good.status, good.steps) == ("finished", 30)
    assert bad.status == "diverged"


def test_a_second_fit_does_not_trace_again(x, y):
    @chex.assert_max_traces(n=4)  # shape, loss, gradient, and the loss in the report
    def apply(params, x):
        return x @ params

    optimizer = optax.sgd(0.1)
    for scale in (1.0, 0.5):
        ni.fit(apply, scale * jnp.ones((2, 1)), x, y, optimizer=optimizer, steps=7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": np.zeros((4, 1))}, ValueError, "y has 4 rows but x has 5"),
        ({"y": np.zeros(5)}, ValueError, r"y has shape \(5,\).*Reshape it with y\[:, None\]"),
        ({"y": np.full((5, 1), np.nan)}, ValueError, "y holds 5 NaN"),
        ({"y": np.zeros((5, 3))}, ValueError, "apply gives 1 outputs but y has 3 columns.*out=3"),
        ({"x": np.zeros((5, 2), int)}, TypeError, "x has dtype int"),
        ({"steps": 0}, ValueError, "steps is 0; expected at least 1"),
        ({"steps": 1.5}, TypeError, "steps is 1.5; expected a whole number"),
        ({"optimizer": 1e-3}, TypeError, "expected an optax transformation"),
        ({"batch_size": 9, "key": None}, ValueError, "batch_size is 9 but x has 5 rows"),
        ({"batch_size": 2, "key": None}, ValueError, "batch_size needs key="),
        ({"ntk_points": 0}, ValueError, "ntk_points is 0"),
    ],
)
def test_bad_input_to_fit(unchecked, change, error, message):
    call = {
        "apply": lambda p, x: x @ p,
        "params": np.ones((2, 1)),
        "x": np.zeros((5, 2)),
        "y": np.zeros((5, 1)),
        **change,
    }
    with pytest.raises(error, match=message):
        ni.fit(**call)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": np.zeros((4, 1))}, "residual has 4 rows"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"K": np.zeros((3, 3, 2, 2))}, "of a residual"),
        ({"K": np.zeros((3, 4))}, "square"),
    ],
)
def test_bad_input_to_predict(unchecked, change, message):
    call = {"K": np.eye(3), "residual": np.zeros((3, 1)), "learning_rate": 0.1, "steps": 3, **change}
    with pytest.raises(ValueError, match=message):
        ni.predict_training(**call)
