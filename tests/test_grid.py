"""T4 of the theory: stationary kernels on grids, against the dense kernel."""

import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from ntk_inr.spectra.grid import grid_eigenvalues, grid_moments
from tests.conftest import figures_of


def two_layer(cosine):
    """(4.3): the first layer's kernel of a ReLU network at unit norm, a = 1."""
    # Rounding below 1 would be an angle of sqrt(eps).
    cosine = jnp.where(cosine > 1 - 1e-14, 1.0, jnp.clip(cosine, -1.0, 1.0))
    angle = jnp.arccos(cosine)
    return cosine * (jnp.pi - angle) / (2 * jnp.pi)


def nerf_cosine(x1, x2, bands=3):
    """(4.1) over its norm."""
    delta = (x1[:, None] - x2[None])[..., None] * jnp.pi
    return jnp.cos(delta * (2.0 ** jnp.arange(bands))[None, None, None]).mean((-2, -1))


def nerf(x1, x2):
    return two_layer(nerf_cosine(x1, x2))


def slanted(x1, x2):
    """Two plane waves: stationary, but not even along each axis."""
    waves = np.linspace(0.5, 2.5, 2 * x1.shape[1]).reshape(2, -1) * np.array([[1.0], [-0.6]])
    return two_layer(jnp.cos((x1[:, None] - x2[None]) @ waves.T).mean(-1))


def periodic_axis(n):
    return -1 + 2 * np.arange(n) / n


def grid(axes):
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


PERIODIC = [[periodic_axis(24)], [periodic_axis(12), periodic_axis(10)], [periodic_axis(n) for n in (6, 4, 5)]]
OPEN = [
    [np.linspace(0, 0.9, 17)],
    [np.linspace(-0.8, 0.7, 9), np.linspace(0.5, -0.2, 7)],
    [np.linspace(0, 0.9, 5), np.linspace(0, 1.1, 4), np.linspace(-0.3, 0.4, 6)],
    [np.linspace(0, 0.9, 9), np.array([0.3]), np.linspace(0, 1.1, 4)],
    [np.array([0.2]), np.linspace(-0.3, 0.4, 6)],
    [np.array([0.2]), np.array([0.4])],
]


