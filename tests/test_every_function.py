"""What holds for every public function: options are checked, dtypes and scales don't matter, no mark is NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import ntk_inr as ni
from ntk_inr.variance.assumptions import check_assumptions
from tests.conftest import small

X = jnp.linspace(-1, 1, 12)[:, None]

OF_A_MODEL = {
    "streamed_moments": ni.streamed_moments,
    "sampled_moments": lambda *model, **options: ni.sampled_moments(*model, key=jax.random.key(0), size=4, **options),
    "variance_budget": ni.variance_budget,
    "ntk": ni.ntk,
}


@pytest.mark.parametrize("name", OF_A_MODEL)
@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"block": -3}, ValueError, "block is -3; expected at least 1"),
        ({"block": 2.0}, TypeError, "block is 2.0; expected a whole number"),
        ({"memory_limit": 0}, ValueError, "memory_limit is 0; expected at least 1"),
        ({"precision": "hihgest"}, ValueError, "unknown precision 'hihgest'.*Did you mean 'highest'"),
        ({"precision": None}, ValueError, "unknown precision None"),
    ],
)
def test_options_that_functions_share_are_checked_by_each(unchecked, name, option, error, message, key):
    with pytest.raises(error, match=message):
        OF_A_MODEL[name](*small("relu", key, X), X, **option)


def _kernel():
    """Whole numbers up to 127, so that every dtype has them, with the spectrum of no special matrix."""
    features = np.random.default_rng(0).integers(0, 4, (30, 6))
    return features @ features.T + np.diag(1 + np.arange(30) % 5)


TARGET = np.random.default_rng(1).normal(size=(30, 2)).astype(np.float32)
KEY = jax.random.key(0)


def _stochastic(method):
    def figures(K):
        found = ni.stochastic_moments(K, key=KEY, probes=16, method=method)
        errors = found.mean_stderr / found.mean, found.variance_stderr / found.mean / found.mean
        return found.cv, found.effective_rank, *(errors if np.isfinite(found.variance_stderr) else ())

    return figures


def _top(K):
    top = ni.top_eigenpairs(K, 2, key=KEY)
    return top.values[1] / top.values[0], top.converged.all(), abs(top.vectors[:, 0]).max()


def _density(K):
    rho = ni.spectral_density(K, key=KEY, probes=4, steps=8)
    top, mean = rho.nodes.max(), rho.moment(1)
    return rho.cdf(top / 10), rho.cdf(top / 2), mean.value / top, mean.stderr / top


# Of the kernel, no scale: what the figures below say must not depend on its unit, its dtype or its library.
FIGURES = {
    "moments": lambda K: ni.moments(K)[2:],
    "condition_number": lambda K: ni.condition_number(K, dtype=np.float32),
    "eigenvalues": lambda K: (values := ni.eigenvalues(K))[:6] / values[0],
    "alignment": lambda K: ni.alignment(K, TARGET).energy[:6],
    "max_learning_rate": lambda K: ni.max_learning_rate(K) * ni.eigenvalues(K)[0],
    "rounding_floor": lambda K: ni.rounding_floor(K, dtype=np.float32) / ni.eigenvalues(K)[0],
    "predict_training": lambda K: (
        ni.predict_training(K, TARGET, learning_rate=float(ni.max_learning_rate(K)), steps=9).loss
    ),
    "probes": _stochastic("probes"),
    "deflated": _stochastic("deflated"),
    "top_eigenpairs": _top,
    "spectral_density": _density,
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_depend_neither_on_the_kernels_unit_nor_on_its_dtype(name):
    K = _kernel()
    figures = FIGURES[name]

    def found(kernel):
        return np.array(
            [float(value) for value in np.hstack([np.ravel(part) for part in jax.tree.leaves(figures(kernel))])]
        )

    right = found(jnp.asarray(K, jnp.float32))
    assert np.isfinite(right).all()
    given = [cast(K * size, np.float32) for size in (1e-34, 1e24) for cast in (jnp.asarray, np.asarray)]
    given += [K * 1e-34, K * 1e24, *(K.astype(dtype) for dtype in (np.float16, np.int8, np.uint8, np.int64, ">f4"))]
    given += [jnp.asarray(K, dtype) for dtype in (jnp.float16, jnp.bfloat16, jnp.int8, jnp.int32, jnp.uint8)]
    for kernel in given:
        np.testing.assert_allclose(
            found(kernel), right, rtol=2e-3, atol=2e-5, err_msg=f"{kernel.dtype}, {kernel.max()}"
        )


def _budget(*model):
    budget = ni.variance_budget(*model)
    return budget.cv, budget.shares, budget.correlations, budget.tau, budget.forward_tau, budget.overlap


def _assumptions(*model):
    report = check_assumptions(*model)
    return report.off_diagonal, [(f.measured, f.error_percent, f.share) for f in report.findings]


FIGURES_OF_A_MODEL = {
    "streamed_moments": lambda *model: ni.streamed_moments(*model, block=7)[2:],
    "sampled_moments": lambda *model: ni.sampled_moments(*model, key=KEY, size=5, submatrices=2)[2:4],
    "operator": lambda *model: _stochastic("probes")(ni.NTKOperator(*model)),
    "variance_budget": _budget,
    "check_assumptions": _assumptions,
}


@pytest.mark.parametrize("name", FIGURES_OF_A_MODEL)
def test_figures_depend_not_on_a_networks_unit(name):
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in (("w", (2, 8)), ("out", (8, 2)))}
    x = rng.normal(size=(12, 2)).astype(np.float32)

    def found(size):
        network = Partial(lambda size, p, x: size * (jnp.tanh(x @ p["w"]) @ p["out"]), jnp.float32(size))
        return np.hstack([np.ravel(part) for part in jax.tree.leaves(FIGURES_OF_A_MODEL[name](network, params, x))])

    right = found(1.0)
    for size in (2e-17, 1e12):
        np.testing.assert_allclose(found(size), right, rtol=2e-3, atol=1e-5)
