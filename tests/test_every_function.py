"""What holds for every public function: options are checked, dtypes and scales don't matter, no mark is NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import ntk_inr as ni
from ntk_inr.training.recorder import Recorder
from ntk_inr.variance.assumptions import check_assumptions
from tests.conftest import figures_of, quick, small

X = jnp.linspace(-1, 1, 12)[:, None]

OF_A_MODEL = {
    "streamed_moments": ni.streamed_moments,
    "sampled_moments": lambda *model, **options: ni.sampled_moments(*model, key=jax.random.key(0), size=4, **options),
    "variance_budget": ni.variance_budget,
    "ntk": ni.ntk,
    "explain": ni.explain,
    "NTKOperator": lambda *model, block=None, **options: ni.NTKOperator(*model, microbatch=block, **options),
    "training_kernel": ni.kernels.training_kernel,
}
# What some of them have no use for.
LACKING = {"explain": ("precision",), "NTKOperator": ("memory_limit",)}


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
    if not set(option) & set(LACKING.get(name, ())):
        message = message.replace("block", "microbatch") if name == "NTKOperator" else message
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
    "moments": lambda K: figures_of(ni.moments(K), "cv", "effective_rank"),
    "condition_number": lambda K: ni.condition_number(K, dtype=np.float32),
    "eigenvalues": lambda K: (values := ni.eigenvalues(K))[:6] / values[0],
    "alignment": lambda K: ni.alignment(K, TARGET).energy[:6],
    "max_learning_rate": lambda K: ni.max_learning_rate(K) * ni.eigenvalues(K)[0],
    "rounding_floor": lambda K: ni.spectra.rounding_floor(K, dtype=np.float32) / ni.eigenvalues(K)[0],
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
    "streamed_moments": lambda *model: figures_of(ni.streamed_moments(*model, block=7), "cv", "effective_rank"),
    "sampled_moments": lambda *model: figures_of(
        ni.sampled_moments(*model, key=KEY, size=5, submatrices=2), "cv", "effective_rank"
    ),
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


def _fitted(apply, params, x):
    run = ni.fit(apply, params, x, x[:, :2], steps=3, microbatch=5, ntk_points=4)
    return run.losses, run.history["loss"][-1], run.history["psnr"]


def _exact(*model):
    found = ni.stochastic_moments(ni.NTKOperator(*model), key=KEY, probes=len(model[2]))
    return found.mean, found.variance, found.cv, found.effective_rank


# With what is random left out, since each dtype draws other numbers.
OF_EVERY_DTYPE = {
    "ntk": ni.ntk,
    "explain": lambda *model: float(ni.explain(*model).pairs),
    "stochastic_moments": _exact,
    "top_eigenpairs": lambda *model: ni.top_eigenpairs(ni.NTKOperator(*model), 1, key=KEY).values,
    "spectral_density": lambda *model: ni.spectral_density(ni.NTKOperator(*model), key=KEY, steps=4).nodes.max(),
    "alignment": lambda *model: ni.alignment(ni.ntk(*model), model[2]).energy[:2],
    "fit": _fitted,
    **{name: FIGURES_OF_A_MODEL[name] for name in FIGURES_OF_A_MODEL if name != "operator"},
}


@pytest.mark.parametrize("name", quick(OF_EVERY_DTYPE, "stochastic_moments", "streamed_moments", "fit"))
def test_every_dtype_of_parameters(name):
    """To the rounding of the parameters' own arithmetic, with figures in float32 at least."""
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 9, (10, 3)) / 8  # that every dtype holds, as these parameters
    params = {name: rng.integers(-8, 9, shape) / 8 for name, shape in (("w", (3, 6)), ("out", (6, 2)))}

    def network(p, x):
        return jnp.tanh(x @ p["w"]) @ p["out"]

    def found(dtype):
        drawn = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        result = OF_EVERY_DTYPE[name](network, drawn, jnp.asarray(x, dtype))
        return np.hstack([np.ravel(np.asarray(part, np.float64)) for part in jax.tree.leaves(result)])

    right = found(jnp.float32)
    assert np.isfinite(right).all()
    for dtype in (jnp.float64, jnp.float16, jnp.bfloat16):
        with jax.enable_x64(dtype == jnp.float64):
            tolerance = 16 * max(float(jnp.finfo(kind).eps) for kind in (dtype, jnp.float32))
            np.testing.assert_allclose(found(dtype), right, rtol=tolerance, atol=tolerance, err_msg=dtype.__name__)


