"""T9: what products with vectors alone say about the spectrum, against dense float64 decompositions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from tests.conftest import figures_of, quick

N = 120


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Operator:
    """A kernel that shows nothing but its products."""

    matrix: jax.Array

    @property
    def shape(self):
        return self.matrix.shape

    @property
    def dtype(self):
        return self.matrix.dtype

    def __matmul__(self, v):
        TRACED.append(v.shape)
        return self.matrix @ v


@jax.tree_util.register_dataclass
class OperatorWithDiagonal(Operator):
    """One that knows its diagonal too, as NTKOperator does."""

    def diagonal(self):
        return jnp.diagonal(self.matrix)


TRACED = []
ESTIMATES = ("mean", "variance", "mean_stderr", "variance_stderr")
SPECTRA = {
    "spiky": 2.0 ** -np.arange(N),
    "flat": np.linspace(0.5, 1.5, N),
    "low rank": np.r_[3.0, 2.0, 2.0, 1.0, np.zeros(N - 4)],
    "identity": np.ones(N),
    "multiple": np.r_[np.full(10, 2.0), np.linspace(1.5, 0, N - 10)],
    "zero": np.zeros(N),
    "one": np.array([3.0]),
    "two": np.array([3.0, 1.0]),
}


def kernel(name, dtype=jnp.float64):
    """A kernel with the spectrum of that name, in a random basis, and its eigenvalues, largest first."""
    values = np.sort(SPECTRA[name])[::-1]
    basis = np.linalg.qr(np.random.default_rng(len(name)).normal(size=(len(values),) * 2))[0]
    return jnp.asarray((basis * values) @ basis.T, dtype), values


def repeated(A, repeats, **settings):
    """Return estimates and standard errors (repeats,) of the mean and of the variance."""
    found = [ni.stochastic_moments(A, key=jax.random.key(i), **settings) for i in range(repeats)]
    return [np.array(each) for each in zip(*(figures_of(m, *ESTIMATES) for m in found), strict=True)], found


@pytest.mark.parametrize("wrap", [Operator, OperatorWithDiagonal])
@pytest.mark.parametrize("method", ["probes", "deflated", "auto"])
@pytest.mark.parametrize("name", quick(["spiky", "flat", "low rank", "multiple"], "spiky"))
def test_moments_are_unbiased_and_their_standard_errors_cover(x64, name, method, wrap):
    K, values = kernel(name)
    (mean, variance, mean_stderr, variance_stderr), found = repeated(wrap(K), 100, probes=32, method=method)
    pairs = [(variance, variance_stderr, values.var()), (mean, mean_stderr, values.mean())]
    floor = 1e-13 * values.max() ** 2
    for estimates, stderr, exact in pairs if wrap is Operator else pairs[:1]:
        error = estimates - exact
        assert abs(error.mean()) <= 5 * error.std() / np.sqrt(100) + floor
        rms, stated = np.sqrt((error**2).mean()), np.sqrt((stderr**2).mean())
        assert rms <= floor or 0.7 < rms / stated < 1.4
    if wrap is OperatorWithDiagonal:
        np.testing.assert_allclose(mean, values.mean(), rtol=1e-12)
        assert not mean_stderr.any()
    assert {m.matvecs for m in found} == {32}


@pytest.mark.parametrize("name", ["spiky", "flat"])
def test_standard_errors_are_those_of_9_3(x64, name):
    K, values = kernel(name)
    (_, _, mean_stderr, variance_stderr), _ = repeated(Operator(K), 60, probes=64, method="probes")
    central = values - values.mean()
    k4 = (central**4).mean() / values.var() ** 2
    np.testing.assert_allclose(np.sqrt((mean_stderr**2).mean()), values.std() * np.sqrt(2 / (N + 2) / 64), rtol=0.1)
    expected = values.var() * np.sqrt(2 * (k4 - 1) / (N + 2) / 64)
    np.testing.assert_allclose(np.sqrt((variance_stderr**2).mean()), expected, rtol=0.1)


def test_auto_deflates_where_few_eigenvalues_dominate_and_gains_by_it(x64):
    spiky, values = kernel("spiky")
    flat = Operator(jnp.diag(jnp.linspace(0.5, 1.5, 2000)))
    chosen = ni.stochastic_moments(Operator(spiky), key=jax.random.key(0))
    assert chosen.method == "deflated"
    assert (chosen.reason, chosen.pilot_error > 0.01) == ("the pilot's error is above 1%", True)
    assert abs(chosen.variance / values.var() - 1) < 1e-6
    assert ni.stochastic_moments(flat, key=jax.random.key(0)).method == "probes"
    plain = ni.stochastic_moments(Operator(spiky), key=jax.random.key(0), method="probes")
    assert plain.variance_stderr > 1e4 * chosen.variance_stderr


def test_a_known_trace_serves_as_control_variate(x64):
    """One dominant eigenvalue: its square errs as it errs itself, and what that is the diagonal tells."""
    K, _ = kernel("spiky")
    blind, seeing = (repeated(wrap(K), 40, probes=48, method="probes")[0] for wrap in (Operator, OperatorWithDiagonal))
    assert np.median(blind[3]) > 2 * np.median(seeing[3])


def test_small_variance_does_not_cancel():
    """In float32, norm(K)**2 / n - mean**2 has no digit left of a variance 1e-8 times the mean's square."""
    values = 1 + 1e-4 * np.linspace(-1, 1, 300)
    for wrap in (Operator, OperatorWithDiagonal):
        found = ni.stochastic_moments(wrap(jnp.diag(jnp.asarray(values, jnp.float32))), key=jax.random.key(0))
        np.testing.assert_allclose(found.variance, values.var(), rtol=0.1)


