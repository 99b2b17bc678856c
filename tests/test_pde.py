import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ntk_inr as ni
from ntk_inr.tasks.derivatives import value_and_gradient
from ntk_inr.tasks.image_gradients import image_gradient_task
from ntk_inr.tasks.laplacian import forward_laplacian
from ntk_inr.tasks.pde import pde_task


def exact(task, scale=1.0):
    """Return the solution as a network."""
    a, b = task.frequencies

    def apply(params, x):
        return params * scale * jnp.sin(a * jnp.pi * x[:, :1]) * jnp.sin(b * jnp.pi * x[:, 1:])

    return apply


def gated(p, x):
    """Products and quotients of what depends on x."""
    u, v = jnp.tanh(x @ p["a"]), jnp.sin(x @ p["a"])
    gate = jnp.exp(-((u @ p["w"]) ** 2))
    q = (gate * u + (1 - gate) * v) @ p["out"]
    return q / (2 + jnp.cos(q[:, ::-1])) + 3 / (1 + q**2) - x[:, :1] / 2


def moved(p, x):
    """What moves and chooses entries, beside constants, and a loop over layers."""
    h = jnp.pad(jnp.concatenate([x @ p["a"], jnp.ones_like(x)], 1), ((0, 0), (1, 0)), constant_values=0.5)
    h = jnp.where(h > 0, h**3, jnp.cumsum(jnp.sort(h, 1), 1))[:, :6] + p["a"][jnp.floor(x[:, 0]).astype(int)]
    h, each = lax.scan(lambda h, w: (jnp.sin(h @ w), h.max(1)), h, jnp.stack([p["w"], p["w"].T]))
    return h @ p["out"] + each.mean(0)[:, None]


@jax.custom_jvp
def own_rule(u):
    return jnp.sin(u)


own_rule.defjvp(lambda u, du: (own_rule(*u), 2 * jnp.cos(u[0]) * du[0]))


def ruled(p, x):
    """Functions that are compiled, rematerialised, or have rules of their own, and complex numbers."""
    h = jax.checkpoint(jax.jit(lambda h: own_rule(h @ p["w"]) + jax.nn.softplus(h)))(x @ p["a"])
    return (jnp.exp((0.5 + 2j) * h) @ p["out"]).real + jnp.abs(jnp.exp(1j * h) + 2) @ p["out"]


def constant(p, x):
    return jnp.ones((len(x), 2)) * p["out"][:1]


@pytest.mark.parametrize("function", [gated, moved, ruled, constant])
def test_derivatives_are_those_of_the_hessian(function, x, x64):
    shapes = {"a": (2, 6), "w": (6, 6), "out": (6, 2)}
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    x = jnp.asarray(x[:7], jnp.float64)

    def exact(params, x):
        def point(z):
            return function(params, z[None])[0]

        hessian = jax.vmap(jax.hessian(point))(x)
        return function(params, x), jax.vmap(jax.jacfwd(point))(x), jnp.einsum("ncii->nc", hessian)

    def weighed(derivatives):
        return lambda params: sum(jnp.sin(part).sum() for part in derivatives(params, x))

    carried = forward_laplacian(function)
    chex.assert_trees_all_close(jax.jit(carried)(params, x), jax.jit(exact)(params, x), rtol=1e-9, atol=1e-9)
    slopes, expected = (jax.jit(jax.grad(weighed(each)))(params) for each in (carried, exact))
    chex.assert_trees_all_close(slopes, expected, rtol=1e-8, atol=1e-8)
    alone = jax.vmap(lambda z: carried(params, z[None]))(x)
    chex.assert_trees_all_close(jax.tree.map(lambda part: part[:, 0], alone), carried(params, x), rtol=1e-9, atol=1e-9)


def test_value_and_gradient_of_a_network(key, x, x64):
    apply, params = ni.init(ni.CoordinateMLP(features=8, depth=1, activation=jnp.tanh), key, x)
    params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, x))
    both = jax.jit(value_and_gradient(apply))(params, x)
    gradient = jax.jit(jax.vmap(jax.grad(lambda z: apply(params, z[None])[0, 0])))(x)
    np.testing.assert_allclose(both, np.concatenate([apply(params, x), gradient], axis=1), rtol=1e-9)


