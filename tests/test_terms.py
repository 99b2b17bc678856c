"""The kernel between the terms of a loss, against whole Jacobians, and weights by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni


def network(params, x):
    return jnp.tanh(x @ params["w"] + params["b"][None]) @ params["v"]


def equation(params, x):
    """The second derivative of the network along x's first number, (n,)."""

    def second(point):
        return jax.hessian(lambda point: network(params, point[None])[0, 0])(point)[0, 0]

    return jax.vmap(second)(x)


def boundary(params, x):
    """Two residuals a point, of coordinates in one dimension, not defined at 0."""
    return jnp.concatenate([network(params, jnp.sqrt(x * jnp.ones((1, 2)))), jnp.log(x)], axis=1)


@pytest.fixture
def terms():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        params = {"w": jax.random.normal(keys[0], (2, 5)), "b": jnp.ones(5), "v": jax.random.normal(keys[1], (5, 1))}
        inside, edge = jax.random.uniform(keys[2], (6, 2)) - 0.5, jax.random.uniform(keys[3], (3, 1)) + 0.1
        yield {"equation": (equation, inside), "boundary": (boundary, edge)}, params


def jacobian_of(function, params, x):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return jax.jacobian(lambda flat: function(unravel(flat), x).ravel())(flat)


def test_blocks_are_products_of_jacobians(terms):
    residuals, params = terms
    blocks = ni.ntk_blocks(residuals, params)
    jacobians = {name: jacobian_of(function, params, x) for name, (function, x) in residuals.items()}
    for a in residuals:
        for b in residuals:
            np.testing.assert_allclose(blocks.blocks[a, b], jacobians[a] @ jacobians[b].T, atol=1e-12)
    for name, jacobian in jacobians.items():
        np.testing.assert_allclose(blocks.traces[name], jnp.square(jacobian).sum(), rtol=1e-12)
        np.testing.assert_allclose(blocks.spectra[name], jnp.linalg.eigvalsh(jacobian @ jacobian.T)[::-1], atol=1e-12)
    weights = {"equation": 2.0, "boundary": 0.5}
    scaled = jnp.concatenate([
        jnp.sqrt(weights[name] / len(jacobian)) * jacobian for name, jacobian in jacobians.items()
    ])  # fmt: skip
    np.testing.assert_allclose(blocks.whole(weights), scaled @ scaled.T, atol=1e-12)
    assert "6 residuals" in str(blocks)


def test_equal_pace_holds_with_unequal_numbers_of_points_and_trace_does_not(terms):
    residuals, params = terms
    blocks = ni.ntk_blocks(residuals, params)

    def paces(weights):
        return np.array([weights[name] * blocks.traces[name] / blocks.sizes[name] ** 2 for name in residuals])

    equal = ni.balance(residuals, params)
    np.testing.assert_allclose(paces(equal), paces(equal)[0], rtol=1e-10)
    assert np.mean(list(equal.values())) == pytest.approx(1)
    np.testing.assert_allclose(list(ni.balance(blocks).values()), list(equal.values()), rtol=1e-10)
    # The boundary has two outputs at three points, so that only points, not residuals, differ from the equation's six.
    fewer = {**residuals, "boundary": (boundary, residuals["boundary"][1][:2])}
    traced = ni.balance(fewer, params, rule="trace")
    of_fewer = ni.ntk_blocks(fewer, params)
    shares = [traced[name] * of_fewer.traces[name] for name in fewer]
    np.testing.assert_allclose(shares[0], shares[1], rtol=1e-10)
    assert of_fewer.sizes == {"equation": 6, "boundary": 4}


def test_gradient_norms_and_weights_that_follow(terms):
    residuals, params = terms
    weights = ni.balance(residuals, params, rule="gradient_norm")
    norms = []
    for name, (function, x) in residuals.items():
        gradient = jax.grad(lambda params, f=function, x=x: jnp.square(f(params, x)).mean() / 2)(params)
        norms.append(weights[name] * jnp.linalg.norm(jax.flatten_util.ravel_pytree(gradient)[0]))
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-10)
    ones = dict.fromkeys(residuals, 1.0)
    followed = ni.balance(residuals, params, before=ones, keep=0.75)
    fresh = ni.balance(residuals, params)
    for name in residuals:
        np.testing.assert_allclose(followed[name], 0.75 + 0.25 * fresh[name], rtol=1e-10)


def test_bad_terms_are_named(terms):
    residuals, params = terms
    inside = residuals["equation"][1]
    with pytest.raises(TypeError, match="expected a dictionary"):
        ni.ntk_blocks([equation], params)
    with pytest.raises(TypeError, match=r"residuals\['equation'\].*expected \(function, points\)"):
        ni.ntk_blocks({"equation": equation}, params)
    with pytest.raises(ValueError, match=r"the residual 'sum' gave \(\) at 6 points"):
        ni.ntk_blocks({"sum": (lambda params, x: network(params, x).sum(), inside)}, params)
    with pytest.raises(ValueError, match="the points of 'equation'"):
        ni.ntk_blocks({"equation": (equation, inside.at[0, 0].set(jnp.nan))}, params)
    with pytest.raises(ValueError, match="rule"):
        ni.balance(residuals, params, rule="best")
    with pytest.raises(ValueError, match="keep=1"):
        ni.balance(residuals, params, keep=1)
    with pytest.raises(ValueError, match="before has weights of"):
        ni.balance(residuals, params, before={"equation": 1.0})
    with pytest.raises(ValueError, match="gradient_norm"):
        ni.balance(ni.ntk_blocks(residuals, params), rule="gradient_norm")
