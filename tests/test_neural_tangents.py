"""The bridge to neural-tangents: it agrees with our kernel, and leaves JAX as it found it."""

import importlib.util
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from ntk_inr import _neural_tangents
from tests.conftest import quick, small

installed = pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is None or importlib.util.find_spec("frozendict") is None,
    reason="neural-tangents is not installed",
)


def python(code):
    """Run code in a fresh interpreter, as the import is made once in each; warnings are errors there."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@installed
@pytest.mark.parametrize("two", quick([False, True], True))
@pytest.mark.parametrize("outputs", ["trace", "diagonal", "full"])
def test_agrees_with_our_contraction(key, x, outputs, two):
    apply, params = small("siren", key, x, out=3)
    x2 = jax.random.uniform(jax.random.key(5), (7, 2), minval=-1.0) if two else None
    theirs = ni.ntk(apply, params, x, x2, outputs=outputs, method="neural-tangents")
    ours = ni.ntk(apply, params, x, x2, outputs=outputs, method="jacobian")
    assert theirs.dtype == jnp.float32
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5 * float(jnp.abs(ours).max()))


@installed
def test_takes_a_plain_function_and_does_not_trace_it_again(x):
    traces = []

    def apply(w, x):
        traces.append(1)
        return jnp.tanh(x @ w)

    w = jnp.array([[1.0, -2.0], [0.5, 1.0]])
    first = _neural_tangents.ntk(apply, w, x, None, "trace")
    np.testing.assert_allclose(first, ni.ntk(apply, w, x, method="jacobian"), rtol=1e-5, atol=1e-6)
    count = len(traces)
    _neural_tangents.ntk(apply, 2 * w, x, None, "trace")
    assert len(traces) == count


@installed
def test_analytic_kernel_runs(x):
    stax = _neural_tangents.load().stax
    _, _, kernel = stax.serial(stax.Dense(8, b_std=0.1), stax.Relu(), stax.Dense(1))
    theta = kernel(x, None, "ntk")
    assert theta.shape == (23, 23)
    np.testing.assert_allclose(theta, theta.T, rtol=1e-6)
    assert float(jnp.linalg.eigvalsh(theta).min()) > -1e-5


@installed
def test_second_load_is_the_first():
    assert _neural_tangents.load() is _neural_tangents.load()


# The first imports are those of neural-tangents: importing a submodule of JAX adds it to its parent, rightly
# and for good.
WATCH = """
    import sys
    import jax, jax.experimental.ode, jax.example_libraries.stax, jax.scipy.special, jax.ops
    from ntk_inr import _neural_tangents

    def state():
        modules = {name: m for name, m in sys.modules.items() if name.split(".")[0] in ("jax", "jaxlib")}
        return modules, {name: dict(vars(m)) for name, m in modules.items()}, dict(jax.config.values)

    def compare(before, after):
        assert before[0].keys() == after[0].keys(), before[0].keys() ^ after[0].keys()
        assert before[2] == after[2], "jax.config"
        for name, old in before[1].items():
            new = after[1][name]
            assert old.keys() == new.keys(), (name, old.keys() ^ new.keys())
            if "_src" not in name:
                assert all(old[k] is new[k] for k in old), name

    before = state()
"""


@installed
def test_jax_is_afterwards_as_it_was():
    out = python(
        WATCH
        + """
    nt = _neural_tangents.load()
    compare(before, state())
    assert "neural_tangents.experimental" not in sys.modules and not hasattr(nt, "experimental")
    print(nt.__version__)
    """
    )
    assert out.strip().startswith("0.6")


@installed
@pytest.mark.parametrize(
    "missing",
    quick(["neural_tangents", "frozendict", "neural_tangents._src.batching"], "neural_tangents._src.batching"),
)
def test_jax_is_as_it_was_after_a_failed_import(missing):
    out = python(
        WATCH
        + f"""
    sys.modules[{missing!r}] = None  # so that importing it fails, half way through the import of the package
    before = state()
    try:
        _neural_tangents.load()
    except ModuleNotFoundError as error:
        print(error.name, error)
    compare(before, state())
    assert "neural_tangents.experimental" not in sys.modules
    """
    )
    assert out.startswith(missing)
    # An installation that lacks a file of its own is another matter: that error stands as it is.
    assert ("pip install" in out) == (missing in ("neural_tangents", "frozendict"))


def test_says_what_to_install(monkeypatch, x):
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    _neural_tangents.load.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ntk-inr\[neural-tangents\]'.*--no-deps") as error:
        _neural_tangents.ntk(lambda w, x: x @ w, jnp.ones((2, 1)), x, None, "trace")
    assert "frozendict" in str(error.value)
    assert error.value.name == "neural_tangents"
