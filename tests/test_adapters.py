"""One network in three libraries: the same kernel, one compilation for all seeds, and clear errors."""

import itertools
import subprocess
import sys
from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntk_inr as ni
from tests.conftest import quick

WIDTHS = (2, 16, 16, 3)


class LinenMLP(nn.Module):
    widths: Sequence[int] = WIDTHS[1:]

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, name=f"layer{i}")(nn.relu(x) if i else x)
        return x


class NNXMLP(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in itertools.pairwise(WIDTHS)])
        self.rngs = rngs  # as Dropout keeps them: keys and counts, which aren't trained

    def __call__(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(nnx.relu(x) if i else x)
        return x


class LinenBatchNorm(nn.Module):
    inference: bool

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(16)(x)
        return nn.Dense(3)(nn.tanh(nn.BatchNorm(use_running_average=self.inference)(h)))


class NNXBatchNorm(nnx.Module):
    def __init__(self, rngs, inference):
        self.first = nnx.Linear(2, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, use_running_average=inference, rngs=rngs)
        self.last = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.tanh(self.norm(self.first(x))))


@pytest.fixture
def eqx():
    return pytest.importorskip("equinox")


def equinox_mlp(eqx, key):
    return eqx.nn.MLP(2, 3, width_size=16, depth=2, activation=jax.nn.relu, key=key)


def linen_copy(model):
    """The Linen network with an Equinox network's weights, which stand the other way round there."""
    return LinenMLP(), {
        "params": {f"layer{i}": {"kernel": layer.weight.T, "bias": layer.bias} for i, layer in enumerate(model.layers)}
    }


def nnx_copy(model):
    net = NNXMLP(nnx.Rngs(7))
    for mine, theirs in zip(net.layers, model.layers, strict=True):
        mine.kernel.set_value(theirs.weight.T)
        mine.bias.set_value(theirs.bias)
    return net


def by_jacobian(apply, params, x):
    """The definition, (n, n, c, c), from every leaf's Jacobian (n, c, ...)."""
    leaves = jax.tree.leaves(jax.jacrev(apply)(params, x))
    flat = np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=-1).astype(float)
    return np.einsum("iap,jbp->ijab", flat, flat)


def assert_close(a, b, factor=30):
    """Equal to float32 rounding, relative to the largest entry."""
    np.testing.assert_allclose(a, b, rtol=0, atol=factor * np.finfo(np.float32).eps * np.abs(b).max())