@pytest.mark.parametrize("name", ["one", "two", "spiky"])
@pytest.mark.parametrize("wrap", [Operator, OperatorWithDiagonal])
def test_as_many_probes_as_dimensions_are_exact(x64, key, name, wrap):
    K, values = kernel(name)
    found = ni.stochastic_moments(wrap(K), key=key, probes=N)
    exact = [values.mean(), values.var(), 0, 0]
    np.testing.assert_allclose(figures_of(found, *ESTIMATES), exact, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(figures_of(found), figures_of(ni.moments(np.asarray(K))), rtol=1e-12, atol=1e-14)
    assert found.matvecs == len(values)
    assert "exact" in found.reason


@pytest.mark.parametrize("name", ["one", "two", "identity", "zero"])
@pytest.mark.parametrize("probes", [2, 32])
def test_degenerate_spectra_give_no_nan(x64, key, name, probes):
    K, values = kernel(name)
    for wrap in (Operator, OperatorWithDiagonal):
        for method in ("probes", "auto") if probes == 2 else ("probes", "auto", "deflated"):
            found = ni.stochastic_moments(wrap(K), key=key, probes=probes, method=method)
            assert np.isfinite(figures_of(found, *ESTIMATES)).all()
            # Two probes are too few for a standard error to be trusted.
            assert probes == 2 or abs(found.variance - values.var()) <= 6 * found.variance_stderr + 1e-12


def test_dense_kernels_and_operators_agree(x64, key):
    K, _ = kernel("flat")
    estimates = figures_of(ni.stochastic_moments(OperatorWithDiagonal(K), key=key, probes=32), *ESTIMATES)
    values = ni.top_eigenpairs(Operator(K), 6, key=key).values
    nodes = ni.spectral_density(Operator(K), key=key).nodes
    for given in (K, np.asarray(K), K.tolist()):
        again = figures_of(ni.stochastic_moments(given, key=key, probes=32), *ESTIMATES)
        np.testing.assert_allclose(again, estimates, rtol=1e-10)
        np.testing.assert_allclose(ni.top_eigenpairs(given, 6, key=key).values, values, rtol=1e-10)
        np.testing.assert_allclose(ni.spectral_density(given, key=key).nodes, nodes, rtol=1e-8)


def test_another_key_does_not_compile_again():
    K, _ = kernel("spiky", jnp.float32)
    for call in (
        lambda A, key: ni.stochastic_moments(A, key=key, probes=40),
        lambda A, key: ni.top_eigenpairs(A, 6, key=key),
        lambda A, key: ni.spectral_density(A, key=key, probes=20),
    ):
        call(Operator(K), jax.random.key(0))
        assert TRACED
        assert max(shape[1] for shape in TRACED) <= 16
        TRACED.clear()
        call(Operator(K + 1), jax.random.key(1))
        assert not TRACED


@pytest.mark.parametrize("name", quick(SPECTRA, "spiky", "low rank", "identity", "one"))
@pytest.mark.parametrize(("wrap", "k"), [(Operator, 6), (Operator, 20), (jnp.asarray, 6)])
def test_top_eigenpairs_are_those_of_the_dense_kernel(x64, key, name, wrap, k):
    K, values = kernel(name)
    k = min(k, len(values))
    found = ni.top_eigenpairs(wrap(K), k, key=key, tolerance=1e-10)
    assert found.converged.all()
    np.testing.assert_allclose(found.values, values[:k], atol=1e-10 * values[0] + 1e-14)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(k), atol=1e-12)
    residuals = np.linalg.norm(K @ found.vectors - found.values[None, :] * found.vectors, axis=0)
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-14)
    assert found.matvecs <= 2 * N + 20 or name in ("flat", "multiple")


