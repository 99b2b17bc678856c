"""T1 of the theory: identities and bounds for any symmetric kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni


@pytest.fixture
def kernel():
    """A positive definite kernel with uneven diagonal, in float64 on the host."""
    features = np.random.default_rng(0).normal(size=(40, 60)) * np.linspace(0.2, 2, 60)
    return features @ features.T


def golden_grid():
    """The lifted 12 x 12 grid of the theory's golden values, and its baseline kernel rho * p (T2)."""
    axis = -1 + 2 * np.arange(12) / 12
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    points = np.concatenate([points, np.ones((144, 1))], axis=1)
    rho = points @ points.T
    norms = np.sqrt(np.diagonal(rho))
    cosine = np.clip(rho / np.outer(norms, norms), -1, 1)
    np.fill_diagonal(cosine, 1.0)
    return cosine, rho, (np.pi - np.arccos(cosine)) / (2 * np.pi)


def test_moments_are_those_of_the_eigenvalues(kernel):
    values = np.linalg.eigvalsh(kernel)
    m = ni.moments(kernel)
    np.testing.assert_allclose(m.mean, values.mean(), rtol=1e-13)
    np.testing.assert_allclose(m.variance, values.var(), rtol=1e-12)
    np.testing.assert_allclose(m.cv, values.std() / values.mean(), rtol=1e-12)
    np.testing.assert_allclose(m.effective_rank, values.sum() ** 2 / (values**2).sum(), rtol=1e-12)


def test_moments_in_float32_do_not_cancel():
    """Near a multiple of the identity norm**2 / n - mean**2 loses every digit; (1.1) loses none."""
    n, small = 256, 1e-3
    noise = np.random.default_rng(1).normal(size=(n, n))
    kernel = 100 * np.eye(n) + small * (noise + noise.T)
    exact = np.linalg.eigvalsh(kernel).var()
    np.testing.assert_allclose(ni.moments(jnp.asarray(kernel, jnp.float32)).variance, exact, rtol=2e-2)
    naive = (kernel.astype(np.float32) ** 2).sum() / np.float32(n) - np.float32(np.trace(kernel) / n) ** 2
    assert abs(naive - exact) > 0.5 * exact


def test_scale_moves_variance_and_leaves_cv(kernel):
    one, five = ni.moments(kernel), ni.moments(5 * kernel)
    np.testing.assert_allclose(five.variance, 25 * one.variance, rtol=1e-12)
    np.testing.assert_allclose([five.cv, five.effective_rank], [one.cv, one.effective_rank], rtol=1e-12)


def test_weighted_form_1_3(kernel):
    diagonal = np.diagonal(kernel)
    weights = diagonal / diagonal.sum()
    overlap = kernel**2 / np.outer(diagonal, diagonal)
    np.testing.assert_allclose(1 + ni.moments(kernel).cv ** 2, 40 * weights @ overlap @ weights, rtol=1e-12)


def test_bounds_1_4_to_1_6(kernel):
    m, values, n = ni.moments(kernel), ni.eigenvalues(kernel), len(kernel)
    spread = np.sqrt(m.variance)
    assert m.mean * (1 + m.cv**2) <= values[0] <= m.mean + spread * np.sqrt(n - 1)
    assert m.mean - spread * np.sqrt(n - 1) <= values[-1] <= m.mean - spread / np.sqrt(n - 1)
    assert 2 * spread <= values[0] - values[-1] <= spread * np.sqrt(2 * n)
    assert ni.condition_number(kernel).value >= (m.cv + np.sqrt(1 + m.cv**2)) ** 2


def test_small_variance_does_not_bound_the_condition_number():
    """The counterexample after (1.6): cv 0.143 and condition number 1e9."""
    values = np.ones(50)
    values[0] = 1e-9
    assert round(float(ni.moments(np.diag(values)).cv), 3) == 0.143
    np.testing.assert_allclose(ni.condition_number(np.diag(values)).value, 1e9, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "mean", "variance", "cv"),
    [
        ("baseline", 0.83796296, 30.333040, 6.5725),
        ("sphere", 0.5, 11.488755, 6.7790),
        ("hadamard", 0.83796296, 3.0752787, 2.0928),
    ],
)
def test_golden_values(model, mean, variance, cv):
    cosine, rho, p = golden_grid()
    delta2 = np.add.outer(np.diagonal(rho), np.diagonal(rho)) - 2 * rho
    kernel = {"baseline": rho * p, "sphere": cosine * p, "hadamard": rho * p * np.exp(-(4**2) * delta2 / 2)}[model]
    m = ni.moments(kernel)
    np.testing.assert_allclose([m.mean, m.variance], [mean, variance], rtol=1e-7)
    np.testing.assert_allclose(m.cv, cv, atol=5e-5)  # given to four decimals