def randomised(variables, key):
    """Batch statistics and scales that aren't the identity; variances stay positive."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        tree, [leaf + jax.random.uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


def compilations(models, x):
    traces = []

    @jax.jit
    def run(apply, params):
        traces.append(apply)
        return apply(params, x)

    outputs = [run(*ni.split(model)) for model in models]
    assert not np.allclose(outputs[0], outputs[1])
    return len(traces)


@pytest.mark.parametrize("outputs", quick(["trace", "full"], "full"))
def test_one_kernel_in_three_libraries(eqx, outputs, key, x):
    model = equinox_mlp(eqx, key)
    exact = by_jacobian(*ni.split(model), x)
    exact = exact if outputs == "full" else np.einsum("ijaa->ij", exact) / 3
    for same in (model, linen_copy(model), nnx_copy(model)):
        apply, params = ni.split(same)
        chex.assert_trees_all_close(apply(params, x), jax.vmap(model)(x), rtol=1e-5, atol=1e-6)
        assert_close(ni.ntk(apply, params, x, outputs=outputs), exact)


def test_seeds_share_a_compilation(eqx, x):
    keys = [jax.random.key(seed) for seed in range(2)]
    assert compilations([NNXMLP(nnx.Rngs(seed)) for seed in range(2)], x) == 1
    assert compilations([equinox_mlp(eqx, key) for key in keys], x) == 1
    assert compilations([(LinenMLP(), LinenMLP().init(key, x)) for key in keys], x) == 1


def test_drawing_is_one_program_for_all_seeds(key, x, monkeypatch):
    traces = []
    original = nn.Module.init

    def counted(*arguments):
        traces.append(arguments[0])
        return original(*arguments)

    monkeypatch.setattr(nn.Module, "init", counted)
    drawn = [ni.init(LinenMLP([5, 3]), seed, x)[1] for seed in (key, jax.random.key(9))]
    assert len(traces) == 1
    leaf, other = (jax.tree.leaves(params)[-1] for params in drawn)
    assert not np.allclose(leaf, other)
    np.testing.assert_allclose(leaf, jax.tree.leaves(LinenMLP([5, 3]).init(key, x)["params"])[-1], rtol=1e-6)


def test_a_module_that_looks_at_values_is_drawn_too(key, x):
    class Looks(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2 if float(jnp.abs(x).sum()) >= 0 else 3)(x)

    _, params = ni.init(Looks(), key, x)
    assert params["Dense_0"]["kernel"].shape == (x.shape[1], 2)


def test_a_setting_without_hash_shares_one_too(x):
    nets = [LinenMLP([8, 3]), LinenMLP([8, 3])]
    models = [(net, net.init(jax.random.key(seed), x)) for seed, net in enumerate(nets)]
    assert compilations(models, x) == 1
    assert compilations([*models, (LinenMLP([3]), LinenMLP([3]).init(jax.random.key(2), x))], x) == 2


def test_arrays_as_settings_are_told_apart(x):
    class Features(nn.Module):
        matrix: jax.Array

        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(x @ self.matrix)

    params = {"Dense_0": nn.Dense(1).init(jax.random.key(0), x)["params"]}
    models = [(Features(scale * jnp.eye(2)), {"params": params}) for scale in (1.0, 2.0)]
    assert compilations([*models, models[0]], x) == 2


def test_under_vmap_over_seeds(eqx, key, x):
    keys = jax.random.split(key, 3)
    for make in (lambda k: NNXMLP(nnx.Rngs(k)), lambda k: equinox_mlp(eqx, k)):
        apply, params = jax.vmap(lambda k, make=make: ni.split(make(k)))(keys)
        stacked = jax.vmap(lambda a, p: a(p, x))(apply, params)
        one_apply, one_params = ni.split(make(keys[1]))
        np.testing.assert_allclose(stacked[1], one_apply(one_params, x), rtol=1e-4, atol=1e-5)


def test_linen_batch_norm(key, x):
    net = LinenBatchNorm(inference=True)
    variables = randomised(net.init(key, x), key)
    apply, params = ni.split((net, variables))
    assert {leaf.shape for leaf in jax.tree.leaves(apply)} == {(16,)}
    assert_close(ni.ntk(apply, params, x, outputs="full"), by_jacobian(apply, params, x))

    apply, params = ni.split((LinenBatchNorm(inference=False), variables), mutable="batch_stats")
    again, _ = ni.split((LinenBatchNorm(inference=False), variables), mutable=["batch_stats"])
    assert jax.tree.structure(apply) == jax.tree.structure(again)
    expected, _ = LinenBatchNorm(inference=False).apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(apply(params, x), expected)
    assert not np.allclose(expected, net.apply(variables, x))


@pytest.mark.parametrize("inference", [True, False])
def test_nnx_batch_norm(inference, key, x):
    model = NNXBatchNorm(nnx.Rngs(0), inference)
    nnx.update(model, randomised(nnx.state(model), key))
    apply, params = ni.split(model)
    assert set(params) == {"first", "norm", "last"}
    assert set(params["norm"]) == {"scale", "bias"}
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(apply)]
    first = apply(params, x)
    np.testing.assert_array_equal(apply(params, x), first)
    jax.block_until_ready(jax.vmap(lambda row: apply(params, row[None])[0])(x))
    chex.assert_trees_all_equal(jax.tree.leaves(apply), before)  # no call wrote in the statistics
    if inference:
        assert_close(ni.ntk(apply, params, x, outputs="full"), by_jacobian(apply, params, x))
    np.testing.assert_array_equal(first, model(x))  # last: in training mode it writes in the model


def test_nnx_split_stands_apart_from_its_module(x):
    model = NNXMLP(nnx.Rngs(0))
    apply, params = ni.split(model)
    before = model(x)
    model.layers[0].kernel.set_value(jnp.zeros((2, 16)))
    np.testing.assert_array_equal(apply(params, x), before)
    nnx.update(model, params)
    np.testing.assert_array_equal(model(x), before)
    assert "params['layers'][0]['kernel']" in {
        f"params{jax.tree_util.keystr(path)}" for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }


def test_filter_freezes_the_first_layer(eqx, key, x):
    model = equinox_mlp(eqx, key)
    everything = jax.tree.map(eqx.is_inexact_array, model)
    is_trained = eqx.tree_at(lambda m: (m.layers[0].weight, m.layers[0].bias), everything, (False, False))
    apply, params = ni.split(model, filter=is_trained)
    assert jax.tree.map(jnp.shape, jax.tree.leaves(params)) == [(16, 16), (16,), (3, 16), (3,)]

    others = [(layer.weight, layer.bias) for layer in model.layers[1:]]

    def of_others(weights, x):
        h = jax.nn.relu(x @ model.layers[0].weight.T + model.layers[0].bias[None])
        h = jax.nn.relu(h @ weights[0][0].T + weights[0][1][None])
        return h @ weights[1][0].T + weights[1][1][None]

    exact = by_jacobian(of_others, others, x)
    assert_close(ni.ntk(apply, params, x, outputs="full"), exact)

    not_first = nnx.All(nnx.Param, nnx.Not(nnx.PathContains(0)))
    assert_close(ni.ntk(*ni.split(nnx_copy(model), filter=not_first), x, outputs="full"), exact)


def test_equinox_batched(eqx, key, x):
    class Batched(eqx.Module):
        inner: eqx.nn.MLP
        fixed: np.ndarray

        def __call__(self, x):
            return jax.vmap(self.inner)(x @ self.fixed)

    model = Batched(equinox_mlp(eqx, key), np.eye(2, dtype=np.float32))
    trained = eqx.tree_at(lambda m: m.fixed, jax.tree.map(eqx.is_inexact_array, model), False)
    apply, params = ni.split(model, filter=trained, batched=True)
    assert [leaf.shape for leaf in jax.tree.leaves(apply)] == [(2, 2)]
    np.testing.assert_allclose(apply(params, x), model(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (3, {}, TypeError, "split got int; expected a pair"),
        (lambda p, x: x, {}, TypeError, "split got function; .* A plain function .* needs no split"),
        (LinenMLP(), {}, TypeError, "split got LinenMLP; .*linen_module.init"),
        (NNXMLP, {}, TypeError, "split got the class NNXMLP, not an instance"),
        ((LinenMLP(), 3), {}, TypeError, r"split got a tuple \(LinenMLP, int\)"),
        ((nnx.Linear(2, 1, rngs=nnx.Rngs(0)), {}), {}, TypeError, r"split got a tuple \(Linear, dict\)"),
        ((LinenMLP(), {"layer0": {}}), {}, ValueError, r"collections \['layer0'\] but no 'params'"),
        ((LinenMLP(), {"params": {}}), {"batched": True}, TypeError, "split got batched for a model of Linen, which"),
        (nnx.Linear(2, 1, rngs=nnx.Rngs(0)), {"mutable": "x"}, TypeError, "got mutable .* takes only filter"),
        (nnx.Dropout(0.5, rngs=nnx.Rngs(0)), {}, ValueError, "no array of Dropout is a parameter by filter=None"),
    ],
)
def test_bad_models_say_what_is_expected(unchecked, model, options, error, message):
    with pytest.raises(error, match=message):
        ni.split(model, **options)


def test_bad_equinox_options_say_what_is_expected(unchecked, eqx, key):
    model = equinox_mlp(eqx, key)
    with pytest.raises(TypeError, match="got mutable for a model of Equinox, which takes only filter and batched"):
        ni.split(model, mutable=("batch_stats",))
    with pytest.raises(ValueError, match="no array of MLP is a parameter by filter=False"):
        ni.split(model, filter=False)


WITHOUT_A_FRAMEWORK = """
import importlib, pkgutil, sys
import jax.numpy as jnp
import ntk_inr.kernels as kernels

for module in pkgutil.iter_modules(kernels.__path__):
    importlib.import_module(f"ntk_inr.kernels.{module.name}")
x = jnp.linspace(-1, 1, 4)[:, None]
assert kernels.ntk(lambda p, x: x @ p, jnp.ones((1, 1)), x).shape == (4, 4)
print(*sorted({"flax", "optax", "equinox", "orbax", "skimage", "matplotlib"} & set(sys.modules)))
"""


def test_the_engine_needs_no_framework():
    """In a process of its own: this one has imported them all."""
    run = subprocess.run([sys.executable, "-c", WITHOUT_A_FRAMEWORK], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
