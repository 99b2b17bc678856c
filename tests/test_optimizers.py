"""Optimizers by name: the same steps as optax's, schedules that start and end where they say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_inr as ni
from ntk_inr.training.optimizers import optimizer

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}


def path(transformation, steps=6):
    """Return parameters after each step on a fixed quadratic."""
    params, state, seen = PARAMS, transformation.init(PARAMS), []
    for _ in range(steps):
        gradient = jax.tree.map(lambda p: 3 * p + 1, params)
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(np.append(params["w"], params["b"]))
    return np.array(seen)


@pytest.mark.parametrize("name", ["adam", "sgd", "lion", "rmsprop", "adamw", "muon"])
def test_a_name_gives_optax_s_own(name):
    own = optax.contrib.muon if name == "muon" else getattr(optax, name)
    np.testing.assert_array_equal(path(optimizer(name, learning_rate=0.01)), path(own(0.01)))


def test_settings_clip_and_decay():
    expected = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01, b1=0.8))
    np.testing.assert_array_equal(path(optimizer("adam", learning_rate=0.01, clip=0.5, b1=0.8)), path(expected))
    np.testing.assert_allclose(
        path(optimizer("adam", learning_rate=0.01, weight_decay=0.1)),
        path(optax.adamw(0.01, weight_decay=0.1)),
        rtol=1e-6,
    )
    np.testing.assert_array_equal(
        path(optimizer("adamw", learning_rate=0.01, weight_decay=0.1)), path(optax.adamw(0.01, weight_decay=0.1))
    )


@pytest.mark.parametrize(
    ("schedule", "last"), [("constant", 1.0), ("cosine", 0.0), ("linear", 0.0), ("exponential", 0.01)]
)
def test_schedules_warm_up_to_the_rate_and_end_where_they_say(schedule, last):
    made = optimizer("sgd", learning_rate=0.1, schedule=schedule, steps=50, warmup=10)
    state, rates = made.init(jnp.zeros(1)), []
    for _ in range(51):
        updates, state = made.update(jnp.ones(1), state, jnp.zeros(1))
        rates.append(-float(updates[0]))
    np.testing.assert_allclose(rates[:11], np.linspace(0, 0.1, 11), atol=1e-8)
    np.testing.assert_allclose(rates[50], 0.1 * last, atol=1e-8)
    assert np.all(np.diff(rates[10:]) <= 1e-9)


def test_the_decay_follows_the_schedule():
    made = optimizer("sgd", learning_rate=0.1, schedule="linear", steps=4, weight_decay=0.5)
    state, params = made.init(jnp.ones(1)), jnp.ones(1)
    for t in range(4):
        updates, state = made.update(jnp.zeros(1), state, params)
        np.testing.assert_allclose(updates, -0.1 * (1 - t / 4) * 0.5 * params, rtol=1e-6)


def test_lbfgs_takes_the_steps_of_optax(x, x64):
    x = jnp.asarray(x, float)
    y, params = jnp.sin(3 * x[:, :1]), jnp.zeros((2, 1))

    def apply(params, x):
        return jnp.tanh(x @ params)

    @jax.value_and_grad
    def loss(params):
        return optax.l2_loss(apply(params, x), y).mean()

    solver = optax.lbfgs()

    @jax.jit
    def step(params, state):
        value, gradient = loss(params)
        updates, state = solver.update(
            gradient, state, params, value=value, grad=gradient, value_fn=lambda p: loss(p)[0]
        )
        return optax.apply_updates(params, updates), state, value

    expected, state, values = params, solver.init(params), []
    for _ in range(8):
        expected, state, value = step(expected, state)
        values.append(value)
    run = ni.fit(apply, params, x, y, optimizer=optimizer("lbfgs"), steps=8)
    np.testing.assert_allclose(run.params, expected, rtol=1e-8)
    np.testing.assert_allclose(run.losses, values, rtol=1e-8)
    gradient = loss(run.params)[1]
    assert abs(gradient).max() < 0.02 * abs(loss(params)[1]).max()  # where plain descent is far from it


def test_a_step_that_is_changed_after_its_line_search_is_evaluated_anew(x):
    y = jnp.sin(3 * x[:, :1])
    changed = optax.chain(optax.lbfgs(), optax.scale(0.5))
    run = ni.fit(lambda params, x: jnp.tanh(x @ params), jnp.ones((2, 1)), x, y, optimizer=changed, steps=4)
    np.testing.assert_allclose(run.losses, run.history["loss"][:4], rtol=1e-4)


def test_the_same_arguments_give_the_same_object():
    assert optimizer("adam", clip=1.0) is optimizer("adam", clip=1.0)
    assert optimizer("adam", clip=1.0) is not optimizer("adam", clip=2.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "adma"}, ValueError, "unknown optimizer 'adma'.*Did you mean 'adam"),
        ({"name": "adam", "schedule": "cosin"}, ValueError, "unknown schedule.*'cosine'"),
        ({"name": "adam", "schedule": "cosine"}, ValueError, "got steps=None and warmup=0; expected steps="),
        ({"name": "adam", "schedule": "linear", "steps": 5, "warmup": 5}, ValueError, "above warmup"),
        ({"name": "adam", "learning_rate": 0.0}, ValueError, "learning_rate is 0.0"),
        ({"name": "adam", "clip": -1.0}, ValueError, "clip is -1.0"),
        (
            {"name": "adam", "momentum": 0.9},
            TypeError,
            "optax.adam has no setting 'momentum'; it has learning_rate, b1",
        ),
        ({"name": "lbfgs", "weight_decay": 0.1}, ValueError, "lbfgs searches for its step itself"),
    ],
)
def test_bad_optimizers(unchecked, arguments, error, message):
    with pytest.raises(error, match=message):
        optimizer(**arguments)


@pytest.mark.parametrize("change", [{"batch_size": 4, "key": jax.random.key(0)}, {"microbatch": 4}])
def test_lbfgs_refuses_parts_of_the_data(x, change):
    with pytest.raises(ValueError, match=r"searches along a line.*expected the full batch"):
        ni.fit(lambda p, x: x @ p, jnp.zeros((2, 1)), x, x[:, :1], optimizer=optimizer("lbfgs"), steps=2, **change)