def test_eigensystem_reconstructs_the_kernel_in_both_libraries(kernel):
    for given, rtol in ((kernel, 1e-12), (jnp.asarray(kernel, jnp.float32), 1e-5)):
        system = ni.spectra.eigensystem(given)
        values, vectors = system.values, system.vectors
        assert np.all(np.diff(values) <= 0)
        np.testing.assert_allclose((vectors * values[None, :]) @ vectors.T, kernel, atol=rtol * kernel.max() * 10)
        np.testing.assert_allclose(ni.eigenvalues(given), values, atol=rtol * 100)
        for figure in (ni.eigenvalues, ni.condition_number, ni.max_learning_rate, ni.spectra.rounding_floor):
            forms = [jax.tree.leaves(figure(form)) for form in (given, values, system)]
            np.testing.assert_allclose(forms[0], forms[1], rtol=100 * rtol)
            np.testing.assert_array_equal(forms[1], forms[2])


def test_condition_number_says_when_rounding_hides_it():
    found = ni.condition_number(np.diag([1.0, 1e-17, 0.5]))
    assert not found.resolved
    np.testing.assert_allclose(found.value, 1 / (3 * np.finfo(float).eps))
    # The same kernel, computed in float32 and handed over in float64, resolves less.
    assert not ni.condition_number(np.diag([1.0, 1e-7, 0.5]), dtype=jnp.float32).resolved
    assert ni.condition_number(np.diag([1.0, 1e-7, 0.5])).resolved


def test_alignment_shares_add_up_and_follow_the_eigenvectors(kernel):
    system = ni.spectra.eigensystem(kernel)
    mixed = 3 * system.vectors[:, [0]] + 4 * system.vectors[:, [5]]
    found = ni.alignment(system, mixed)
    np.testing.assert_allclose(found.energy.sum(), 1.0)
    np.testing.assert_allclose(found.energy[[0, 5]], [9 / 25, 16 / 25], rtol=1e-6)


def test_max_learning_rate_is_the_stability_limit(kernel):
    """(10.2): just below it gradient descent on the linear model contracts, just above it grows."""
    limit = float(ni.max_learning_rate(kernel))
    residual = ni.spectra.eigensystem(kernel).vectors[:, [0]]
    for factor, grows in ((0.99, False), (1.01, True)):
        loss = ni.predict_training(kernel, residual, learning_rate=factor * limit, steps=50).loss
        assert (loss[-1] > loss[0]) == grows


def test_figures_survive_jit_and_grad(kernel):
    given = jnp.asarray(kernel, jnp.float32)
    np.testing.assert_allclose(jax.jit(ni.moments)(given).cv, ni.moments(kernel).cv, rtol=1e-5)
    gradient = jax.grad(lambda k: ni.moments(k).variance)(given)
    centred = 2 / 40 * (kernel - np.trace(kernel) / 40 * np.eye(40))
    np.testing.assert_allclose(gradient, centred, atol=1e-4)
    for figure in ("variance", "deviation", "cv", "effective_rank"):
        at_equal = jax.grad(lambda k, figure=figure: getattr(ni.moments(k), figure))(jnp.eye(5))
        assert np.isfinite(at_equal).all()
    # A kernel that the compiled function closes over is looked at while it is traced.
    np.testing.assert_allclose(jax.jit(lambda: ni.moments(given).cv)(), ni.moments(kernel).cv, rtol=1e-5)
    skewed = given.at[3, 0].add(30.0)
    with pytest.raises(ValueError, match="K is not symmetric"):
        jax.jit(lambda: ni.moments(skewed).cv)()
    several = jax.vmap(ni.moments)(jnp.stack([given, 2 * given]))
    assert (several.cv.shape, several.n) == ((2,), 40)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ni.moments(np.zeros((3, 4))), r"K has shape \(3, 4\); expected a square kernel"),
        (lambda: ni.eigenvalues([[1.0, 2.0]]), "expected a square kernel"),
        (lambda: ni.alignment(np.eye(3), np.ones((4, 1))), "y has 4 rows but x has 3"),
        (lambda: ni.alignment(np.eye(3), np.zeros((3, 1))), "no energy to share"),
    ],
)
def test_bad_input(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()