def test_top_eigenpairs_in_float32_converge_at_the_default_tolerance(key):
    for name in ("spiky", "low rank", "identity", "flat"):
        K, values = kernel(name, jnp.float32)
        found = ni.top_eigenpairs(Operator(K), 6, key=key)
        assert found.converged.all()
        np.testing.assert_allclose(found.values, values[:6], atol=1e-5)


def test_what_has_not_converged_is_said(x64, key):
    K, values = kernel("flat")
    found = ni.top_eigenpairs(Operator(K), 6, key=key, iterations=5)
    assert not found.converged.any()
    assert found.matvecs == 5 * 10 + 6
    # A Ritz value lies within its residual of an eigenvalue, converged or not.
    nearest = np.abs(np.asarray(found.values)[:, None] - values).min(axis=1)
    assert (nearest <= found.residuals).all()
    with pytest.raises(RuntimeError, match=r"0 of 6 eigenpairs converged in 1 iterations.*Raise iterations"):
        ni.top_eigenpairs(Operator(K), 6, key=key, iterations=1, throw=True)


@pytest.mark.parametrize("name", list(SPECTRA))
def test_density_is_a_distribution_within_the_spectrum(x64, key, name):
    K, values = kernel(name)
    found = ni.spectral_density(Operator(K), key=key)
    assert found.nodes.shape == found.weights.shape == (16, min(32, len(values)))
    assert (found.weights >= 0).all()
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-12)
    assert values[-1] - 1e-12 <= found.nodes.min() <= found.nodes.max() <= values[0] + 1e-12
    between = (values[:-1] + values[1:]) / 2
    between = between[values[:-1] - values[1:] > 0.1]
    share = (values <= between[:, None]).mean(axis=1)
    # A share p of n eigenvalues, from 16 vectors: standard error sqrt(2 p (1 - p) / (16 (n + 2))).
    allowed = 5 * np.sqrt(2 * share * (1 - share) / 16 / (len(values) + 2)) + 1e-12
    if name not in ("flat", "multiple"):  # There the gaps are finer than what 32 steps resolve.
        assert (np.abs(found.cdf(between) - share) <= allowed).all()
    if name in ("low rank", "identity", "zero", "one", "two"):  # Few steps exhaust the Krylov space.
        occupied = np.asarray(found.nodes)[np.asarray(found.weights) > 1e-10]
        assert np.abs(occupied[:, None] - values).min(axis=1).max() < 1e-10


def test_density_moments_are_unbiased(x64):
    K, values = kernel("multiple")
    found = [ni.spectral_density(Operator(K), key=jax.random.key(i), probes=8, steps=4) for i in range(50)]
    for j in (1, 2, 7):  # Four steps are exact up to the seventh power, for each vector.
        each = [density.moment(j) for density in found]
        error = np.array([m.value for m in each]) - (values**j).mean()
        assert abs(error.mean()) <= 5 * error.std() / np.sqrt(50)
        stated = np.sqrt(np.mean([float(m.stderr) ** 2 for m in each]))
        assert 0.7 < np.sqrt((error**2).mean()) / stated < 1.4