@pytest.mark.parametrize("frequencies", [(1.0, 4.0), (0.5, 1.5)])  # the second is not zero on the boundary
@pytest.mark.parametrize("equation", ["poisson", "helmholtz"])
def test_the_solution_solves_it(equation, frequencies, x64):
    task = pde_task(equation, points=6, frequencies=frequencies, wavenumber=2.5)
    observed = task.observe(exact(task))(1.0, jnp.asarray(task.x, jnp.float64))
    np.testing.assert_allclose(observed, task.y, atol=1e-6)
    # Another field does not, inside or on the sides.
    wrong = task.observe(exact(task, 1.1))(1.0, jnp.asarray(task.x, jnp.float64)) - task.y
    np.testing.assert_allclose(wrong, 0.1 * task.y, atol=1e-6)
    assert np.abs(task.y).max() < task.boundary_weight + 1e-6


def test_boundary_rows_lie_on_all_four_sides():
    task = pde_task(points=5)
    edge = np.abs(task.x).max(axis=1) == 1
    assert edge.sum() == 20
    assert [int((task.x[edge][:, axis] == side).sum()) for axis in (0, 1) for side in (-1, 1)] == [5, 5, 5, 5]


def test_scores_of_a_scaled_solution():
    task = pde_task("poisson", resolution=32)
    found = task.reconstruct(lambda x: exact(task)(0.9, jnp.asarray(x)))
    scores = task.scores(found)
    np.testing.assert_allclose(scores["relative_l2"], 0.1, rtol=1e-4)
    np.testing.assert_allclose(scores["psnr"], 10 * np.log10(4 / (0.01 * 0.25)), rtol=1e-3)


def test_the_kernel_of_an_equation(key):
    """Blocks of interior and boundary rows, as of the derivatives of a Jacobian."""
    task = pde_task(points=2)
    apply, params = ni.init(ni.CoordinateMLP(features=8, depth=1, out=1, activation=jnp.tanh), key, task.x)
    measured = task.observe(apply)
    jacobian = jax.jit(jax.jacobian(lambda p: measured(p, task.x)))(params)
    rows = np.concatenate([np.reshape(leaf, (12, -1)) for leaf in jax.tree.leaves(jacobian)], axis=1)
    expected = rows @ rows.T
    np.testing.assert_allclose(ni.ntk(measured, params, task.x), expected, rtol=1e-3, atol=1e-5 * expected.max())


@pytest.mark.parametrize("activation", ["tanh", "sine"])
def test_a_laplacian_is_four_streams(activation, key):
    """Value, two first derivatives and Laplacian: 16 pairs, each of two Gram products."""
    task = pde_task(points=2)
    apply, params = ni.init(ni.CoordinateMLP(features=64, depth=2, activation=activation), key, task.x)
    leaf = ni.explain(task.observe(apply), params, task.x).leaves[3]
    assert "sum of 4 products" in leaf.why
    assert "16 pairs" in leaf.why
    assert leaf.flops == 16 * (2 * 64 + 2 * 64 + 16)


def test_an_image_from_its_gradients():
    row, column = np.meshgrid(*[(2 * np.arange(24) + 1) / 24 - 1] * 2, indexing="ij")
    image = 0.5 + 0.2 * np.sin(2 * row) + 0.2 * column**2
    task = image_gradient_task(image, size=None)

    def network(params, x):
        return 7.0 + 0.2 * jnp.sin(2 * x[:, :1]) + 0.2 * x[:, 1:] ** 2  # off by a constant

    observed = np.asarray(task.observe(network)(None, task.x)).reshape(24, 24, 2)
    expected = task.y.reshape(24, 24, 2)
    np.testing.assert_allclose(observed[1:-1, 1:-1], expected[1:-1, 1:-1], atol=3e-4)
    scores = task.scores(task.reconstruct(lambda x: network(None, jnp.asarray(x))))
    assert scores["psnr"] > 100
    assert scores["relative_l2"] < 1e-5


