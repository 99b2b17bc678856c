"""The structured kernel against the contraction of Jacobians in float64, for many kinds of function."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from ntk_inr.kernels.structured import factors
from ntk_inr.kernels.taps import TappedFunction
from tests.conftest import in_float64, small


def tied(params, x):
    """One matrix used twice: it has cross terms, so it has to keep its Jacobian."""
    h = jnp.tanh(x @ params["in"])
    for _ in range(2):
        h = jnp.tanh(h @ params["w"] + params["b"][None, :])
    return h @ params["out"]


def scanned(params, x):
    def layer(h, p):
        return jnp.tanh(h @ p["w"] + p["b"][None, :]), None

    h = jnp.tanh(x @ params["in"])
    return jax.lax.scan(layer, h, params["stack"])[0] @ params["out"]


def odd_entries(params, x):
    """Parameters as a left operand, transposed, scaled elementwise, as a frequency, and added unshaped."""
    h = jnp.sin(params["frequency"] * (params["left"] @ x.T).T)
    h = jax.jit(jax.nn.relu)(h @ params["turned"].T) * params["scale"][None, :]
    return jax.checkpoint(lambda h: h @ params["out"])(h) + params["shift"]


@jax.custom_jvp
def gated(u):
    return jnp.where(u > 0, u, 0.0)


gated.defjvp(lambda primals, tangents: (gated(primals[0]), 0.5 * tangents[0]))


def custom_rule(params, x):
    """The derivative rule is not the derivative: opening the call up would give another kernel."""
    return gated(x @ params["w"]) @ params["out"]


def _draw(shapes):
    key = jax.random.key(3)
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s, tuple))
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, s) / 2 for k, s in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def plain(function, shapes):
    return lambda key, x: (jax.tree_util.Partial(function), _draw(shapes))


def named(name, **settings):
    return lambda key, x: small(name, key, x, **settings)


MODELS = {
    **{name: named(name) for name in ni.variants()},
    "siren, 3 outputs, ntk": named("siren", out=3, parameterization="ntk"),
    "pe+hadamard trained, 2 outputs": named("pe", out=2, modulation=ni.FourierModulation(omega=3.0, trained=True)),
    "pe+sphere input": named("pe", normalization=ni.Sphere("input")),
    "pe+sphere hidden_pre": named("pe", normalization=ni.Sphere("hidden_pre"), out=2),
    "tied": plain(tied, {"in": (2, 8), "w": (8, 8), "b": (8,), "out": (8, 2)}),
    "scan": plain(scanned, {"in": (2, 8), "stack": {"w": (3, 8, 8), "b": (3, 8)}, "out": (8, 1)}),
    "odd entries": plain(
        odd_entries, {"left": (8, 2), "frequency": (), "turned": (6, 8), "scale": (6,), "out": (6, 2), "shift": ()}
    ),
    "custom rule": plain(custom_rule, {"w": (2, 8), "out": (8, 1)}),
    "product of two parameters": plain(
        lambda p, x: (x[:, 0] * (p["a"] @ p["b"])[0, 0])[:, None], {"a": (1, 3), "b": (3, 1)}
    ),
    "linear in a vector": plain(lambda p, x: (x @ p)[:, None], (2,)),
}


def tolerance(dtype, width=24):
    """Products of three sums of ``width`` terms, each of which rounds in units of eps."""
    return 3 * width**0.5 * float(jnp.finfo(dtype).eps)


def distance(a, b):
    return float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64)) / np.linalg.norm(b))


def reduced(full, outputs):
    return {"trace": np.einsum("ijcc->ij", full) / full.shape[2], "diagonal": np.einsum("ijcc->ijc", full)}.get(
        outputs, full
    )


@pytest.mark.parametrize("name", MODELS)
def test_structured_equals_float64_jacobian(name, key, x, x64):
    x = x.astype(jnp.float32)
    model = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), MODELS[name](key, x))
    exact_model, exact_x = in_float64(model), in_float64(x)
    full = np.asarray(ni.ntk(*exact_model, exact_x, outputs="full", method="jacobian"))
    for outputs in ("trace", "diagonal", "full"):
        exact = reduced(full, outputs)
        fast = ni.ntk(*exact_model, exact_x, outputs=outputs, block=5)
        assert fast.shape == exact.shape
        assert fast.dtype == jnp.float64
        assert distance(fast, exact) < tolerance(jnp.float64)
    for outputs, method in (("trace", "structured"), ("full", "structured"), ("diagonal", "jacobian")):
        # In float32 the forward pass itself rounds too, by the depth and the frequency inside a sine.
        rectangle = ni.ntk(*model, x, x[:7], outputs=outputs, method=method)
        assert rectangle.dtype == jnp.float32
        assert distance(rectangle, reduced(full, outputs)[:, :7]) < 20 * tolerance(jnp.float32)


@pytest.mark.parametrize(
    ("name", "taps", "free"),
    [("pe", 3, 0), ("siren, 3 outputs, ntk", 3, 0), ("tied", 2, 2), ("scan", 2, 2), ("odd entries", 1, 5)],
)
def test_plan_taps_the_products_that_it_can(name, taps, free, key, x):
    apply, params = MODELS[name](key, x)
    leaves, tree = jax.tree.flatten(params)
    found = TappedFunction(lambda p, x_i: apply(jax.tree.unflatten(tree, p), x_i[None])[0], leaves, x[0])
    assert (len(found.offsets), len(found.free)) == (taps, free)


def test_factors_are_activations_and_sensitivities(key, x):
    apply, params = small("relu", key, x, out=2)
    found = factors(jax.tree_util.Partial(apply), params, x)
    assert [f.h.shape[1] for f in found] == [2, 24, 24]
    assert [f.delta.shape for f in found] == [(23, 2, 24), (23, 2, 24), (23, 2, 2)]
    np.testing.assert_allclose(found[0].h, x)
    chex.assert_trees_all_close(found[2].delta, jnp.broadcast_to(jnp.eye(2), (23, 2, 2)))


@pytest.mark.parametrize("method", ["structured", "jacobian"])
@pytest.mark.parametrize("block", [1, 4, 23, 100])
def test_blocks_change_nothing_but_rounding(key, x, method, block):
    model = small("pe", key, x, out=2)
    whole = ni.ntk(*model, x, method=method)
    assert distance(ni.ntk(*model, x, method=method, block=block), whole) < tolerance(jnp.float32)


def test_symmetric_to_the_bit_and_positive_semidefinite(key, x):
    for name in ("relu", "siren"):
        kernel = np.asarray(ni.ntk(*small(name, key, x), x))
        np.testing.assert_array_equal(kernel, kernel.T)
        values = np.linalg.eigvalsh(kernel.astype(float))
        assert values[0] > -len(x) * np.finfo(np.float32).eps * values[-1]


def test_outputs_agree_with_each_other(key, x):
    model = small("pe", key, x, out=3)
    full = ni.ntk(*model, x, outputs="full")
    diagonal = jnp.einsum("ijcc->ijc", full)
    np.testing.assert_allclose(ni.ntk(*model, x, outputs="diagonal"), diagonal, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(ni.ntk(*model, x), diagonal.mean(axis=-1), rtol=1e-4, atol=1e-3)


def test_a_second_call_does_not_trace_again(key, x):
    @chex.assert_max_traces(n=2)  # once for the shape of its output, once to find the taps
    def apply(params, x):
        return jnp.tanh(x @ params["w"]) @ params["out"]

    params = _draw({"w": (2, 8), "out": (8, 1)})
    first = ni.ntk(apply, params, x)
    traced = jax.tree.map(lambda leaf: leaf + 1, params)
    for _ in range(4):
        ni.ntk(apply, traced, 0.5 * x)
    assert first.shape == (23, 23)


def test_seeds_of_one_network_share_a_compilation(x):
    net = ni.variant("rff", features=8, depth=1)
    models = [ni.init(net, jax.random.key(seed), x) for seed in range(3)]
    assert len({jax.tree.structure(model) for model in models}) == 1
    assert len({hash(jax.tree.structure(model[0])) for model in models}) == 1


def test_under_jit_vmap_and_grad(key, x):
    net = ni.variant("rff", features=16, depth=2)
    models = jax.vmap(lambda k: ni.init(net, k, x))(jax.random.split(key, 3))
    stacked = jax.jit(jax.vmap(lambda a, p: ni.moments(ni.ntk(a, p, x)).cv))(*models)
    alone = [ni.moments(ni.ntk(*jax.tree.map(lambda leaf, s=s: leaf[s], models), x)).cv for s in range(3)]
    np.testing.assert_allclose(stacked, alone, rtol=1e-4)


def test_gradient_of_cv_equals_finite_differences(key, x, x64):
    params = in_float64(_draw({"w": (2, 16), "out": (16, 1)}))
    points = x.astype(jnp.float64)

    def cv(scale):
        def apply(p, x):
            return jnp.sin(scale * (x @ p["w"])) @ p["out"]

        return ni.moments(ni.ntk(apply, params, points)).cv

    step = 1e-5
    numeric = (cv(2.0 + step) - cv(2.0 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(cv)(2.0), numeric, rtol=1e-7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x1": np.zeros((4, 2), int)}, TypeError, r"x1 has dtype int\d+; coordinates are floating point"),
        ({"x1": np.zeros(4)}, ValueError, r"x1 has shape \(4,\).*Reshape it with x1\[:, None\]"),
        ({"x1": np.zeros((0, 2))}, ValueError, "empty"),
        ({"x1": np.full((4, 2), np.nan)}, ValueError, "x1 holds 8 NaN"),
        ({"x2": np.zeros((4, 3))}, ValueError, "x2 has 3 coordinates a row but x1 has 2"),
        ({"params": {}}, ValueError, "params holds no arrays"),
        ({"params": {"w": np.ones((2, 1)), "n": np.arange(3)}}, TypeError, r"params\['n'\] has dtype int"),
        ({"params": {"w": np.full((2, 1), np.nan)}}, ValueError, r"params\['w'\] holds 2 NaN"),
        ({"apply": lambda p, x: (x @ p["w"])[:, 0]}, ValueError, r"gave shape \(4,\).*jax.vmap"),
        ({"apply": lambda p, x: (x @ p["w"])[None]}, ValueError, r"expected \(4, c\)"),
        ({"apply": lambda p, x: {"a": x}}, ValueError, "gave dict"),
        ({"apply": lambda p, x: x @ p["w"] > 0}, TypeError, "gave dtype bool"),
        ({"apply": None}, TypeError, "can't be called"),
        ({"outputs": "sum"}, ValueError, "unknown outputs 'sum'; known: trace, diagonal, full"),
        ({"method": "structred"}, ValueError, "Did you mean 'structured'"),
        ({"block": 0}, ValueError, "block is 0"),
    ],
)
def test_bad_input_says_what_is_expected(unchecked, change, error, message):
    call = {"apply": lambda p, x: x @ p["w"], "params": {"w": np.ones((2, 1))}, "x1": np.zeros((4, 2)), **change}
    with pytest.raises(error, match=message):
        ni.ntk(**call)


def test_one_coordinate_is_enough(key, x):
    assert ni.ntk(*small("relu", key, x), x[:1]).shape == (1, 1)


def test_a_callable_without_hash_works(x):
    class Model(dict):
        def __call__(self, params, x):
            return x @ params

    assert ni.ntk(Model(), jnp.ones((2, 1)), x).shape == (23, 23)