def _everything_of_the_kernel(apply, params, x):
    K = ni.ntk(apply, params, x)
    ni.predict_training(K, x, learning_rate=0.1, steps=99)
    return [figures(K) for figures in (ni.moments, ni.condition_number, ni.spectra.eigensystem, ni.max_learning_rate)]


def _trained(apply, params, x, **options):
    return ni.fit(apply, params, x, x, steps=3, validation=(x, x), **options)


def _gaussian(x1, x2):
    return jnp.exp(-((x1[:, None] - x2[None]) ** 2).sum(-1))


WITHOUT_NAN = {
    "kernel": _everything_of_the_kernel,
    "operator": lambda *model: [_stochastic(method)(ni.NTKOperator(*model)) for method in ("auto", "deflated")],
    "top_eigenpairs": lambda *model: ni.top_eigenpairs(ni.NTKOperator(*model), 1, key=KEY),
    "spectral_density": lambda *model: ni.spectral_density(ni.NTKOperator(*model), key=KEY, steps=12, probes=2),
    "streamed_moments": FIGURES_OF_A_MODEL["streamed_moments"],
    "sampled_moments": FIGURES_OF_A_MODEL["sampled_moments"],
    "variance_budget": lambda *model: ni.variance_budget(*model, matrices=True),
    "check_assumptions": check_assumptions,
    "fit": lambda *model: _trained(*model, ntk_points=4, stop_at=9.0),
    "fit, recorded": lambda *model: _trained(*model, recorder=Recorder(points=4)),
    "fit, diverging": lambda *model: _trained(*model, optimizer=optax.sgd(1e9)),
    "fit, cross entropy": lambda *model: ni.fit(*model, model[2] ** 2, steps=3, loss="bce", microbatch=5),
    "fit, own loss": lambda *model: _trained(*model, loss=lambda f, y: jnp.abs(f - y).mean(1)),
    "fit, by loss": lambda *model: _trained(*model, batch_size=4, sampling="loss", key=KEY),
    "fit, line search": lambda *model: _trained(*model, optimizer=ni.optimizer("lbfgs")),
    "fit_seeds": lambda apply, params, x: ni.fit_seeds(
        apply, jax.tree.map(lambda leaf: leaf[None], params), x, x, steps=2
    ),
    "infinite_kernel": lambda *model: ni.infinite_kernel(ni.variant("pe", features=8, depth=1))(model[2]),
    "two_layer_moments": lambda *model: ni.two_layer_moments(model[2], width=32, sparsity=ni.TopK(k=4)),
    "grid_moments": lambda *model: ni.grid_moments(_gaussian, [np.linspace(-1, 1, 4)] * 2),
    "compare": lambda *model: ni.compare(IMAGE, ["relu"], features=4, depth=1, steps=2, seeds=1),
    "tune": lambda *model: ni.tune(IMAGE, "siren", features=4, depth=1, steps=4, points=2, refine=1, repeats=1),
    "fit_task": lambda *model: ni.fit_task(IMAGE, "relu", features=4, depth=1, steps=2),
}
IMAGE = ni.image_task("camera", size=4)


@pytest.mark.parametrize("name", quick(WITHOUT_NAN, "variance_budget", "fit", "fit, own loss"))
def test_nothing_is_marked_by_nan_or_infinity_where_jax_sees_it(name, key):
    model = small("siren", key, X)
    with jax.debug_nans(True), jax.debug_infs(True):
        WITHOUT_NAN[name](*model, X)


@pytest.mark.slow
def test_a_resumed_run_has_no_nan_either(key, tmp_path):
    apply, params = small("siren", key, X)

    def stopped(done, *_):
        if done == 2:
            raise KeyboardInterrupt

    with jax.debug_nans(True), jax.debug_infs(True):
        with pytest.raises(KeyboardInterrupt):
            ni.fit(apply, params, X, X, steps=4, checkpoint=tmp_path, checkpoint_every=1, progress=stopped)
        assert ni.fit(apply, params, X, X, steps=4, checkpoint=tmp_path, checkpoint_every=1).steps == 4
