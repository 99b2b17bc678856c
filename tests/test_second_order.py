"""Gauss–Newton by the kernel, against dense least squares in float64, and how it trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_inr as ni
from ntk_inr.training.curvature import quadratic
from ntk_inr.training.losses import as_loss
from ntk_inr.training.second_order import settings_of
from ntk_inr.training.solvers import plan


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def problem(outputs=1, name="siren", n=12):
    """Return apply, params, x and y of a small network in float64."""
    x = jnp.linspace(-1, 1, n)[:, None]
    y = jnp.concatenate([jnp.sin((3 + k) * x) / 2 + 0.5 for k in range(outputs)], axis=1)
    net = ni.variant(name, features=6, depth=2, out=outputs)
    apply, params = ni.init(net, jax.random.key(0), x)
    return apply, jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(leaf, jnp.float64)), params), x, y


def cross_entropy(prediction, y):
    """A user's loss whose Hessian a row is full and singular: that of softmax."""
    return -(y * jax.nn.log_softmax(prediction)).sum(axis=1)


def exact_step(apply, params, x, y, *, loss="mse", damping, weights=None, before=None):
    """Return the flat step that (12.6) says, of whole Jacobians and of Hessians by JAX."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    jacobian = jax.jacobian(lambda flat: apply(unravel(flat), x))(flat)
    n, c, p = jacobian.shape
    f, w = apply(params, x), jnp.ones(n) if weights is None else weights

    def each(f_i, y_i):
        return as_loss(loss)(f_i[None], y_i[None])[0]

    gradient = w[:, None] * jax.vmap(jax.grad(each))(f, y)
    hessian = w[:, None, None] * jax.vmap(jax.hessian(each))(f, y)
    if loss == "l1":
        hessian = jax.vmap(jnp.diag)(w[:, None] / jnp.abs(f - y) / c)
    if loss == "huber":
        hessian = jax.vmap(jnp.diag)(w[:, None] * 0.1 / jnp.maximum(jnp.abs(f - y), 0.1) / c)
    curvature = jnp.einsum("nop,noq,nqr->pr", jacobian, hessian, jacobian)
    scale = jnp.trace(jnp.einsum("iap,jbp,jbc->iajc", jacobian, jacobian, hessian).reshape(n * c, n * c)) / (n * c)
    weight = damping * scale
    right = -jnp.einsum("nop,no->p", jacobian, gradient)
    if before is not None:
        right = right + weight * before
    return jnp.linalg.solve(curvature + weight * jnp.eye(p), right)


def step_of(optimizer, apply, params, x, y, **extra):
    step, state = optimizer.update(None, optimizer.init(params), params, apply=apply, x=x, y=y, **extra)
    return jax.flatten_util.ravel_pytree(step)[0], state


def soft(y):
    return jax.nn.softmax(y, axis=1)


CASES = [(1, "mse"), (2, "mse"), (2, "l1"), (2, "huber"), (2, "bce"), (3, cross_entropy)]


@pytest.mark.parametrize("solver", ["function", "parameters", "cg"])
@pytest.mark.parametrize(("outputs", "loss"), CASES)
def test_steps_are_those_of_least_squares(outputs, loss, solver):
    apply, params, x, y = problem(outputs)
    y = soft(y) if loss is cross_entropy else y
    weights = jnp.linspace(0.5, 1.5, len(x))
    # So much damping that the first trial lowers each of these losses.
    step, state = step_of(ni.gauss_newton(damping=3.0, solver=solver), apply, params, x, y, loss=loss, weights=weights)
    exact = exact_step(apply, params, x, y, loss=loss, damping=3.0, weights=weights)
    assert int(state.evaluations) == 1
    tolerance = 2e-3 if solver == "cg" else 1e-9  # that of the iterations
    np.testing.assert_allclose(step, exact, atol=tolerance * jnp.abs(exact).max())


def test_small_damping_of_losses_without_curvature_everywhere():
    # With damping of 1e-8 the terms of (12.6) that cancel, (I - S (lambda + S K S)^-1 S K) g, would lose it all.
    apply, params, x, y = problem(3)
    y = soft(y)
    here = quadratic(as_loss(cross_entropy), apply(params, x), y)
    np.testing.assert_allclose(here.times_root(here.scaled) + here.rest, here.gradient, atol=1e-15)
    optimizer = ni.gauss_newton(damping=1e-8, solver="function", tries=1)
    step, state = step_of(optimizer, apply, params, x, y, loss=cross_entropy)
    exact = exact_step(apply, params, x, y, loss=cross_entropy, damping=1e-8)
    if bool(state.accepted):
        np.testing.assert_allclose(step, exact, rtol=1e-5, atol=1e-5 * jnp.abs(exact).max())
    else:
        assert not step.any()


def test_one_factorisation_for_all_outputs_uses_the_mean_kernel():
    apply, params, x, y = problem(2)
    step, _ = step_of(ni.gauss_newton(damping=1.0, solver="shared"), apply, params, x, y)
    K = ni.ntk(apply, params, x) / 2
    weight = jnp.trace(K) / len(x)
    residual = apply(params, x) - y
    a = jnp.linalg.solve(K + weight * jnp.eye(len(x)), residual) / 2
    _, pullback = jax.vjp(lambda params: apply(params, x), params)
    expected = -jax.flatten_util.ravel_pytree(pullback(a)[0])[0]
    np.testing.assert_allclose(step, expected, atol=1e-10 * jnp.abs(expected).max())


@pytest.mark.parametrize("solver", ["function", "parameters"])
def test_momentum_is_the_least_squares_problem_of_12_5(solver):
    apply, params, x, y = problem()
    optimizer = ni.gauss_newton(damping=2.0, momentum=0.6, solver=solver)
    last = jax.tree.map(lambda leaf: 1e-3 * jnp.ones_like(leaf), params)
    state = optimizer.init(params)._replace(step=last)
    step, after = optimizer.update(None, state, params, apply=apply, x=x, y=y)
    before = 0.6 * jax.flatten_util.ravel_pytree(last)[0]
    exact = exact_step(apply, params, x, y, damping=2.0, before=before)
    found = jax.flatten_util.ravel_pytree(step)[0]
    np.testing.assert_allclose(found, exact, atol=1e-9 * jnp.abs(exact).max())
    np.testing.assert_array_equal(jax.flatten_util.ravel_pytree(after.step)[0], found)


@pytest.mark.parametrize("loss", ["mse", "bce"])
@pytest.mark.parametrize("solver", ["function", "parameters"])
def test_gain_is_the_decrease_over_that_of_the_linear_model(solver, loss):
    apply, params, x, y = problem(2)
    step, state = step_of(ni.gauss_newton(damping=0.5, solver=solver), apply, params, x, y, loss=loss)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    losses = as_loss(loss)
    here = quadratic(losses, apply(params, x), y)
    change = jax.jvp(lambda flat: apply(unravel(flat), x), (flat,), (step,))[1]
    fell = losses(apply(params, x), y).sum() - losses(apply(unravel(flat + step), x), y).sum()
    np.testing.assert_allclose(state.gain, fell / here.decrease(change), rtol=1e-8)


def test_a_step_under_jit_is_that_of_the_host():
    # An undamped step of arctan overshoots from here, so that the loop over dampings turns.
    x, y, params = jnp.array([[1.0], [2.0]]), jnp.zeros((2, 1)), {"scale": jnp.array([[3.0]])}
    optimizer = ni.gauss_newton(damping=1e-9, tries=20)

    def apply(params, x):
        return jnp.arctan(x @ params["scale"])

    state = optimizer.init(params)

    @jax.jit
    def traced(state, params, x, y):
        return optimizer.update(None, state, params, apply=apply, x=x, y=y)

    host = optimizer.update(None, state, params, apply=apply, x=x, y=y)
    assert int(host[1].evaluations) > 1
    for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(traced(state, params, x, y)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_complex_parameters_by_their_parts():
    _, _, x, y = problem()
    w, v = jax.random.normal(jax.random.key(0), (2, 5, 1), jnp.complex128)
    params = {"w": 3 * w.T, "v": v}

    def apply(params, x):
        return jnp.real(jnp.exp(1j * (x @ params["w"])) @ params["v"])

    optimizer = ni.gauss_newton(damping=1.0, momentum=0.5)
    step, _ = optimizer.update(None, optimizer.init(params), params, apply=apply, x=x, y=y)
    K = ni.ntk(apply, params, x)
    a = jnp.linalg.solve(K + jnp.trace(K) / len(x) * jnp.eye(len(x)), apply(params, x) - y)
    gradient = jax.grad(lambda params: jnp.vdot(a, apply(params, x)))(params)
    for found, leaf in zip(jax.tree.leaves(step), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(found, -leaf.conj(), atol=1e-9)


def test_first_steps_are_adams():
    apply, params, x, y = problem(n=24)
    batches = {"batch_size": 8, "key": jax.random.key(1)}
    first = ni.fit(apply, params, x, y, **batches, optimizer=optax.adam(1e-2), steps=4)
    solver = ni.gauss_newton(adam_steps=4, adam_rate=1e-2, momentum=0.5)
    both = ni.fit(apply, params, x, y, **batches, optimizer=solver, steps=6, report_every=1)
    np.testing.assert_allclose(both.losses[:4], first.losses, rtol=1e-9)
    np.testing.assert_allclose(both.history["loss"][4], first.history["loss"][-1], rtol=1e-9)
    assert both.losses[5] < both.losses[4]
    # The same where it is one traced program.
    seeds = jax.tree.map(lambda leaf: leaf[None], (apply, params))
    (traced,) = ni.fit_seeds(*seeds, x, y, optimizer=solver, steps=6)
    np.testing.assert_allclose(traced.losses, ni.fit(apply, params, x, y, optimizer=solver, steps=6).losses, rtol=1e-5)


def test_fit_by_name_to_the_end_of_its_precision():
    apply, params, x, y = problem(n=8)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    result = ni.fit(apply, params, x, y, optimizer=ni.optimizer("gauss-newton"), steps=60, report_every=5)
    assert result.status == "stalled"
    assert result.steps < 60
    assert result.history["psnr"][-1] > 120
    np.testing.assert_allclose(result.losses[0], result.history["loss"][0])
    assert (np.diff(result.losses) <= 0).all()


def test_minibatches_go_on_from_a_checkpoint_with_the_same_bits(tmp_path):
    apply, params, x, y = problem(n=24)
    keywords = {"optimizer": ni.gauss_newton(momentum=0.5), "batch_size": 8, "key": jax.random.key(1)}
    whole = ni.fit(apply, params, x, y, **keywords, steps=6)
    ni.fit(apply, params, x, y, **keywords, steps=3, checkpoint=tmp_path)
    resumed = ni.fit(apply, params, x, y, **keywords, steps=6, checkpoint=tmp_path)
    assert resumed.history["loss"][-1] < whole.history["loss"][0]
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(FileExistsError, match="optimizer"):
        ni.fit(apply, params, x, y, **{**keywords, "optimizer": ni.gauss_newton()}, steps=6, checkpoint=tmp_path)


def test_several_seeds_train_as_each_does():
    x, y = problem()[2:]
    net = ni.variant("siren", features=6, depth=1)
    apply, params = jax.vmap(lambda key: ni.init(net, key, x))(jax.random.split(jax.random.key(0), 2))
    together = ni.fit_seeds(apply, params, x, y, optimizer=ni.gauss_newton(), steps=3)
    for seed, result in enumerate(together):
        alone = ni.fit(*jax.tree.map(lambda leaf, s=seed: leaf[s], (apply, params)), x, y,
                       optimizer=ni.gauss_newton(), steps=3)  # fmt: skip
        np.testing.assert_allclose(result.history["loss"], alone.history["loss"], rtol=1e-3)


def test_data_by_the_step_and_samples_by_importance():
    apply, params, x, y = problem(n=24)

    def sampler(key, step):
        points = jax.random.uniform(key, (32, 1), minval=-1, maxval=1, dtype=x.dtype)
        return points, jnp.sin(3 * points) / 2 + 0.5

    drawn = ni.fit(apply, params, data=sampler, key=jax.random.key(0), optimizer=ni.gauss_newton(), steps=20,
                   validation=(x, y))  # fmt: skip
    assert drawn.history["validation_psnr"][-1] > drawn.history["validation_psnr"][0] + 5
    with jax.enable_x64(False):  # a context of this thread alone, and another one makes the host's rows
        rows, narrow = np.float32(x), jax.tree.map(np.float32, params)
        thirds = ni.host_data(lambda step: (rows[step::3], rows[step::3]), name="thirds")
        hosted = ni.fit(apply, narrow, data=thirds, optimizer=ni.gauss_newton(), steps=3)
    assert hosted.losses.shape == (3,)
    important = ni.fit(apply, params, x, y, key=jax.random.key(0), optimizer=ni.gauss_newton(), steps=5, batch_size=16,
                       sampling="loss")  # fmt: skip
    assert important.history["psnr"][-1] > important.history["psnr"][0]


def test_where_no_step_is_good():
    apply, params, x, y = problem()
    optimizer = ni.gauss_newton(tries=3)

    def nowhere(params, x):
        return jnp.log(apply(params, x) - 10)

    step, state = optimizer.update(None, optimizer.init(params), params, apply=nowhere, x=x, y=y)
    assert not jax.flatten_util.ravel_pytree(step)[0].any()
    assert not bool(state.accepted)
    assert float(state.damping) == pytest.approx(0.1)
    # Equal rows make a singular kernel, which damping, however small, makes regular again or refuses.
    double = jnp.concatenate([x, x]), jnp.concatenate([y, y])
    step, state = step_of(ni.gauss_newton(damping=1e-17), apply, params, *double)
    assert np.isfinite(step).all()
    assert bool(state.accepted)
    result = ni.fit(apply, params, x, y, loss=lambda f, y: jnp.log(f[:, 0] - 10), optimizer=optimizer, steps=4)
    assert result.status == "diverged"
    assert result.steps == 0


def test_plans_follow_the_size():
    large = 2**40
    assert plan("auto", 100, 1, 1000, jnp.float32, large).solver == "function"
    assert plan("auto", 2000, 1, 1000, jnp.float32, large).solver == "parameters"
    assert plan("auto", 2000, 3, 100_000, jnp.float32, large).solver == "shared"
    assert plan("auto", 10**6, 1, 10**6, jnp.float32, 2**34).solver == "cg"
    text = str(plan("auto", 100, 1, 1000, jnp.float32, large))
    assert "values at the coordinates" in text
    assert "1 MiB" in text
    with pytest.raises(ValueError, match=r'solver="function" for 100000 .* solver="cg" fits'):
        plan("function", 10**5, 1, 10**6, jnp.float32, 2**34)
    assert settings_of(optax.adam(1e-3)) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"damping": 0.0}, "damping"),
        ({"momentum": 1.0}, "momentum=1.0; expected"),
        ({"solver": "qr"}, "solver"),
        ({"tries": 0}, "tries"),
    ],
)
def test_bad_settings_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        ni.gauss_newton(**arguments)


def test_bad_input_is_named():
    apply, params, x, y = problem()
    optimizer = ni.gauss_newton()
    with pytest.raises(TypeError, match="needs params and the rows"):
        optimizer.update(None, optimizer.init(params), params)
    with pytest.raises(ValueError, match="of other parameters"):
        ni.gauss_newton(momentum=0.5).update(None, optimizer.init(params), params, apply=apply, x=x, y=y)
    with pytest.raises(ValueError, match="1 outputs but y has 2 columns"):
        optimizer.update(None, optimizer.init(params), params, apply=apply, x=x, y=jnp.zeros((12, 2)))
    with pytest.raises(TypeError, match="y has dtype int"):
        optimizer.update(None, optimizer.init(params), params, apply=apply, x=x, y=jnp.zeros((12, 1), int))
    with pytest.raises(ValueError, match="NaN"):
        optimizer.update(None, optimizer.init(params), params, apply=apply, x=x, y=y * jnp.nan)
    with pytest.raises(ValueError, match="GiB"):
        ni.fit(apply, params, x, y, optimizer=ni.gauss_newton(solver="function", memory_limit=1000), steps=1)
    with pytest.raises(ValueError, match="no learning rate"):
        ni.optimizer("gauss-newton", learning_rate=1e-3)
    with pytest.raises(ValueError, match="leave them out"):
        ni.optimizer("gauss-newton", schedule="cosine", steps=10)
    with pytest.raises(TypeError, match="no setting 'b1'"):
        ni.optimizer("gauss-newton", b1=0.9)
    batch = ni.init(ni.variant("pe+batch", features=6, depth=1), jax.random.key(0), x)
    with pytest.raises(ValueError, match="statistics"):
        ni.fit(*batch, x, y, optimizer=optimizer, steps=1)


@pytest.mark.parametrize("damping", [0.1, [1.0, 0.1, 0.01], "adaptive"])
def test_prediction_is_the_course_of_a_linear_model(damping):
    x = jax.random.normal(jax.random.key(0), (6, 9))
    y = jax.random.normal(jax.random.key(1), (6, 2))
    params = {"w": jnp.zeros((9, 2))}

    def apply(params, x):
        return x @ params["w"]

    predicted = ni.predict_training(ni.ntk(apply, params, x), -y, damping=damping, steps=3)
    if damping == "adaptive":
        losses = np.append(ni.fit(apply, params, x, y, optimizer=ni.gauss_newton(), steps=3).losses, predicted.loss[-1])
    else:
        losses = [jnp.square(y).mean() / 2]
        for one in np.broadcast_to(damping, 3):
            step, _ = ni.gauss_newton(damping=one).update(
                None, ni.gauss_newton(damping=one).init(params), params, apply=apply, x=x, y=y
            )
            params = jax.tree.map(jnp.add, params, step)
            losses.append(jnp.square(apply(params, x) - y).mean() / 2)
        np.testing.assert_allclose(predicted.residual, apply(params, x) - y, atol=1e-10)
    np.testing.assert_allclose(predicted.loss, losses, rtol=1e-6)
    assert "damping" in str(predicted)


def test_bad_predictions_are_named():
    K, r = jnp.eye(2), jnp.ones((2, 1))
    with pytest.raises(ValueError, match="one of them"):
        ni.predict_training(K, r, steps=1)
    with pytest.raises(ValueError, match="one of them"):
        ni.predict_training(K, r, steps=1, damping=1.0, learning_rate=1.0)
    with pytest.raises(ValueError, match=r"2 of them"):
        ni.predict_training(K, r, steps=2, damping=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="not symmetric"):
        ni.predict_training(K.at[0, 1].set(1.0), r, steps=1, damping=1.0)
