"""Kernels of parameters that are looked up at integers of the coordinates, against whole Jacobians."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni

SHAPES = {"table": (400, 3), "experts": (40, 2, 3), "grid": (5, 60, 3), "out": (3, 2)}


def cell(x, cells=4):
    return jnp.floor((x + 1) * cells).astype(int)


def row(p, x):
    return p["table"][cell(x[:, 0])]


def each(function):
    return lambda p, x: jax.vmap(lambda x_i: function(p, x_i))(x)


LOOKED_UP = {
    "a row": row,
    "negative": lambda p, x: p["table"][-1 - cell(x[:, 0])],
    "clipped": lambda p, x: jnp.take(p["table"], cell(x[:, 0]) + 397, axis=0, mode="clip"),
    "dropped": lambda p, x: jnp.take(p["table"], cell(x[:, 0]) + 396, axis=0, fill_value=0.5),
    "unsigned": lambda p, x: p["table"][cell(x[:, 0]).astype(jnp.uint8)],
    "sum": lambda p, x: p["table"][cell(x)].sum(1),
    "product": lambda p, x: p["table"][cell(x)].prod(1),
    "repeated": lambda p, x: p["table"][cell(x[:, :1]) * jnp.ones((1, 3), int)].prod(1),
    "interpolated": lambda p, x: x[:, :1] * row(p, x) + (1 - x[:, :1]) * row(p, x + 0.25),
    "difference": lambda p, x: jnp.tanh(row(p, x)) - jnp.tanh(row(p, x + 0.1)),
    "of slices": lambda p, x: p["table"][:-1][cell(x[:, 0])] * p["table"][1:][cell(x[:, 0])],
    "a window": each(lambda p, x: jax.lax.dynamic_slice(p["table"], (cell(x[0]), 0), (2, 3)).sum(0)),
    "part of a row": each(
        lambda p, x: x[0] * jnp.tile(jax.lax.dynamic_slice(p["table"], (cell(x[0]), 1), (1, 1))[0], 3)
    ),
    "two indices": lambda p, x: p["grid"].at[cell(x[:, 0], 2), cell(x[:, 1])].get(mode="fill", fill_value=0),
    "experts": each(lambda p, x: x @ p["experts"][cell(x[0])]),
    "in a loop": lambda p, x: jax.lax.scan(lambda h, _: (jnp.tanh(h + row(p, x)), None), row(p, x), length=3)[0],
    "a table a step": lambda p, x: jax.lax.scan(
        lambda h, table: (jnp.tanh(h + table[cell(x[:, 0])]), None), jnp.zeros((len(x), 3)), p["grid"]
    )[0],
    "mapped": lambda p, x: jax.vmap(lambda table, i: table[i], (0, 1), 1)(p["grid"], cell(jnp.tile(x, 3)[:, :5])).prod(
        1
    ),
}


def drawn(shapes):
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def agrees(apply, params, x):
    for outputs in ("trace", "diagonal", "full"):
        expected = ni.ntk(apply, params, x, outputs=outputs, method="jacobian")
        np.testing.assert_allclose(ni.ntk(apply, params, x, outputs=outputs), expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(
        ni.NTKOperator(apply, params, x, outputs="full").diagonal(),
        jnp.einsum("iicc->ic", expected).reshape(-1),
        atol=1e-11,
    )
    np.testing.assert_allclose(ni.ntk(apply, params, x[:1], outputs="full"), expected[:1, :1], rtol=1e-11, atol=1e-11)
    rows = jax.jit(lambda p, x: ni.ntk(apply, p, x, x[:3], outputs="full"))(params, x)
    np.testing.assert_allclose(rows, expected[:, :3], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", LOOKED_UP)
def test_a_table_is_as_its_jacobian(x64, name):
    x = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (10, 2)))

    def apply(p, x):
        return jnp.tanh(LOOKED_UP[name](p, x)) @ p["out"]

    params = drawn(SHAPES)
    handled = [leaf.handling for leaf in ni.explain(apply, params, x).leaves]
    assert "gather" in handled
    agrees(apply, params, x)


@pytest.mark.parametrize(("d", "interpolation"), [(2, "smoothstep"), (3, "linear")])
def test_a_hash_grid_is_as_its_jacobian(x64, key, d, interpolation):
    """Dense and hashed levels, of 4 and 8 corners."""
    grid = ni.HashGrid(levels=3, log2_size=9, base=4, growth=3.0, interpolation=interpolation, param_dtype=jnp.float64)
    x = jax.random.uniform(key, (10, d), minval=-1, maxval=1)
    apply, params = ni.init(ni.CoordinateMLP(features=8, depth=1, out=2, encoding=grid), key, x)
    params = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape, jnp.float64) / 2, params)
    table = next(leaf for leaf in ni.explain(apply, params, x).leaves if "table" in leaf.name)
    assert table.handling == "gather"
    assert table.why == f"{3 * 2**d} rows of it are looked up"
    agrees(apply, params, x)
    expected = ni.moments(ni.ntk(apply, params, x, method="jacobian")).variance
    assert ni.variance_budget(apply, params, x).variance == pytest.approx(float(expected), rel=1e-11)


def test_what_stands_on_a_hash_grid(x64, key):
    """Gradients inside a program, moments, half precision, and several networks at once."""
    x = jax.random.uniform(key, (9, 2), minval=-1)
    grid = ni.HashGrid(levels=2, log2_size=5, base=4, param_dtype=jnp.float64)
    apply, params = ni.init(ni.CoordinateMLP(features=6, depth=1, out=2, encoding=grid), key, x)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(key, leaf.shape, jnp.float64), params)

    def size(params, x, method):
        return jnp.log((ni.ntk(apply, params, x, method=method) ** 2).sum())

    slopes, expected = (jax.jit(jax.grad(size, (0, 1)), static_argnums=2)(params, x, m) for m in ("auto", "jacobian"))
    chex.assert_trees_all_close(slopes, expected, rtol=1e-10, atol=1e-10)
    exact = ni.ntk(apply, params, x, method="jacobian")
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    np.testing.assert_allclose(jax.vmap(lambda p: ni.ntk(apply, p, x))(stacked)[0], exact, rtol=1e-11)
    variance = float(ni.moments(exact).variance)
    assert ni.streamed_moments(apply, params, x).variance == pytest.approx(variance, rel=1e-11)
    assert ni.sampled_moments(apply, params, x, key=key).variance == pytest.approx(variance, rel=1e-11)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), half)
    exact = ni.ntk(apply, wide, x, method="jacobian")
    errors = [np.linalg.norm(ni.ntk(apply, half, x, method=m) - exact) for m in ("structured", "jacobian")]
    assert errors[0] <= 10 * errors[1]
