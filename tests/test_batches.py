"""Importance sampling, microbatches, and models that change while they train."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_inr as ni
from ntk_inr.training import sampling
from ntk_inr.training.data import Rows
from ntk_inr.training.losses import as_loss
from ntk_inr.training.options import Options
from ntk_inr.training.run import prepare
from ntk_inr.training.steps import Program, advance, begin, refreshed
from tests.conftest import in_float64, quick


def linear(params, x):
    return x @ params


def layer(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


def test_importance_weights_are_unbiased_and_bounded(x64):
    losses = jnp.asarray(np.random.default_rng(0).exponential(size=7)) ** 3
    wanted = jnp.asarray(np.random.default_rng(1).normal(size=7))  # any quantity of the rows, not the losses only
    rows, weights = sampling.important_rows(jax.random.key(0), losses, jnp.asarray(3), 50_000)
    products = weights * wanted[rows]
    assert abs(products.mean() - wanted.mean()) < 4 * products.std() / np.sqrt(len(rows))
    assert weights.max() <= 2
    share = np.bincount(rows, minlength=7) / len(rows)
    np.testing.assert_allclose(share, 0.5 / 7 + 0.5 * losses / losses.sum(), atol=0.01)
    np.testing.assert_array_equal(sampling.important_rows(jax.random.key(0), 0 * losses, jnp.asarray(0), 9)[1], 1.0)


@pytest.mark.parametrize("n", quick([1, 2, 1000, 1001], 1, 1001))
def test_importance_reaches_every_row_of_any_number(n):
    losses = jnp.linspace(1.0, 2.0, n)
    rows, weights = sampling.important_rows(jax.random.key(0), losses, jnp.asarray(0), 50 * n)
    assert (rows.min(), rows.max()) == (0, n - 1)
    assert len(np.unique(rows)) == n
    np.testing.assert_allclose(weights, 1 / (0.5 + 0.5 * losses[rows] / losses.mean()), rtol=1e-5)


@pytest.mark.slow
def test_importance_of_many_rows_is_as_fine_as_of_few():
    """Rows of four million with a tenth of the losses: a uniform float32 tells no two of a row's neighbours apart."""
    n = 1 << 22
    losses = jnp.ones(n).at[: n // 10].set(1e3)
    rows, _ = sampling.important_rows(jax.random.key(1), losses, jnp.asarray(0), 200_000)
    heavy = np.asarray(rows[rows < n // 10])
    odd = (heavy % 2).mean()
    assert abs(odd - 0.5) < 4 * 0.5 / np.sqrt(len(heavy))


def test_importance_sampling_finds_the_rows_that_are_wrong():
    """Of 400 rows one is wrong: it is drawn every other time, where a shuffle shows it once an epoch."""
    x, y = jnp.eye(400), jnp.zeros((400, 1)).at[17].set(1.0)
    options = {"optimizer": optax.sgd(20.0), "steps": 50, "batch_size": 4, "key": jax.random.key(0)}
    runs = {
        name: ni.fit(linear, jnp.zeros((400, 1)), x, y, sampling=name, **options)
        for name in ("loss", "ntk", "shuffle", "uniform")
    }
    for name in ("loss", "ntk"):
        assert runs[name].history["loss"][-1] < 0.01 * runs["shuffle"].history["loss"][-1]
    # In 200 draws of 400 rows it is met with a chance of 0.4, half of the epochs' otherwise.
    assert runs["uniform"].history["loss"][-1] > 0.01 * runs["shuffle"].history["loss"][-1]
    again = ni.fit(linear, jnp.zeros((400, 1)), x, y, sampling="loss", **options)
    np.testing.assert_array_equal(runs["loss"].params, again.params)


def test_scores_by_the_kernel_are_norms_of_its_rows_times_the_gradient(x):
    apply, params = ni.init(ni.variant("siren", features=6, depth=1, out=2), jax.random.key(0), x)
    y = jnp.ones((len(x), 2))
    data = Rows(x, y, 4, "ntk")
    program = Program(optax.sgd(0.1), as_loss("mse"), None, None, False, "ntk")
    start = begin(params, None, jnp.zeros(len(x)), program=program)
    K = ni.ntk(apply, params, x, outputs="full")
    moved = jnp.einsum("ijop,jp->io", K, (apply(params, x) - y) / 2)
    np.testing.assert_allclose(
        refreshed(apply, start, data, 0, program=program).last, jnp.linalg.norm(moved, axis=1), rtol=1e-4
    )
    np.testing.assert_array_equal(refreshed(apply, start, data, 1, program=program).last, 0)


@pytest.mark.parametrize("batches", [{}, {"batch_size": 10, "key": jax.random.key(1), "sampling": "loss"}])
def test_microbatches_give_the_gradient_of_the_whole_batch(key, x, x64, batches):
    x = jnp.asarray(x, float)
    y = jnp.sin(3 * x[:, :1])
    model = layer, in_float64((jax.random.normal(key, (2, 16)), jnp.ones((16, 1))))
    runs = [ni.fit(*model, x, y, optimizer=optax.sgd(0.01), steps=5, microbatch=size, **batches) for size in (None, 4)]
    np.testing.assert_allclose(runs[1].losses, runs[0].losses, rtol=1e-12)
    np.testing.assert_allclose(runs[1].history["loss"], runs[0].history["loss"], rtol=1e-12)
    for one, other in zip(*(jax.tree.leaves(run.params) for run in runs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-14)


def evaluating():
    """Gradient descent that keeps the loss of the whole batch as the optimizer itself sees it."""

    def update(gradient, state, params, *, value, value_fn, **_):
        return jax.tree.map(lambda g: -0.01 * g, gradient), jnp.stack([value, value_fn(params)])

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(2), update)


def test_optimizers_evaluate_the_whole_batch_through_microbatches(key, x):
    y, params = jnp.sin(3 * x[:, :1]), (jax.random.normal(key, (2, 16)), jnp.ones((16, 1)))
    run = prepare(layer, params, (x, y), Options(microbatch=4, steps=1, optimizer=evaluating()), None)
    value, own = run.advance(run.start, 0, 1).opt_state
    np.testing.assert_allclose(own, value, rtol=1e-6)
    np.testing.assert_allclose(own, optax.l2_loss(layer(params, x), y).mean(), rtol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="caches of a CPU")
def test_a_cpu_computes_large_batches_in_parts_unless_something_needs_the_whole(key):
    x = jnp.zeros((2**15, 2))
    y, model = x[:, :1], ni.init(ni.CoordinateMLP(features=4, depth=1), key, x)
    runs = {
        "plain": prepare(*model, (x, y), Options(), None),
        "few rows": prepare(*model, (x[: 2**13], y[: 2**13]), Options(), None),
        "a search": prepare(*model, (x, y), Options(optimizer=optax.lbfgs()), None),
        "as asked": prepare(*model, (x, y), Options(microbatch=5), None),
    }
    found = {name: run.program.microbatch for name, run in runs.items()}
    assert found == {"plain": 2**13, "few rows": None, "a search": None, "as asked": 5}


def test_microbatches_bound_memory():
    """What XLA says that a step takes, of 4096 rows at once and of 256."""
    x = jnp.linspace(-1, 1, 4096)[:, None]
    model = layer, (jnp.ones((1, 64)), jnp.ones((64, 1)))
    taken = []
    for size in (None, 256):
        run = prepare(*model, (x, x), Options(microbatch=size, steps=2), None)
        arguments = (run.apply, run.start, run.keys, run.limit, run.data, 0, 1)
        compiled = advance.lower(*arguments, program=run.program).compile()
        taken.append(compiled.memory_analysis().temp_size_in_bytes)
    assert taken[1] < taken[0] / 4


def test_steps_write_in_place_and_leave_the_user_s_arrays(x):
    params = jnp.ones((2, 1))
    run = prepare(linear, params, (x, x[:, :1]), Options(steps=3, optimizer=optax.lbfgs()), None)
    state = run.advance(run.start, 0, 2)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((run.start.params, run.start.losses)))
    assert int(state.steps) == 2
    np.testing.assert_array_equal(params, 1.0)


def test_seeds_draw_their_own_rows_by_importance(x):
    params = jnp.stack([jnp.zeros((2, 1)), jnp.ones((2, 1))])
    runs = ni.fit_seeds(
        jax.tree_util.Partial(linear), params, x, x[:, :1], steps=40, batch_size=5, key=jax.random.key(0),
        sampling="loss", optimizer=optax.sgd(0.3),
    )  # fmt: skip
    assert all(run.history["loss"][-1] < 0.05 * run.history["loss"][0] for run in runs)
    assert not np.array_equal(runs[0].params, runs[1].params)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(nn.Dense(8, name="first")(x))
        return nn.Dense(1, name="last")(nn.tanh(x))


def test_batch_statistics_are_carried_and_handed_back(key, x):
    y = jnp.sin(3 * x[:, :1])
    net = Normalized()
    apply, params = ni.init(net, key, x)
    before = apply(params, x)
    run = ni.fit(apply, params, x, y, optimizer=optax.sgd(0.1), steps=4)

    variables = net.init(key, x[:1])
    params, statistics = variables["params"], variables["batch_stats"]

    def loss(params):
        values, changed = net.apply({"params": params, "batch_stats": statistics}, x, train=True, mutable="batch_stats")
        return optax.l2_loss(values, y).mean(), changed["batch_stats"]

    for _ in range(4):
        gradient, statistics = jax.grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    expected = net.apply({"params": params, "batch_stats": statistics}, x)
    np.testing.assert_allclose(run.apply(run.params, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run.history["loss"][-1], optax.l2_loss(expected, y).mean(), rtol=1e-4)
    np.testing.assert_array_equal(apply(variables["params"], x), before)  # the given model is as it was
    assert run.psnr.shape == run.history["psnr"].shape  # the losses are of training mode
    with pytest.raises(ValueError, match="microbatch=4 does not divide the 23 rows"):
        ni.fit(apply, variables["params"], x, y, steps=1, microbatch=4)


def test_seeds_have_their_own_statistics(x):
    y = jnp.sin(3 * x[:, :1])
    models = jax.vmap(lambda k: ni.init(Normalized(), k, x))(jax.random.split(jax.random.key(0), 2))
    runs = ni.fit_seeds(*models, x, y, optimizer=optax.sgd(0.1), steps=3)
    means = [run.apply.args[0]["batch_stats"]["norm"]["mean"] for run in runs]
    assert means[0].shape == (8,)
    assert abs(means[0] - means[1]).max() > 1e-3
    for run in runs:  # in evaluation mode, with the statistics handed back
        loss = optax.l2_loss(run.apply(run.params, x), y).mean()
        np.testing.assert_allclose(run.history["loss"][-1], loss, rtol=1e-4)


def test_a_schedule_counts_the_steps(key, x):
    net = ni.CoordinateMLP(features=16, depth=1, sparsity=ni.TopK(k=optax.linear_schedule(16, 2, 8)))
    apply, params = ni.init(net, key, x)
    run = ni.fit(apply, params, x, x[:, :1], optimizer=optax.sgd(1e-9), steps=9)
    dense = ni.init(ni.CoordinateMLP(features=16, depth=1, sparsity=ni.TopK(k=2)), key, x)
    np.testing.assert_allclose(run.apply(params, x), dense[0](dense[1], x), rtol=1e-5, atol=1e-6)
    assert abs(run.apply(params, x) - apply(params, x)).max() > 1e-3


def test_a_model_without_state_comes_back_as_it_was(x):
    run = ni.fit(linear, jnp.zeros((2, 1)), x, x[:, :1], steps=1)
    assert run.apply.func is linear


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": "important", "batch_size": 2}, "unknown sampling.*loss, ntk"),
        ({"sampling": "loss"}, "give batch_size="),
        ({"microbatch": 0}, "microbatch is 0"),
    ],
)
def test_bad_batches(unchecked, change, message):
    with pytest.raises(ValueError, match=message):
        ni.fit(linear, np.ones((2, 1)), np.zeros((5, 2)), np.zeros((5, 1)), **change)
