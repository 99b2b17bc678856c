"""Losses by name and by function, and what counts as divergence for each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_inr as ni
from ntk_inr.training.losses import as_loss


def linear(params, x):
    return x @ params


def test_each_loss_is_its_formula(x64):
    rng = np.random.default_rng(0)
    f, y = rng.normal(size=(50, 3)), rng.uniform(size=(50, 3))
    e, s, delta = np.abs(f - y), 1 / (1 + np.exp(-f)), 0.1 * 2.0
    formulas = {
        "mse": e**2 / 2,
        "l1": e,
        "huber": np.where(e <= delta, e**2 / 2, delta * (e - delta / 2)),
        "bce": -y * np.log(s) - (1 - y) * np.log(1 - s),
    }
    for name, expected in formulas.items():
        np.testing.assert_allclose(as_loss(name, 2.0)(jnp.asarray(f), jnp.asarray(y)), expected.mean(1), rtol=1e-12)


@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_psnr_is_of_the_squared_error_whatever_is_minimised(x, loss):
    y = x @ jnp.array([[1.0], [-0.5]])
    run = ni.fit(linear, jnp.zeros((2, 1)), x, y, loss=loss, optimizer=optax.adam(0.05), steps=30, validation=(x, y))
    np.testing.assert_allclose(run.history["psnr"][-1], -10 * np.log10(np.mean((x @ run.params - y) ** 2)), rtol=1e-4)
    np.testing.assert_allclose(run.history["loss"][0], as_loss(loss)(0 * y, y).mean(), rtol=1e-6)
    np.testing.assert_allclose(run.history["validation_loss"], run.history["loss"], rtol=1e-6)
    assert run.psnr.shape == run.history["psnr"].shape
    assert run.steps_to(run.history["psnr"].max()) in run.history["step"]


def test_bce_of_logits_has_no_psnr(x):
    inside = (x[:, :1] > 0).astype(jnp.float32)
    run = ni.fit(linear, jnp.zeros((2, 1)), x, inside, loss="bce", optimizer=optax.sgd(1.0), steps=40)
    np.testing.assert_allclose(run.history["loss"][0], np.log(2), rtol=1e-6)
    assert run.history["loss"][-1] < 0.4
    assert "psnr" not in run.history
    with pytest.raises(ValueError, match=r'loss="bce" is not on values.*history\["loss"\]'):
        run.steps_to(30.0)


def test_a_function_sees_outputs_of_another_width(x, y2):
    """Weights in the last column of y, and an output more than values."""

    def weighted(prediction, y):
        return y[:, 1] * (prediction[:, 0] - y[:, 0]) ** 2 + prediction[:, 1] ** 2 + prediction[:, 2] ** 2

    run = ni.fit(linear, jnp.ones((2, 3)), x, y2, loss=weighted, optimizer=optax.sgd(0.1), steps=3)

    def total(params):
        return weighted(linear(params, x), y2).mean()

    expected = jnp.ones((2, 3))
    for _ in range(3):
        expected = expected - 0.1 * jax.grad(total)(expected)
    np.testing.assert_allclose(run.params, expected, rtol=1e-5)
    np.testing.assert_allclose(run.history["loss"][-1], total(run.params), rtol=1e-5)


@pytest.fixture
def y2(x):
    return jnp.stack([x[:, 0], jnp.linspace(0, 1, len(x))], axis=1)


@pytest.mark.parametrize("loss", ["l1", "huber", "bce"])
def test_divergence_is_seen_by_each_loss(x, loss):
    run = ni.fit(linear, jnp.zeros((2, 1)), x, jnp.ones((len(x), 1)), loss=loss, optimizer=optax.sgd(1e8), steps=5)
    assert run.status == "diverged"
    assert run.steps < 5
    assert np.isfinite(run.losses).all()


def test_a_function_diverges_only_where_it_is_not_finite(x):
    def offset(prediction, y):
        return ((prediction - y) ** 2).mean(axis=1) - 1e-3  # begins near its zero and may be negative

    y = x @ jnp.ones((2, 1)) + 0.03
    kicked = ni.fit(linear, jnp.ones((2, 1)), x, y, loss=offset, optimizer=optax.sgd(30.0), steps=3)
    assert kicked.status == "ended above the start"
    blown = ni.fit(linear, jnp.ones((2, 1)), x, y, loss=offset, optimizer=optax.sgd(1e30), steps=5)
    assert blown.status == "diverged"
    assert bool(jnp.isfinite(blown.params).all())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": "mes"}, ValueError, "unknown loss 'mes'.*Did you mean 'mse'"),
        ({"loss": 3}, TypeError, "loss is 3; expected one of 'mse'"),
        ({"loss": lambda f, y: ((f - y) ** 2).mean()}, ValueError, r"gave shape \(\) for 5 examples; expected \(5,\)"),
        ({"loss": lambda f, y: None}, ValueError, "gave NoneType"),
        ({"loss": "bce", "y": np.full((5, 1), 2.0)}, ValueError, r"y lies in \[2, 2\].*probabilities"),
        ({"loss": "bce", "stop_at": 20.0}, ValueError, "stop_at=20.0 needs a loss on values"),
        ({"y": np.zeros((5, 2))}, ValueError, "apply gives 1 outputs but y has 2"),
        (
            {"loss": "l1", "validation": (np.zeros((3, 2)), np.zeros((3, 2)))},
            ValueError,
            "apply gives 1 outputs but validation y has 2",
        ),
    ],
)
def test_bad_losses(unchecked, change, error, message):
    call = {"params": np.ones((2, 1)), "x": np.zeros((5, 2)), "y": np.zeros((5, 1)), **change}
    with pytest.raises(error, match=message):
        ni.fit(linear, **call)
