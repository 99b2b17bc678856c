"""The matrix-free operator against the dense kernel."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from tests.conftest import in_float64, quick, small
from tests.kernel_models import MODELS


def flat(full):
    n1, n2, c, _ = full.shape
    return full.transpose(0, 2, 1, 3).reshape(n1 * c, n2 * c)


def dense_product(dense, v, outputs):
    return jnp.einsum("ijo,jo...->io...", dense, v) if outputs == "diagonal" else dense @ v


@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("outputs", ["trace", "diagonal", "full"])
@pytest.mark.parametrize("microbatch", quick([None, 1, 7, 23, 100], 7))
def test_equals_the_dense_kernel(outputs, microbatch, rectangular, key, x, x64):
    apply, params = in_float64(small("pe", key, x, out=2))
    x = x.astype(jnp.float64)
    x2 = 0.7 * x[:9] if rectangular else None
    dense = ni.ntk(apply, params, x, x2, outputs=outputs)
    dense = flat(dense) if outputs == "full" else dense
    A = ni.NTKOperator(apply, params, x, x2, outputs=outputs, microbatch=microbatch)
    assert A.shape == dense.shape
    assert A.T.shape == (A.shape[1], A.shape[0], *A.shape[2:])
    right = A.shape[1:] if outputs == "diagonal" else A.shape[1:2]
    left = (A.shape[0], *right[1:])
    vectors = jax.random.normal(key, (*right, 3), jnp.float64)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    close(A @ vectors, dense_product(dense, vectors, outputs))
    close(A @ vectors[..., 0], dense_product(dense, vectors[..., 0], outputs))
    before = jax.random.normal(key, (3, *left), jnp.float64)
    expected = dense_product(dense.swapaxes(0, 1), jnp.moveaxis(before, 0, -1), outputs)
    close(before @ A, jnp.moveaxis(expected, -1, 0))
    close(np.asarray(before) @ A, jnp.moveaxis(expected, -1, 0))
    close(before[0] @ A, expected[..., 0])
    if rectangular:
        with pytest.raises(ValueError, match="leave x2 out"):
            A.trace()
        with pytest.raises(ValueError, match="expected a square operator"):
            ni.top_eigenpairs(A, 1, key=key)
    else:
        diagonal = jnp.moveaxis(jnp.diagonal(dense), 0, -1) if outputs == "diagonal" else jnp.diagonal(dense)
        np.testing.assert_allclose(A.diagonal(), diagonal, rtol=1e-12)
        np.testing.assert_allclose(A.trace(), diagonal.sum(0), rtol=1e-12)
        assert A.T is A


@pytest.mark.parametrize(
    "name", quick(["references", "custom_vjp product", "two deep"], "references", "custom_vjp product")
)
def test_takes_what_the_dense_kernel_takes(name, key, x):
    model = MODELS[name](key, x)
    A, dense = ni.NTKOperator(*model, x), ni.ntk(*model, x)
    np.testing.assert_allclose(A @ x, dense @ x, rtol=1e-4, atol=1e-3)


def test_backward_rules_that_are_not_linear_are_refused(key, x):
    with pytest.raises(ValueError, match=r"not linear in the cotangent.*ni\.ntk"):
        ni.NTKOperator(*MODELS["own rules"](key, x), x)


def test_backward_rules_that_only_happen_to_be_linear_are_refused(x):
    """Neither clip shows at the coordinates: one is far away, and what the other gives back cancels."""

    def clipped(clip):
        layer = jax.custom_vjp(lambda h: h)
        layer.defvjp(lambda h: (h, None), lambda _, g: (clip(g),))
        return layer

    far, near = clipped(lambda g: jnp.clip(g, -1e6, 1e6)), clipped(lambda g: g / (1 + jnp.linalg.norm(g)))
    for apply in (lambda w, x: far(x @ w), lambda w, x: x @ w + near(x @ w - x @ w)):
        with pytest.raises(ValueError, match=r"not linear in the cotangent.*ni\.ntk"):
            ni.NTKOperator(apply, jnp.ones((2, 1)), x)
        with pytest.raises(ValueError, match=r"not linear in the cotangent.*ni\.ntk"):
            jax.jit(lambda w, apply=apply: ni.NTKOperator(apply, w, x) @ jnp.ones(23))(jnp.ones((2, 1)))


def test_the_last_microbatch_is_filled_with_a_known_coordinate(key):
    """At zero, which padding might bring in, this function is not finite."""
    x = jax.random.uniform(key, (5, 2), minval=0.5)
    params = jax.random.normal(key, (2, 1))

    def apply(p, x):
        return (1 / x) @ p

    A = ni.NTKOperator(apply, params, x, microbatch=2)
    v = jnp.arange(5.0)
    np.testing.assert_allclose(A @ v, ni.ntk(apply, params, x) @ v, rtol=1e-5)


def test_is_a_pytree_and_compiles_once(key, x):
    @chex.assert_max_traces(n=12)
    def apply(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"]

    params = {"a": jnp.ones((2, 8)), "b": jnp.ones((8, 1))}
    A = ni.NTKOperator(apply, params, x)
    expected = A @ jnp.ones(23)
    for _ in range(3):
        A = ni.NTKOperator(apply, params, x)
        np.testing.assert_array_equal(A @ jnp.ones(23), expected)
    np.testing.assert_allclose(jax.jit(lambda A, v: A @ v)(A, jnp.ones(23)), expected, rtol=1e-6)


def test_is_frozen_and_passes_through_transformations(key, x):
    apply, params = small("relu", key, x)
    A = ni.NTKOperator(apply, params, x)
    v, expected = x[:, 0], ni.ntk(apply, params, x) @ x[:, 0]
    with pytest.raises(AttributeError, match="NTKOperator is frozen"):
        A.precision = "default"
    with pytest.raises(AttributeError, match="NTKOperator is frozen"):
        del A.model
    doubled = jax.tree.map(lambda leaf: leaf, A)
    passed = jax.jit(lambda A: A)(doubled)
    np.testing.assert_allclose(passed @ v, expected, rtol=1e-4, atol=1e-3)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), A)
    np.testing.assert_allclose(jax.vmap(lambda A: A @ v)(stacked), [expected, expected], rtol=1e-4, atol=1e-3)


def test_gradient_through_the_operator(key, x, x64):
    params = {"w": jnp.ones((2, 4)), "out": jnp.ones((4, 1))}

    def energy(scale):
        def apply(p, x):
            return jnp.sin(scale * (x @ p["w"])) @ p["out"]

        A = ni.NTKOperator(apply, params, x.astype(jnp.float64))
        return (A @ jnp.ones(23)).sum()

    numeric = (energy(2.0 + 1e-5) - energy(2.0 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(energy)(2.0), numeric, rtol=1e-6)


def test_with_matfree(key, x, x64):
    decomp = pytest.importorskip("matfree.decomp")
    apply, params = in_float64(small("pe", key, x))
    x = x.astype(jnp.float64)
    A = ni.NTKOperator(apply, params, x)
    found = decomp.tridiag_sym(6, reortho="full", materialize=True)(lambda v: A @ v, jnp.ones(23, jnp.float64))
    basis, tridiagonal = found.Q_tall, found.J_small
    np.testing.assert_allclose(basis @ ni.ntk(apply, params, x) @ basis.T, tridiagonal, atol=1e-8)


def test_with_lineax(key, x, x64):
    lineax = pytest.importorskip("lineax")
    apply, params = in_float64(small("pe", key, x))
    x = x.astype(jnp.float64)
    A = ni.NTKOperator(apply, params, x)
    y = jnp.sin(3 * x[:, 0])
    operator = lineax.FunctionLinearOperator(lambda v: A @ v + v, y, tags=lineax.positive_semidefinite_tag)
    solution = lineax.linear_solve(operator, y, lineax.CG(rtol=1e-10, atol=1e-10, max_steps=300)).value
    expected = jnp.linalg.solve(ni.ntk(apply, params, x) + jnp.eye(23), y)
    np.testing.assert_allclose(solution, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": "sum"}, "unknown outputs 'sum'; known: trace, diagonal, full"),
        ({"microbatch": 0}, "microbatch is 0"),
    ],
)
def test_bad_input(unchecked, change, message, key, x):
    with pytest.raises(ValueError, match=message):
        ni.NTKOperator(*small("relu", key, x), x, **change)


def test_a_vector_of_the_wrong_length(key, x):
    A = ni.NTKOperator(*small("relu", key, x), x)
    with pytest.raises(ValueError, match=r"is \(23, 23\) and was multiplied with shape \(7,\); expected \(23,\)"):
        A @ jnp.ones(7)
    with pytest.raises(ValueError, match=r"from the left with shape \(23, 2\); expected \(23,\) or \(k, 23\)"):
        np.ones((23, 2)) @ A


def test_functions_with_rules_for_backward_mode_only(x):
    @jax.custom_vjp
    def layer(w, x):
        return jnp.sin(x @ w)

    def backward(saved, cotangent):
        w, x = saved
        delta = cotangent * jnp.cos(x @ w)
        return x.T @ delta, delta @ w.T

    layer.defvjp(lambda w, x: (layer(w, x), (w, x)), backward)
    model = (lambda w, x: layer(w, x).sum(1, keepdims=True), jnp.ones((2, 8)))
    np.testing.assert_allclose(ni.NTKOperator(*model, x) @ jnp.eye(23), ni.ntk(*model, x), rtol=1e-4, atol=1e-3)


def test_vectors_of_any_size_are_multiplied_in_float16(key):
    x = jax.random.uniform(key, (2000, 2), jnp.float16, -1)
    params = [jax.random.normal(key, shape, jnp.float16) for shape in ((2, 16), (16, 1))]
    model = lambda p, x: 16 * jnp.tanh(x @ p[0]) @ p[1], params, x
    A, sums = ni.NTKOperator(*model), ni.ntk(*model).sum(1)
    assert sums.max() > jnp.finfo(jnp.float16).max
    vectors = jnp.broadcast_to(jnp.array([[1e-12, 1.0, 1e8]]), (2000, 3))
    along = jnp.full_like(vectors, 0.01)
    products, tangents = jax.jvp(lambda v: A @ v, (vectors,), (along,))
    # To the 11 bits of float16.
    close = {"rtol": 0, "atol": 2e-3 * float(sums.max())}
    np.testing.assert_allclose(products / vectors, jnp.stack([sums] * 3, 1), **close)
    np.testing.assert_allclose(tangents / along, jnp.stack([sums] * 3, 1), **close)
    np.testing.assert_allclose(jax.grad(lambda v: (A @ v)[0])(vectors[:, 2]).sum(), sums[0], **close)


def test_only_real_arrays_are_multiplied(key, x):
    A = ni.NTKOperator(*small("relu", key, x), x)
    assert repr(A) == "NTKOperator(shape=(23, 23), outputs='trace', dtype=float32)"
    with pytest.raises(TypeError, match=r"A @ \(A @ v\)"):
        A @ A
    with pytest.raises(TypeError, match="is real and was multiplied with complex64"):
        A @ jnp.ones(23, jnp.complex64)
    with pytest.raises(TypeError, match=r"K is NTKOperator.*ni.stochastic_moments"):
        ni.moments(A)


def test_outputs_of_another_dtype_than_the_parameters(key):
    x = jnp.linspace(0.1, 1, 12)[:, None]
    params = jax.random.normal(key, (1, 8)), jnp.ones((8, 1))

    def mixed(params, x):
        first, second = (leaf.astype(jnp.bfloat16) for leaf in params)
        return jnp.tanh(x.astype(jnp.bfloat16) @ first) @ second

    expected = ni.ntk(mixed, params, x) @ jnp.ones(12)
    found = ni.NTKOperator(mixed, params, x) @ jnp.ones(12)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0.02)  # 8 bits
