import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_inr.networks.trig import sin, sincos
from tests.conftest import quick


def test_float32_error_is_below_2e_7_up_to_1e4():
    x = np.concatenate([np.linspace(-1e4, 1e4, 400_001), np.linspace(-7, 7, 100_001)]).astype(np.float32)
    sine, cosine = jax.jit(sincos)(x)
    exact = x.astype(np.float64)
    assert np.abs(np.asarray(sine, np.float64) - np.sin(exact)).max() <= 2e-7
    assert np.abs(np.asarray(cosine, np.float64) - np.cos(exact)).max() <= 2e-7


def test_float64_is_the_native_function(x64):
    x = jnp.linspace(-50.0, 50.0, 101)
    assert x.dtype == jnp.float64
    np.testing.assert_array_equal(sincos(x)[0], jnp.sin(x))
    np.testing.assert_array_equal(sincos(x)[1], jnp.cos(x))


@pytest.mark.parametrize("order", quick([1, 2, 3], 1, 2))
def test_derivatives_in_both_modes(order):
    f = g = lambda u: sin(3 * u)
    for _ in range(order):
        f, g = jax.grad(f), jax.jacfwd(g)
    u = jnp.linspace(-2.0, 2.0, 9)
    exact = 3.0**order * np.sin(3 * np.asarray(u, np.float64) + order * np.pi / 2)
    np.testing.assert_allclose(jax.vmap(f)(u), exact, atol=2e-5)
    np.testing.assert_allclose(jax.vmap(g)(u), exact, atol=2e-5)


@pytest.mark.parametrize("largest", [1e5, 1e8, 1e12, 3e38])
def test_values_stay_bounded_whatever_the_argument(largest):
    values = jnp.stack(sincos(jnp.linspace(-largest, largest, 1001, dtype=jnp.float32)))
    assert abs(values).max() <= 1 + 1e-6


def test_special_values():
    sine, cosine = sincos(jnp.array([0.0, jnp.nan, jnp.inf]))
    assert (sine[0], cosine[0]) == (0.0, 1.0)
    assert jnp.isnan(sine[1])
    assert jnp.isnan(sine[2])
