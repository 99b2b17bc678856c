"""Moments without the kernel: streamed ones are exact, sampled ones unbiased with honest standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from tests.conftest import figures_of, in_float64, small


@pytest.fixture
def points(key):
    return jax.random.uniform(key, (300, 2), minval=-1.0)


def test_streamed_equals_dense(key, points, x64):
    model = in_float64(small("pe", key, points, out=2))
    points = points.astype(jnp.float64)
    exact = ni.moments(ni.ntk(*model, points))
    calls = []
    for block, limit in ((None, None), (64, None), (37, None), (None, 200_000)):
        streamed = ni.streamed_moments(
            *model, points, block=block, memory_limit=limit, progress=lambda *at: calls.append(at)
        )
        np.testing.assert_allclose(figures_of(streamed), figures_of(exact), rtol=1e-12)
    assert calls[-1][0] == calls[-1][1]


def test_sampled_is_unbiased_and_its_errors_are_honest(key, points):
    model = small("pe+hadamard", key, points)
    exact = ni.streamed_moments(*model, points)
    draws = [ni.sampled_moments(*model, points, key=jax.random.key(i), size=20, submatrices=10) for i in range(40)]
    for name in ("mean", "variance"):
        errors = np.array([getattr(d, name) for d in draws]) - getattr(exact, name)
        stderrs = np.array([getattr(d, f"{name}_stderr") for d in draws])
        assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(len(draws))
        # Drawn without replacement from few coordinates, the jackknife is a little wide for the variance.
        assert 0.6 < np.sqrt((stderrs**2).mean() / (errors**2).mean()) < 1.8


@pytest.mark.slow
def test_without_the_factor_of_9_4_it_would_be_rejected(key, points):
    """A submatrix's own variance is too small by (b - 1) / (n - 1)."""
    model = small("pe", key, points)
    exact = ni.streamed_moments(*model, points)
    m = ni.sampled_moments(*model, points, key=key, size=30, submatrices=10)
    assert abs(m.variance - exact.variance) < 5 * m.variance_stderr
    assert abs(m.variance * 29 / 299 - exact.variance) > 5 * m.variance_stderr


def test_stops_by_tolerance_and_takes_small_kernels_whole(key, points):
    model = small("relu", key, points)
    loose = ni.sampled_moments(*model, points, key=key, size=10, rtol=10.0)
    tight = ni.sampled_moments(*model, points, key=key, size=10, rtol=1e-6)
    assert (loose.submatrices, tight.submatrices) == (8, 30)
    assert tight.mean_stderr == 0  # all coordinates were drawn
    split = ni.sampled_moments(*model, points, key=key, size=100)
    assert (split.submatrices, split.size) == (8, 37)
    exact = ni.sampled_moments(*model, points[:9], key=key, size=20)
    assert (exact.submatrices, exact.size, exact.variance_stderr) == (1, 9, 0)
    np.testing.assert_allclose(figures_of(exact), figures_of(ni.moments(ni.ntk(*model, points[:9]))), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 1}, "size is 1; expected at least 2"),
        ({"submatrices": 1}, "submatrices is 1; expected at least 2"),
        ({"submatrices": 9, "size": 100}, "9 disjoint submatrices of 100 rows need 900 coordinates, x has 300"),
        ({"rtol": 0.0}, "rtol is 0.0"),
    ],
)
def test_bad_input(unchecked, change, message, key, points):
    with pytest.raises(ValueError, match=message):
        ni.sampled_moments(*small("relu", key, points), points, key=key, **change)


def test_says_that_it_is_driven_from_the_host(key, x):
    apply, params = small("relu", key, x)
    with pytest.raises(ValueError, match="streamed_moments works on the host"):
        jax.jit(lambda p: ni.streamed_moments(apply, p, x).mean)(params)