@pytest.mark.parametrize(
    ("kernel", "axes"),
    [(nerf, axes) for axes in PERIODIC + OPEN] + [(slanted, axes) for axes in OPEN[:4]],
    ids=lambda given: given.__name__ if callable(given) else "x".join(str(len(axis)) for axis in given),
)
def test_moments_equal_those_of_the_dense_kernel(x64, kernel, axes):
    points = grid(axes)
    exact = figures_of(ni.moments(kernel(points, points)))
    np.testing.assert_allclose(figures_of(grid_moments(kernel, axes)), exact, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("axes", PERIODIC, ids=lambda axes: "x".join(str(len(axis)) for axis in axes))
def test_eigenvalues_equal_those_of_the_dense_kernel(x64, axes):
    points = grid(axes)
    exact = np.linalg.eigvalsh(np.asarray(nerf(points, points)))[::-1]
    found = grid_eigenvalues(nerf, axes)
    np.testing.assert_allclose(found, exact, atol=1e-10)
    np.testing.assert_allclose(found.var(), grid_moments(nerf, axes).variance, rtol=1e-10)


def test_periodic_but_not_even_along_each_axis(x64):
    def kernel(x1, x2):
        return jnp.cos(np.pi * (x1[:, None] - x2[None]) @ np.array([[1.0, 2.0], [2.0, -3.0]])).sum(-1)

    axes = [periodic_axis(8), periodic_axis(9)]
    points = grid(axes)
    exact = np.linalg.eigvalsh(np.asarray(kernel(points, points)))[::-1]
    np.testing.assert_allclose(grid_eigenvalues(kernel, axes), exact, atol=1e-10)


def test_one_row_would_not_do_for_a_kernel_not_even_along_each_axis(x64):
    """The row from one corner sees offsets of one sign; to take it for both is rejected."""
    axes = OPEN[1]
    points = grid(axes)
    row = np.asarray(slanted(points[:1], points)).reshape(9, 7)
    pairs = np.outer(*((n - np.arange(n)) * np.where(np.arange(n), 2, 1) for n in (9, 7)))
    pairs[0, 0] = 0
    naive = (pairs * row**2).sum() / 63
    assert abs(naive / ni.moments(slanted(points, points)).variance - 1) > 0.02


def test_golden_nerf_value():
    """The golden table scales the encoding by its norm: s = norm**2 / 2 = L d / 2."""
    m = grid_moments(nerf, [periodic_axis(12)] * 2)
    np.testing.assert_allclose([6 * m.mean, 36 * m.variance], [3, 31.289683], rtol=1e-3)  # arccos in float32
    np.testing.assert_allclose(m.cv, 1.8646, rtol=1e-3)


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_mean_squared_cosine_of_the_encoding(x64, bands):
    """(4.7): 1 / (2 L) over the periodic grid, the diagonal's 1 among its N offsets."""
    m = grid_moments(lambda x1, x2: nerf_cosine(x1, x2, bands), [periodic_axis(64)])
    np.testing.assert_allclose((1 + m.variance) / 64, 1 / (2 * bands), rtol=1e-12)


def test_circle(x64):
    """(4.9): closed coefficients, and odd ones above 1 vanish, so the kernel is singular."""
    n = 4096
    values = grid_eigenvalues(lambda x1, x2: two_layer(nerf_cosine(x1, x2, 1)), [periodic_axis(n)]) / n
    even = [(1 / (q - 1) ** 2 + 1 / (q + 1) ** 2) / (2 * np.pi**2) for q in (2, 4, 6)]
    np.testing.assert_allclose(values[:9], [1 / 8, 1 / 8, 1 / np.pi**2, *np.repeat(even, 2)], rtol=1e-4)
    assert np.sum(np.abs(values) < 1e-12) == n // 2 - 2


def test_takes_the_result_of_an_infinite_kernel():
    axes = [periodic_axis(8)]
    both = grid_moments(lambda x1, x2: types.SimpleNamespace(nngp=None, ntk=nerf(x1, x2)), axes)
    assert figures_of(both) == figures_of(grid_moments(nerf, axes))


def test_a_large_grid_in_float32():
    """Of more points than one chunk."""
    axis = periodic_axis(256).astype(np.float32)
    m, values = grid_moments(nerf, [axis, axis]), grid_eigenvalues(nerf, [axis, axis])
    np.testing.assert_allclose([m.mean, m.variance], [values.mean(), values.var()], rtol=1e-5)
    points = grid([axis, axis])
    np.testing.assert_allclose(m.variance, (np.asarray(nerf(points[:1], points), float)[0, 1:] ** 2).sum(), rtol=1e-3)


def test_no_grid_of_many_points_recompiles():
    traced = chex.assert_max_traces(lambda x1, x2: nerf(x1, x2), n=2)
    for n in (200, 220, 240):
        grid_moments(traced, [periodic_axis(n)] * 2)


def raw(x1, x2):
    return two_layer(jnp.clip(x1 @ x2.T / 2, -1, 1))


def with_input(x1, x2):
    return nerf(x1, x2) + 0.01 * x1 @ x2.T


def norms(x1, x2):
    """Only the diagonal and scale give it away: stationary cosines, unequal norms."""
    return (1 + 0.1 * x1[:, :1]) * nerf(x1, x2) * (1 + 0.1 * x2[:, 0])[None]


def one_sided(x1, x2):
    """Depends on x1 - x2, but isn't symmetric."""
    return nerf(x1, x2) + 0.01 * jnp.sin(jnp.pi * (x1[:, :1] - x2[:, 0][None]))


def white(x1, x2):
    """Narrower than a step, except that its diagonal varies."""
    return jnp.where((x1[:, None] == x2[None]).all(-1), 1 + 0.1 * x1[:, :1], 0.0)


@pytest.mark.parametrize("kernel", [raw, with_input, norms, one_sided, white])
@pytest.mark.parametrize("figure", [grid_moments, grid_eigenvalues])
def test_refuses_what_is_not_stationary(kernel, figure):
    with pytest.raises(ValueError, match="not stationary on this grid: pairs at one offset differ by up to"):
        figure(kernel, [periodic_axis(40), periodic_axis(30)])


def test_refuses_a_network_of_finite_width(key):
    """The sum over 256 random units in place of its expectation."""
    weights = jax.random.normal(key, (4, 256))

    def finite(x1, x2):
        encoded = [jnp.concatenate([jnp.sin(np.pi * x), jnp.cos(np.pi * x)], 1) for x in (x1, x2)]
        gates = [(h @ weights > 0) / 16 for h in encoded]
        return (encoded[0] @ encoded[1].T) * (gates[0] @ gates[1].T)

    with pytest.raises(ValueError, match="finite width"):
        grid_moments(finite, [periodic_axis(16)] * 2)


def test_refuses_an_fft_where_offsets_do_not_wrap():
    with pytest.raises(ValueError, match=r"not periodic.*differ by up to .* of its scale.*Let the axes cover one"):
        grid_eigenvalues(nerf, [np.linspace(0, 0.9, 20)])
    with pytest.raises(ValueError, match=r"axes\[1\] holds both ends of the period; leave its last point out"):
        grid_eigenvalues(nerf, [periodic_axis(16), np.linspace(-1, 1, 17)])


def test_refuses_an_fft_where_only_the_nearest_offsets_do_not_wrap():
    """A narrow kernel differs at one offset of a thousand."""

    def narrow(x1, x2):
        return jnp.exp(-((x1[:, 0][:, None] - x2[:, 0][None]) ** 2) * 1e6)

    with pytest.raises(ValueError, match="not periodic"):
        grid_eigenvalues(narrow, [periodic_axis(2000)])


@pytest.mark.parametrize(
    ("kernel", "axes", "error", "message"),
    [
        (3.0, [periodic_axis(4)], TypeError, "kernel is float, which can't be called"),
        (lambda a, b: np.asarray(a) @ np.asarray(b).T, [periodic_axis(4)], TypeError, "write it with jax.numpy"),
        (lambda a, b: a.sum(), [periodic_axis(4)], ValueError, r"kernel\(x1, x2\) gave \(\) for x1 of \(64, 1\)"),
        (lambda a, b: nerf(a, b) / 0, [periodic_axis(4)], ValueError, "infinite values"),
        (nerf, [], ValueError, "axes is empty"),
        (nerf, [np.zeros((3, 1))], ValueError, r"axes\[0\] has shape \(3, 1\); expected \(N,\)"),
        (nerf, [np.arange(4)], TypeError, r"axes\[0\] has dtype int64"),
        (nerf, [periodic_axis(4), np.array([0.0, 0.1, 0.3])], ValueError, r"axes\[1\] is not regularly spaced"),
        (nerf, [np.zeros(3)], ValueError, "not regularly spaced"),
        (nerf, [np.array([0.0, np.nan])], ValueError, "NaN or infinite coordinates"),
    ],
)
def test_bad_input(unchecked, kernel, axes, error, message):
    with pytest.raises(error, match=message):
        grid_moments(kernel, axes)
