"""The variance budget against the kernel's moments, against Jacobians of each leaf, and against formulas by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import ntk_inr as ni
from ntk_inr.kernels.model import check_model
from ntk_inr.variance import budget_report, sums
from ntk_inr.variance.budget import variance_budget
from tests.conftest import figures_of, in_float64, quick, small
from tests.kernel_models import MODELS

MOMENTS = ("mean", "variance", "cv")
EPS = float(jnp.finfo(jnp.float32).eps)


@functools.cache
def network(name, out=1):
    return small(name, jax.random.key(0), jnp.zeros((1, 2)), out=out)


def budget_of(name, x):
    """With tiles of one size, so that all numbers of coordinates share a compilation."""
    return variance_budget(*network(name), x, block=8)


def trained(key, x):
    """A network some steps into training, whose layers have lost their initial symmetry."""
    apply, params = network("siren", out=3)
    target = jnp.sin(3 * x @ jnp.ones((2, 3)))

    @jax.jit
    def step(params):
        gradient = jax.grad(lambda p: ((apply(p, x) - target) ** 2).mean())(params)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)

    for _ in range(5):
        params = step(params)
    return apply, params


def deep(key, x):
    return ni.init(ni.variant("relu", features=24, depth=5), key, x)


NETWORKS = {"trained siren, 3 outputs": trained, "deep": deep} | {
    name: MODELS[name]
    for name in (
        "pe+sphere+hadamard", "pe+hadamard trained, 2 outputs", "layer norm", "tied", "scan", "odd entries",
        "weight normalised", "heads",
    )
}  # fmt: skip

IN_FLOAT32 = ("trained siren, 3 outputs", "pe+sphere+hadamard", "tied", "weight normalised")


def leaf_kernels(apply, params, x):
    """Return {path: kernel averaged over outputs} from whole Jacobians."""
    jacobian = jax.jit(jax.vmap(lambda x_i: jax.jacrev(lambda p: apply(p, x_i[None])[0])(params)))(x)
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(jacobian):
        flat = np.asarray(leaf).reshape(*leaf.shape[:2], -1)
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = np.einsum("icp,jcp->ij", flat, flat)
        found[jax.tree_util.keystr(path, simple=True, separator="/")] /= flat.shape[1]
    return found


def entry(first, second):
    """Return one entry of the budget, from its definition (8.3)."""
    n = len(first)
    off = (first * second * (1 - np.eye(n))).sum() / n
    return off + np.cov(np.diagonal(first), np.diagonal(second), ddof=0)[0, 1]


@pytest.mark.parametrize("name", quick(NETWORKS, IN_FLOAT32[1]))
def test_equals_moments_and_jacobians(name, key, x, x64):
    x = x.astype(jnp.float32)
    model = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), NETWORKS[name](key, x))
    if name in IN_FLOAT32:
        single, moments = variance_budget(*model, x), ni.moments(ni.ntk(*model, x))
        # Sums of n**2 squares, each rounded apart; the forward pass is the same one.
        np.testing.assert_allclose(figures_of(single, *MOMENTS), figures_of(moments, *MOMENTS), rtol=1e-5)

    model, x = in_float64(model), x.astype(jnp.float64)
    budget, kernels = variance_budget(*model, x, block=7), leaf_kernels(*model, x)
    moments = ni.moments(sum(kernels.values()))
    np.testing.assert_allclose(figures_of(budget, *MOMENTS), figures_of(moments, *MOMENTS), rtol=1e-11)
    np.testing.assert_allclose([budget.shares.sum(), budget.matrix.sum() / budget.variance], 1, rtol=1e-12)
    assert np.linalg.eigvalsh(budget.matrix).min() > -1e-12 * budget.variance
    assert np.linalg.eigvalsh(budget.off_diagonal).min() > -1e-12 * budget.variance
    np.testing.assert_allclose(np.diagonal(budget.correlations), 1, rtol=1e-12)
    assert not budget.matrix_stderr.any()

    # A term is a leaf, or a part of it, with the biases it carries.
    terms = {}
    for row, title in enumerate(budget.names):
        leaf, _, biases = title.partition(" (+")
        leaf = leaf.partition("[part")[0]
        parent = leaf.rpartition("/")[0] + "/" if "/" in leaf else ""
        leaves = [leaf, *(parent + bias for bias in biases.rstrip(")").split(", ") if bias)]
        terms.setdefault(tuple(leaves), []).append(row)
    whole = [sum(kernels[leaf] for leaf in leaves) for leaves in terms]
    expected = np.array([[entry(a, b) for b in whole] for a in whole])
    found = np.array([[budget.matrix[np.ix_(a, b)].sum() for b in terms.values()] for a in terms.values()])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11 * budget.variance)
    np.testing.assert_allclose(
        [budget.means[rows].sum() for rows in terms.values()], [np.trace(k) / len(x) for k in whole]
    )


def by_hand(params, x):
    """Return F and B (3, n, n) of a ReLU network with two hidden layers and two outputs, written down."""
    first, second, last = (params[name] for name in ("hidden_0", "hidden_1", "readout"))
    z1 = x @ first["kernel"] + first["bias"]
    z2 = np.maximum(z1, 0) @ second["kernel"] + second["bias"]
    d3 = np.broadcast_to(np.eye(2), (len(x), 2, 2))
    d2 = (z2 > 0)[:, None] * np.asarray(last["kernel"]).T[None]
    d1 = (z1 > 0)[:, None] * (d2 @ np.asarray(second["kernel"]).T)
    F = np.stack([h @ h.T + 1 for h in (x, np.maximum(z1, 0), np.maximum(z2, 0))])
    return F, np.stack([np.einsum("icm,jcm->ij", d, d) / 2 for d in (d1, d2, d3)])


def test_factors_equal_formulas(key, x, x64):
    apply, params = in_float64(network("relu", out=2))
    x = np.asarray(x, np.float64)
    budget = variance_budget(apply, params, x, matrices=True, block=9)
    F, B = by_hand(jax.tree.map(np.asarray, params), x)
    n, pairs = len(x), 1 - np.eye(len(x))

    def similarity(A):
        d = np.einsum("lii->li", A)
        return A**2 / (d[:, :, None] * d[:, None])

    def mean_over_pairs(A):
        return (A * pairs).sum((1, 2)) / (n * (n - 1))

    assert budget.factored.all()
    expected = (F, B, similarity(F), similarity(B))
    for matrix, by in zip(jax.tree.leaves(budget.matrices), expected, strict=True):
        np.testing.assert_allclose(matrix, by, rtol=1e-10, atol=1e-13)
    diagonals = [np.einsum("lii->li", A) for A in (F, B, F * B)]
    np.testing.assert_allclose(budget.forward_scale, diagonals[0].mean(1))
    np.testing.assert_allclose(budget.backward_scale, diagonals[1].mean(1))
    np.testing.assert_allclose(budget.means, diagonals[2].mean(1))
    for found, A in ((budget.forward_tau, F), (budget.backward_tau, B), (budget.tau, F * B)):
        np.testing.assert_allclose(found, mean_over_pairs(similarity(A)))
    energy = diagonals[2][:, :, None] * diagonals[2][:, None]
    np.testing.assert_allclose(budget.overlap, mean_over_pairs((F * B) ** 2) / mean_over_pairs(energy))


def test_dead_examples_and_equal_kernels(x64):
    """A unit that is off has a zero row in B, which is similar to nothing; equal gradients give no variance."""
    x = jnp.array([[1.0, 0.0], [2.0, 1.0], [-1.0, 0.0], [-3.0, -1.0]])
    budget = variance_budget(lambda p, x: jax.nn.relu(x @ p["w"]), {"w": jnp.ones((2, 1))}, x, matrices=True)
    assert budget.backward_tau[0] == 2 / 12
    np.testing.assert_array_equal(budget.matrices.tau_B[0, 2:], 0)
    flat = variance_budget(lambda p, x: x @ p, jnp.ones((2, 1)), jnp.eye(2))
    assert (flat.variance, flat.cv, flat.mean) == (0, 0, 1)
    assert np.isnan(flat.shares).all()
    zero = variance_budget(lambda p, x: jnp.sin(x), {"w": jnp.ones(3)}, x)
    assert (zero.variance, zero.mean) == (0, 0)
    for budget_of_nothing in (flat, zero):
        assert "nan" not in str(budget_of_nothing).partition("term")[2]
    with pytest.raises(ValueError, match="must be above zero"):
        flat.compare(budget)


def test_any_block(key, x, x64):
    model, x = in_float64(network("pe", out=2)), x.astype(jnp.float64)
    whole = variance_budget(*model, x, matrices=True)
    calls = []
    budget = variance_budget(*model, x, matrices=True, block=5, progress=lambda *at: calls.append(at))
    assert calls == [(done, 15) for done in range(1, 16)]
    for name in ("off_diagonal", "diagonal", "means", "forward_tau", "backward_tau", "overlap"):
        np.testing.assert_allclose(getattr(budget, name), getattr(whole, name), rtol=1e-12, err_msg=name)
    for found, expected in zip(*map(jax.tree.leaves, (budget.matrices, whole.matrices)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


def test_memory(x):
    apply, params = network("relu")
    trace, terms = sums.plan(check_model(apply, params, x))
    for limit in (10**4, 10**6):
        cut = sums.cut_for(trace, terms, 16384, limit=limit, block=None)
        assert cut.bytes <= limit
        more = terms._replace(names=terms.names * 10)
        assert sums.cut_for(trace, more, 16384, limit=limit, block=None).block < cut.block
    with pytest.raises(ValueError, match="Raise memory_limit"):
        variance_budget(apply, params, x, memory_limit=1000)


def test_another_size_does_not_recompile(key, x):
    apply, params = network("relu")

    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return apply(params, x)

    variance_budget(counted, params, x[:11], block=4)
    before = len(traces)
    for n in (13, 14, 19, 23):
        variance_budget(counted, params, x[:n], block=4)
    # For the shape of its output only.
    assert traces[before:] == [(n, 2) for n in (13, 14, 19, 23)]


@pytest.fixture
def points(key):
    return jax.random.uniform(key, (300, 2), minval=-1.0)


def test_sampled_is_unbiased_and_its_errors_are_honest(key, points):
    model = network("relu")
    exact = variance_budget(*model, points, block=8)
    draws = [variance_budget(*model, points, key=jax.random.key(i), size=16, submatrices=6, block=8) for i in range(25)]
    for name in ("mean", "variance", "matrix", "shares", "cv"):
        errors = np.array([getattr(draw, name) for draw in draws]) - getattr(exact, name)
        spread = np.sqrt((errors**2).mean(0))
        # Shares and cv are ratios, whose bias is of the second order.
        assert (np.abs(errors.mean(0)) < 5 * errors.std(0) / np.sqrt(len(draws)) + 0.1 * spread).all(), name
        stderrs = np.sqrt((np.array([getattr(draw, f"{name}_stderr") for draw in draws]) ** 2).mean(0))
        assert (stderrs > 0.6 * spread).all(), name
        assert (stderrs < 1.8 * spread).all(), name
    for name in ("forward_scale", "backward_scale", "forward_tau", "backward_tau", "overlap"):
        errors = np.array([getattr(draw, name) for draw in draws]) / getattr(exact, name) - 1
        assert (np.abs(errors.mean(0)) < 5 * errors.std(0) / np.sqrt(len(draws)) + 4 * EPS).all(), name
    # The submatrix's own variance is too small by (b - 1) / (n - 1).
    assert abs(draws[0].variance * 15 / 299 - exact.variance) > 5 * draws[0].variance_stderr
    assert "±" in str(draws[0])


def test_sizes_of_submatrices(key, points):
    model = network("relu")
    exact = variance_budget(*model, points, block=8)
    for options in ({"key": key}, {"key": key, "size": 300}):
        whole = variance_budget(*model, points, block=8, **options)
        assert (whole.submatrices, whole.size, whole.variance, whole.variance_stderr) == (1, 300, exact.variance, 0)
    for options, expected in (({"size": 50}, (6, 50)), ({"submatrices": 3}, (3, 100)), ({"size": 10}, (8, 10))):
        drawn = variance_budget(*model, points, block=8, key=key, **options)
        assert (drawn.submatrices, drawn.size) == expected
    assert (
        variance_budget(*model, points, block=8, key=key, submatrices=3).mean_stderr == 0
    )  # all coordinates were drawn


def check_sums(change, first, second):
    ratio = second.variance / first.variance
    for contributions, expected in (
        (change.variance, np.log(ratio)),
        (change.mean, np.log(second.mean / first.mean)),
        (change.cv, 2 * np.log(second.cv / first.cv)),
    ):
        assert np.isfinite(contributions).all()
        np.testing.assert_allclose(contributions.sum(), expected, rtol=1e-9, atol=1e-9)
    for of in ("cv", "variance", "mean"):
        if getattr(first, of) != getattr(second, of):
            np.testing.assert_allclose(change.percent(of).sum(), 100, rtol=1e-9)
        assert change.names[0] in change.table(of)


def column(change, name, of="variance"):
    return getattr(change, of)[:, change.factors.index(name)]


def test_change_adds_up(key, x):
    first, second = budget_of("relu", x), budget_of("siren", x)
    change = first.compare(second)
    check_sums(change, first, second)
    assert not column(change, "on or off").any()
    assert not column(change, "coordinates").any()
    # There and back again, the same contributions with the other sign.
    np.testing.assert_allclose(second.compare(first).variance, -change.variance, rtol=1e-9, atol=1e-12)
    fewer = budget_of("relu", x[:15])
    check_sums(fewer.compare(second), fewer, second)
    assert (column(fewer.compare(first), "coordinates") > 0).all()


def test_change_of_one_factor_is_found(key, x):
    apply, params = network("relu")
    before = budget_of("relu", x)
    louder = variance_budget(Partial(lambda p, x: 3 * apply(p, x)), params, x)
    change = before.compare(louder)
    check = 4 * EPS * 23
    np.testing.assert_allclose(column(change, "backward scale").sum(), 4 * np.log(3), rtol=check)
    np.testing.assert_allclose(change.variance.sum(), 4 * np.log(3), rtol=check)
    np.testing.assert_allclose(change.cv.sum(0), 0, atol=check)
    # Also where other things change.
    pe = budget_of("pe", x)
    quiet, loud = (column(pe.compare(budget), "backward scale", "cv").sum() for budget in (before, louder))
    np.testing.assert_allclose(quiet, loud, atol=check)
    # What the layers before the readout owe to it is in their backward scale, not in its own.
    wider = {**params, "readout": jax.tree.map(lambda leaf: 2 * leaf, params["readout"])}
    change = before.compare(variance_budget(apply, wider, x, block=8))
    np.testing.assert_allclose(column(change, "backward scale")[-1], 0, atol=check)
    assert (column(change, "backward scale")[:-1] > 0.1).any()
    nothing = before.compare(before)
    assert not nothing.variance.any()
    assert np.isnan(nothing.percent()).all()
    assert "nan" not in nothing.table()


def test_change_between_terms_that_differ(key, x):
    shallow, deep = budget_of("relu", x), variance_budget(*ni.init(ni.variant("relu", features=24, depth=3), key, x), x)
    change = shallow.compare(deep)
    check_sums(change, shallow, deep)
    assert change.names == (*shallow.names, "hidden_2/kernel (+bias)")
    switched = column(change, "on or off")
    assert (switched[:-1] == 0).all()
    assert switched[-1] > 0
    check_sums(deep.compare(shallow), deep, shallow)

    other, tied = (variance_budget(*MODELS[name](key, x), x) for name in ("product of two parameters", "tied"))
    with pytest.raises(ValueError, match=r"terms can't be matched: one budget has 2 .*the other 3 "):
        other.compare(tied)
    # Other names, as many terms: by position; the shared weight is not one product.
    change = shallow.compare(tied)
    check_sums(change, shallow, tied)
    assert column(change, "similarity")[1] != 0
    assert column(change, "forward similarity")[1] == 0


def test_change_of_entries_without_a_logarithm(key, x):
    """Negative, vanishing and new entries are changes of their own."""
    first, second = budget_of("relu", x), budget_of("pe", x)
    off = second.off_diagonal.copy()
    off[0, 1] = off[1, 0] = -off[0, 1]
    negative = dataclasses.replace(second, off_diagonal=off)
    check_sums(first.compare(negative), first, negative)
    check_sums(negative.compare(second), negative, second)
    off = second.off_diagonal * np.array([1, 0, 1])[:, None] * np.array([1, 0, 1])
    zeros = {name: getattr(second, name) * [1, 0, 1] for name in ("means", "overlap", "forward_tau")}
    without = dataclasses.replace(second, off_diagonal=off, **zeros)
    change = first.compare(without)
    check_sums(change, first, without)
    assert column(change, "on or off")[1] < 0
    assert column(change, "on or off", "mean")[1] < 0
    assert not change.variance[1, : change.factors.index("other layers")].any()


def test_table_and_figure(key, x, tmp_path):
    budget = budget_of("pe", x)
    lines = budget.table().splitlines()
    assert lines[0].startswith(f"variance {budget.variance:.4g}; cv ")
    assert [line.split("  ")[0] for line in lines[4:]] == list(budget.names)
    shorter = budget_report.table(budget, most=2).splitlines()
    kept = [budget.names[row].partition("/")[0] for row in sorted(np.argsort(-budget.shares)[:2])]
    assert [line.split("  ")[0] for line in shorter[4:]] == [*kept, "… 1 more; .table() has all"]
    figure = budget.plot(tmp_path / "budget.png")
    assert (tmp_path / "budget.png").stat().st_size > 10_000
    most = int(np.argmax(budget.shares))
    title = figure.get_suptitle()
    assert title.startswith(f"{budget.names[most].partition('/')[0]} makes {100 * budget.shares[most]:.0f} %")
    left, right = figure.axes[:2]
    for labels in (left.get_yticklabels(), right.get_xticklabels()):
        assert [label.get_text() for label in labels] == ["hidden_0", "hidden_1", "readout"]
    assert left.get_xlabel() == "part of the variance [%]"
    mixed = variance_budget(*MODELS["layer norm"](key, x), x)
    assert "not one product" in str(mixed)
    assert {"LayerNorm_0/scale", "Dense_0"} <= {label.get_text() for label in mixed.plot().axes[0].get_yticklabels()}
    flat = variance_budget(lambda p, x: x @ p, jnp.ones((2, 1)), jnp.eye(2))
    assert flat.plot().get_suptitle() == "The kernel's eigenvalues have no variance"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 10}, "size=10 is of submatrices that are drawn; pass key="),
        ({"submatrices": 4}, "submatrices=4 is of submatrices"),
        ({"size": 1, "key": True}, "size is 1; expected at least 2"),
        ({"size": 24, "key": True}, "2 disjoint submatrices of 24 rows need 48 coordinates, x has 23"),
        ({"size": 8, "submatrices": 3, "key": True}, "need 24 coordinates, x has 23"),
        ({"matrices": True, "key": True}, "leave out key"),
        ({"block": 0}, "block is 0"),
        ({"precision": "low"}, "unknown precision 'low'"),
    ],
)
def test_bad_options(unchecked, change, message, key, x):
    change = {**change, "key": key} if "key" in change else change
    with pytest.raises(ValueError, match=message):
        variance_budget(*network("relu"), x, **change)


def test_bad_input(unchecked, key, x):
    apply, params = network("relu")
    with pytest.raises(ValueError, match="x has 1 coordinate, whose kernel has one eigenvalue"):
        variance_budget(apply, params, x[:1])
    with pytest.raises(TypeError, match=r"block is 2\.5; expected a whole number"):
        variance_budget(apply, params, x, block=2.5)
    with pytest.raises(ValueError, match="can't be used inside jit"):
        jax.jit(lambda p, x: variance_budget(apply, p, x).variance)(params, x)
    with pytest.raises(ValueError, match=r"x1 has shape \(23,\)"):
        variance_budget(apply, params, x[:, 0])
    budget = variance_budget(apply, params, x)
    with pytest.raises(ValueError, match="unknown of 'sd'"):
        budget.compare(budget).table("sd")
