"""TopK in its three modes, alone and inside a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from ntk_inr.networks.sparsity import kth_largest, soft_threshold
from tests.conftest import quick, small


@pytest.fixture
def u(key):
    return jax.random.normal(key, (7, 32))


def test_hard_keeps_the_k_largest(u):
    h = np.asarray(ni.TopK(k=5)(u))
    assert ((h != 0).sum(axis=1) == 5).all()
    for row, kept in zip(np.asarray(u), h, strict=True):
        assert set(kept[kept != 0]) == set(np.sort(row)[-5:])


def test_hard_gate_is_its_own_derivative(u):
    gate = jax.vmap(jax.grad(lambda row: ni.TopK(k=5)(row).sum()))(u)
    np.testing.assert_array_equal(gate, ni.TopK(k=5)(u) != 0)


def test_sphere_mode_is_the_survivors_on_the_sphere(u):
    z = ni.TopK(k=5, mode="sphere", radius=2.0)(u)
    np.testing.assert_allclose(z, ni.Sphere(radius=2.0)(ni.TopK(k=5)(u)), rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=1), 2.0, rtol=1e-5)


@pytest.mark.parametrize("temperature", [3.0, 0.1, 1e-3])
def test_soft_gates_sum_to_k(u, temperature):
    z = u / temperature
    gates = jax.nn.sigmoid(z - soft_threshold(z, 5))
    # The sum of 32 gates rounds, and near a jump one rounding of the threshold moves it by eps |z| of one unit.
    eps = float(jnp.finfo(u.dtype).eps)
    np.testing.assert_allclose(gates.sum(axis=1), 5, atol=eps * (32 + 4 * float(jnp.abs(z).max())))


@pytest.mark.parametrize("soft", ["gated", "straight_through"])
def test_soft_becomes_hard_as_the_temperature_falls(u, soft):
    # Half way to the next unit the gate is 1 - e^(-gap / 2T); the least gap here is 0.004.
    cold = ni.TopK(k=5, mode="soft", temperature=1e-4, soft=soft)(u)
    np.testing.assert_allclose(cold, ni.TopK(k=5)(u), atol=1e-4)


def test_shrinkage_has_the_gate_as_derivative(u):
    topk = ni.TopK(k=5, mode="soft", temperature=0.2)
    slope = jax.vmap(jax.grad(lambda row: topk(row).sum()))(u)
    np.testing.assert_allclose(slope, jax.nn.sigmoid(u / 0.2 - soft_threshold(u / 0.2, 5)), rtol=1e-5)


def test_straight_through_differentiates_only_the_values(u):
    topk = ni.TopK(k=5, mode="soft", temperature=0.2, soft="straight_through")
    slope = jax.vmap(jax.grad(lambda row: topk(row).sum()))(u)
    np.testing.assert_allclose(slope, topk(u) / u, rtol=1e-4)


@pytest.mark.parametrize(
    "mode",
    [{}, pytest.param({"mode": "sphere"}, marks=pytest.mark.slow), {"mode": "soft", "temperature": 0.1}],
    ids=["hard", "sphere", "soft"],
)
def test_in_a_network_its_kernel_is_exact(key, x, mode):
    model = small("pe", key, x, sparsity=ni.TopK(k=6, **mode))
    fast, slow = ni.ntk(*model, x), ni.ntk(*model, x, method="jacobian")
    np.testing.assert_allclose(fast, slow, rtol=1e-3, atol=1e-4 * float(slow.max()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ni.TopK(k=0), "k is 0"),
        (lambda: ni.TopK(k=2, mode="sofy"), "Did you mean 'soft'"),
        (lambda: ni.TopK(k=2, mode="soft"), "needs a temperature"),
        (lambda: ni.TopK(k=2, mode="soft", temperature=0.0), "temperature is 0.0"),
        (lambda: ni.TopK(k=2, temperature=0.1), "no effect with mode='hard'; use mode=\"soft\""),
        (lambda: ni.TopK(k=2, mode="sphere", radius=-1.0), "radius is -1.0"),
        (lambda: ni.TopK(k=9)(jnp.ones((2, 8))), "k is 9 but there are only 8 units"),
        (lambda: ni.TopK(k=8, mode="soft", temperature=1.0)(jnp.ones((2, 8))), "no finite threshold"),
    ],
)
def test_wrong_settings_say_what_is_expected(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", quick(["float16", "bfloat16", "float32", "float64"], "bfloat16", "float32"))
def test_the_kth_largest_is_that_of_a_sort(dtype, x64):
    u = np.random.default_rng(0).normal(size=(40, 33))
    u[0, :5], u[1, 3], u[2, 0], u[3, 1] = 0.0, -0.0, np.inf, -np.inf
    u = jnp.asarray(u, dtype)
    for k in (1, 2, 17, 33):
        expected = jnp.sort(u, axis=-1)[:, 33 - k][:, None]
        np.testing.assert_array_equal(kth_largest(u, k), expected)
        np.testing.assert_array_equal(jax.jit(kth_largest)(u, jnp.asarray(k)), expected)
    assert np.isnan(kth_largest(u.at[0, 0].set(jnp.nan), 1)[0, 0])
