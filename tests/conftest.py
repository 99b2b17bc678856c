import contextlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x(key):
    """Scattered coordinates, so that no symmetry hides an error."""
    return jax.random.uniform(key, (23, 2), minval=-1.0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@contextlib.contextmanager
def types_unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def unchecked():
    """Bad input must meet our own checks, as it does where no test hook checks types before."""
    with types_unchecked():
        yield


def quick(names, *first):
    """Return the cases of a test that runs through ``names``: all but the ``first`` ones are marked slow."""
    assert set(first) <= set(names)
    return [pytest.param(name, marks=() if name in first else pytest.mark.slow) for name in names]


def figures_of(moments, *names):
    """Return the figures of moments as a list, all that they share where none are named."""
    return [getattr(moments, name) for name in names or ("mean", "variance", "cv", "effective_rank")]


def in_float64(tree):
    """Return a model with every leaf in float64, to be used under x64."""
    # By NumPy, since JAX would compile a program for each shape.
    wide = {True: np.complex128, False: np.float64}
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, wide[np.iscomplexobj(leaf)])), tree)


def in_float32(tree):
    """Return a model with every leaf in float32, or in complex numbers of two."""
    narrow = {True: np.complex64, False: np.float32}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, narrow[np.iscomplexobj(leaf)]), tree)


def small(name, key, x, out=1, **settings):
    # Here, so that pytest-xdist's workers, which wait until this file is read, begin some seconds earlier.
    import ntk_inr as ni

    return ni.init(ni.variant(name, features=24, depth=2, out=out, **settings), key, x)