def test_density_forms_agree_and_work_under_jit(x64, key):
    K, values = kernel("flat")
    found = jax.jit(lambda A: ni.spectral_density(A, key=key))(Operator(K))
    edges = np.linspace(0.4, 1.6, 7)
    np.testing.assert_allclose(found.histogram(edges), np.diff(found.cdf(edges)), atol=1e-12)
    t = np.linspace(-0.5, 2.5, 301)
    smooth = found.density(t, width=0.1)
    np.testing.assert_allclose(smooth.sum() * 0.01, 1, rtol=1e-6)
    exact = np.exp(-(((t[:, None] - values) / 0.1) ** 2) / 2).mean(axis=1) / (0.1 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(smooth, exact, atol=0.1)
    assert found.cdf(np.ones((2, 3))).shape == (2, 3)


def test_the_floor_is_that_of_the_arithmetic_the_kernel_came_in():
    K, values = kernel("spiky", jnp.float32)
    wide = np.asarray(K, float)
    found = ni.eigenvalues(wide)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64
    floor = ni.spectra.rounding_floor(wide, dtype=K.dtype)
    np.testing.assert_allclose(floor, np.finfo(np.float32).eps * N, rtol=1e-6)
    np.testing.assert_allclose(ni.spectra.rounding_floor(found, dtype=K.dtype), floor)
    assert ni.spectra.rounding_floor(wide) < 1e-8 * floor
    above = values > floor
    np.testing.assert_allclose(found[above], values[above], atol=floor)
    condition = ni.condition_number(wide, dtype=K.dtype)
    assert not condition.resolved
    np.testing.assert_allclose(condition.value, 1 / np.finfo(np.float32).eps / N)


class NotRegistered:
    shape = (3, 3)

    def __matmul__(self, v):
        return v


EYE = jnp.eye(3)
KEY = jax.random.key(0)
BETWEEN = ni.NTKOperator(lambda p, x: x @ p, jnp.ones((3, 1)), EYE, EYE + 0.1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ni.stochastic_moments(EYE, key=KEY, probes=1), ValueError, "probes is 1; expected at least 2"),
        (lambda: ni.stochastic_moments(EYE, key=KEY, probes=4.0), TypeError, "probes is 4.0; expected a whole"),
        (lambda: ni.stochastic_moments(EYE, key=KEY, probes=3, method="deflated"), ValueError, "expected at least 4"),
        (lambda: ni.stochastic_moments(EYE, key=KEY, method="deflate"), ValueError, "Did you mean 'deflated'?"),
        (lambda: ni.stochastic_moments(np.ones((3, 4)), key=KEY), ValueError, "expected a square kernel"),
        (lambda: ni.stochastic_moments(Operator(EYE[:2]), key=KEY), ValueError, "expected a square operator"),
        (lambda: ni.top_eigenpairs(BETWEEN, 1, key=KEY), ValueError, r"\(3, 3\), between x1 and x2; expected a square"),
        (lambda: ni.stochastic_moments(NotRegistered(), key=KEY), TypeError, "registered as a JAX pytree"),
        (lambda: ni.top_eigenpairs(EYE, 4, key=KEY), ValueError, "k is 4; the operator has only 3 eigenpairs"),
        (lambda: ni.top_eigenpairs(EYE, 1, key=KEY, iterations=0), ValueError, "iterations is 0"),
        (lambda: ni.top_eigenpairs(EYE, 1, key=KEY, tolerance=-1.0), ValueError, "tolerance is -1.0"),
        (lambda: ni.spectral_density(EYE, key=KEY, probes=1), ValueError, "probes is 1; expected at least 2"),
        (lambda: ni.spectral_density(EYE, key=KEY, steps=4), ValueError, "steps is 4; .* at most 3 dimensions"),
        (lambda: ni.spectral_density(EYE, key=KEY).density(0.0, width=0.0), ValueError, "width is 0.0"),
    ],
)
def test_bad_input(unchecked, call, error, message):
    with pytest.raises(error, match=message):
        call()