@pytest.mark.parametrize("name", ["finer", "pe+topk+soft"])
def test_networks_that_hold_back_a_derivative_are_refused(name):
    task = pde_task(points=20)
    for call in (ni.fit_task, ni.compare, ni.tune):
        with pytest.raises(ValueError, match="about derivatives by the coordinates"):
            call(task, name, features=8, depth=1)
    followed = ni.CoordinateMLP(8, 1, activation=ni.networks.Finer(frozen_scale=False))
    assert ni.fit_task(task, followed, steps=2).run.steps == 2


def test_the_grid_that_scores_are_taken_on_counts():
    assert pde_task(resolution=16).digest != pde_task(resolution=32).digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"equation": "euler"}, "unknown equation 'euler'"),
        ({"frequencies": (1.0, 0.0)}, "a frequency is 0.0"),
        ({"wavenumber": float(np.pi * np.sqrt(17))}, "resonance"),
        ({"points": 1}, "points is 1"),
        ({"equation": "poisson-gradients", "image": np.full((9, 9), 0.5)}, "no gradients"),
    ],
)
def test_bad_settings(unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        pde_task(**options)


EVOLUTIONS = ("heat", "wave", "burgers", "allen-cahn")


def differences(function, x, t, h=2e-4):
    """Return u and its first and second differences by x and t, at points apart from any edge."""
    u = function(x, t)
    left, right, before, after = function(x - h, t), function(x + h, t), function(x, t - h), function(x, t + h)
    u_x, u_xx = (right - left) / (2 * h), (right - 2 * u + left) / h**2
    return u, u_x, u_xx, (after - before) / (2 * h), (after - 2 * u + before) / h**2


@pytest.mark.parametrize("name", EVOLUTIONS)
def test_solutions_in_time_satisfy_their_equations(name):
    task = ni.load_task("pde", name, points=4)
    rng = np.random.default_rng(0)
    # Burgers' shock, at 0, is thinner than differences resolve late.
    x, t = 0.2 + 0.6 * rng.random(20), 0.1 + 0.6 * rng.random(20)
    assert np.abs(task.law.residual(*differences(task.law.solution, x, t))).max() < 2e-3 * task.law.size
    np.testing.assert_allclose(task.law.solution(x, 0 * t), task.law.start(x), atol=1e-6)
    begins = task.x[:, 1] == -1
    np.testing.assert_allclose(task.y[begins, 0], 3 * task.solution(task.x[begins].astype(float))[:, 0], atol=1e-5)
    assert not task.y[~begins].any()


@pytest.mark.parametrize("name", EVOLUTIONS)
def test_what_is_measured_of_a_field_in_time(name, x64):
    task = ni.load_task("pde", name, points=3)
    w = jax.random.normal(jax.random.key(0), (2, 5))

    def u(w, x):
        return jnp.tanh(x @ w).sum(axis=1, keepdims=True)

    def alone(point):
        return u(w, point[None])[0, 0]

    expected = []
    for x, s in task.x.astype(float):
        at = jnp.array([x, s])
        (u_x, u_s), hessian = jax.grad(alone)(at), jax.hessian(alone)(at)
        row = np.zeros(task.law.columns)
        if s == -1:
            row[0] = 3 * alone(at)
            if name == "wave":
                row[1] = 3 * u_s / 10
        elif abs(x) == 1:
            row[0] = 3 * alone(at)
            if name == "allen-cahn":
                other = at * jnp.array([-1.0, 1.0])
                row[0] = 3 * (alone(at) - alone(other)) / 2
                row[1] = 3 * (u_x - jax.grad(alone)(other)[0]) / 20
        else:
            terms = alone(at), u_x, hessian[0, 0], 2 * u_s, 4 * hessian[1, 1]
            row[0] = task.law.residual(*terms) / task.law.size
        expected.append(row)
    np.testing.assert_allclose(task.observe(u)(w, jnp.asarray(task.x, jnp.float64)), expected, atol=1e-9)


def test_heat_is_followed_by_the_kernel():
    task = ni.load_task("pde", "heat", points=8, resolution=8)
    apply, params = ni.init(ni.variant("tanh", features=16, depth=2), jax.random.key(0), task.x[:1])
    result = ni.fit(task.observe(apply), params, task.x, task.y, optimizer=ni.gauss_newton(), steps=25)
    field = task.reconstruct(lambda x: apply(result.params, jnp.asarray(x)))
    assert task.scores(field)["relative_l2"] < 0.02
    assert task.figure(field) is not None
