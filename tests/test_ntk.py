"""The kernel by every method against whole Jacobians in float64, for many kinds of function."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.tree_util import Partial

import ntk_inr as ni
from ntk_inr.kernels import assembly, memory, storage
from ntk_inr.kernels.memory import Cut
from ntk_inr.kernels.orthonormal import orthonormal_rows
from ntk_inr.kernels.request import Request
from tests.conftest import in_float32, in_float64, quick, small
from tests.kernel_models import (
    CANCELLING,
    MODELS,
    cast,
    distance,
    drawn,
    plain,
    reduced,
    reference,
    sensitivity,
    tolerance,
)

# The ways in which the kernel takes a parameter that differ most.
FIRST = (
    "pe+sphere+hadamard",
    "wire",
    "tied",
    "parted",
    "three weight norms",
    "LoRA",
    "gains and masks",
    "complex outputs",
)


@pytest.mark.parametrize("name", quick(MODELS, *FIRST))
def test_structured_equals_float64_jacobian(name, key, x, x64):
    if name == "equinox":
        pytest.importorskip("equinox")
    x = x.astype(jnp.float32)
    model = in_float32(MODELS[name](key, x))
    exact_model, exact_x = in_float64(model), in_float64(x)
    full = reference(*exact_model, exact_x)
    fast = ni.ntk(*exact_model, exact_x, outputs="full", block=5)
    assert fast.dtype == jnp.float64
    # What cancels is up to 1e4 times as large as what is left, as is its rounding.
    assert distance(fast, full) < tolerance(jnp.float64) * (1e4 if name in CANCELLING else 1)
    if name in CANCELLING:
        return
    # In float32 the forward pass itself rounds too, which depth and the frequency inside a sine magnify.
    rectangle = ni.ntk(*model, x, x[:7])
    assert rectangle.dtype == jnp.float32
    allowed = 3 * tolerance(jnp.float32) + sensitivity(*exact_model, exact_x, full)
    assert distance(rectangle, reduced(full, "trace")[:, :7]) < allowed


@pytest.mark.parametrize("name", quick(MODELS, "laplacian", "even_part", "centred"))
def test_float32_errs_little_more_than_the_jacobian(name, key, x, x64):
    """Where a weight's several uses cancel, and everywhere else; no entry of the diagonal is negative."""
    x = x.astype(jnp.float32)
    model = in_float32(MODELS[name](key, x))
    exact = reduced(reference(*in_float64(model), in_float64(x)), "trace")
    fast, slow = (np.asarray(ni.ntk(*model, x, method=method)) for method in ("structured", "jacobian"))
    error, allowed = (np.linalg.norm(kernel - exact) for kernel in (fast, slow))
    assert error <= max(10 * allowed, 10 * len(x) * np.finfo(np.float32).eps * np.abs(exact).max())
    assert fast.diagonal().min() >= 0
    if name != "own rules":
        diagonal = ni.NTKOperator(*model, x).diagonal()
        assert np.linalg.norm(diagonal - exact.diagonal()) <= 10 * allowed
    if name in CANCELLING:
        traced = jax.jit(lambda p: ni.ntk(model[0], p, x))(model[1])
        assert np.linalg.norm(traced - exact) <= 10 * allowed
        np.testing.assert_allclose(ni.streamed_moments(*model, x).variance, ni.moments(exact).variance, rtol=0.02)


@pytest.mark.parametrize(
    "name", quick(["pe", "siren", "tied", "tokens", "heads", "layer norm", "custom_jvp"], "pe", "tokens", "custom_jvp")
)
def test_inside_a_program_and_by_jacobians(name, key, x, x64, monkeypatch):
    """Some whole rows at a time, by tiles of the upper half, and by tiles of all of it."""
    model, x = in_float64(MODELS[name](key, x)), x.astype(jnp.float64)
    full = reference(*model, x)
    monkeypatch.setattr(memory, "side", lambda n: 5)
    for outputs, options in (("trace", {"block": 5}), ("full", {}), ("diagonal", {"x2": x[:7]})):
        traced = jax.jit(lambda a, p, x, o=outputs, k=options: ni.ntk(a, p, x, outputs=o, **k))(*model, x)
        expected = reduced(full, outputs)
        assert distance(traced, expected[:, : traced.shape[1]]) < tolerance(jnp.float64)
        if not options:
            np.testing.assert_array_equal(traced, traced.transpose(1, 0, 3, 2))
    for outputs in ("trace", "diagonal", "full"):
        slow = ni.ntk(*model, x, x[:7], outputs=outputs, method="jacobian")
        assert distance(slow, reduced(full, outputs)[:, :7]) < tolerance(jnp.float64)


def test_complex_parameters_everywhere(key, x, x64):
    apply, params = in_float64(MODELS["complex outputs"](key, x))
    x = x.astype(jnp.float64)
    exact = reduced(reference(apply, params, x), "trace")
    operator = ni.NTKOperator(apply, params, x)
    v = jnp.sin(jnp.arange(len(x)))
    assert distance(operator @ v, exact @ v) < tolerance(jnp.float64)
    assert distance(operator.diagonal(), exact.diagonal()) < tolerance(jnp.float64)
    variance = ni.moments(exact).variance
    for figures in (ni.streamed_moments(apply, params, x), ni.variance_budget(apply, params, x)):
        np.testing.assert_allclose(figures.variance, variance, rtol=1e-9)
    assert distance(ni.ntk(apply, params, x, method="jacobian"), exact) < tolerance(jnp.float64)
    gradient = jax.grad(lambda p: ni.ntk(apply, p, x).sum())(params)
    step = jax.tree.map(lambda leaf: 1e-6 * leaf.conj(), gradient)
    moved = [ni.ntk(apply, jax.tree.map(lambda a, b, s=s: a + s * b, params, step), x).sum() for s in (1, -1)]
    slope = sum(float((jnp.abs(leaf) ** 2).sum()) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose((moved[0] - moved[1]) / 2e-6, slope, rtol=1e-4)


def test_half_precision_on_the_way(key, x):
    """Both round in bfloat16, at different places."""
    model = plain(cast, {"w": (2, 48), "out": (48, 1)})(key, x)
    full = reference(*model, x)
    assert distance(ni.ntk(*model, x), reduced(full, "trace")) < 4 * float(jnp.finfo(jnp.bfloat16).eps)


def handled(name, key, x):
    return {leaf.name: leaf.handling for leaf in ni.explain(*MODELS[name](key, x), x).leaves}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tied", {"['w']": "product", "['b']": "bias"}),
        ("tied, own biases", {"['w']": "product", "['b']": "bias"}),
        ("tied, transposed", {"['w']": "jacobian"}),
        ("scan", {"['stack']['w']": "product", "['stack']['b']": "bias"}),
        ("recurrent", {"['w']": "product", "['b']": "bias"}),
        ("long loop", {"['rate']": "jacobian", "['in']": "jacobian"}),
        ("two deep", {"['stack']['w']": "product", "['in']": "product"}),
        ("many steps", {"['w']": "jacobian", "['in']": "jacobian"}),
        ("leapfrog", {"['in']": "product", "['b']": "bias", "['w']": "jacobian"}),
        ("laplacian", {"['w']": "product", "['b']": "bias", "['in']": "jacobian"}),
        ("even_part", {"['w']": "product", "['b']": "bias"}),
        ("references", {"['w']": "jacobian"}),
        ("own rules", {f"['{name}']": "jacobian" for name in ("clipped", "inverted", "decayed", "idle")}),
        ("indexed", {"['stack']": "product", "['b']": "bias"}),
        ("odd entries", {"['left']": "product", "['turned']": "product", "['scale']": "jacobian"}),
        ("moved", {"['w']": "product", "['gain']": "jacobian"}),
        (
            "modified MLP",
            {"['out']['v']": "product", "['layers'][1]['v']": "product", "['layers'][1]['g']": "jacobian"},
        ),
        ("three weight norms", {"['v0']": "jacobian", "['v1']": "product", "['v2']": "product"}),
        ("LoRA", {"['a'][0]": "product", "['b'][1]": "product"}),
        ("gains and masks", {"['w']": "product", "['gain']": "jacobian", "['mask']": "jacobian"}),
        ("complex WIRE", {"['layers'][1]['zw']": "product", "['layers'][1]['zb']": "jacobian"}),
        ("parted", {"['a']": "jacobian", "['b']": "jacobian"}),
        ("weight normalised", {"['v']": "jacobian", "['out']": "product"}),
        ("tokens", {"['w']": "jacobian", "['out']": "jacobian"}),
        ("heads", {"['w']": "product", "['b']": "bias", "['out']": "product"}),
        ("custom_vjp product", {"['w']": "product"}),
        ("custom_jvp product", {"['w']": "product"}),
        ("unused", {"['idle']": "unused", "['w']": "product"}),
    ],
)
def test_plan_takes_products_where_it_can(name, expected, key, x):
    found = handled(name, key, x)
    assert expected.items() <= found.items()


def test_equal_operands_are_one(key, x):
    """Of second derivatives by nested ones: the value, two first derivatives and the sum of the second ones."""
    leaves = ni.explain(*MODELS["second_derivatives"](key, x), x).leaves
    (why,) = (leaf.why for leaf in leaves if leaf.name == "['w']")
    assert "sum of 4 products" in why


def test_orthonormal_rows_span_what_others_do(x64):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 5, 9))
    rows[0, 2] = rows[0, 1] + 1e-9 * rng.normal(size=9)  # nearly one
    rows[1, 3] = 2 * rows[1, 1]
    rows[2] *= 1e-200
    found = np.asarray(orthonormal_rows(jnp.asarray(rows)))
    products = found @ found.swapaxes(1, 2)
    expected = np.stack([np.eye(5), np.diag([1.0, 1, 1, 0, 1]), np.eye(5)])
    np.testing.assert_allclose(products, expected, atol=1e-14)
    np.testing.assert_allclose(rows @ found.swapaxes(1, 2) @ found, rows, rtol=1e-12, atol=1e-14)


def test_sums_of_products_wait_for_no_threads(key, x):
    """JAX's LAPACK on a CPU may wait for ever in a program that factors several batches."""
    apply, params = MODELS["recurrent"](key, x)
    program = assembly.factors.lower(Partial(apply), params, x, c=1, outputs="trace", precision="highest")
    assert "lapack" not in program.as_text()


def test_kernel_is_zero_where_the_output_depends_on_no_parameter():
    x = jnp.linspace(0, 1, 5)[:, None]
    kernel = ni.ntk(lambda params, x: jnp.sin(x), {"gain": jnp.asarray(2.0), "w": jnp.ones((3, 4))}, x)
    np.testing.assert_array_equal(kernel, np.zeros((5, 5)))


def test_library_networks_need_no_jacobian(key, x):
    for name in ("rff", "siren", "pe+sphere+hadamard"):
        found = handled(name, key, x)
        assert all(how != "jacobian" for leaf, how in found.items() if "readout" not in leaf), name


def test_explain_is_a_table_with_costs(key, x):
    model = small("pe", key, x, out=3)
    plan = ni.explain(*model, x)
    text = str(plan)
    for word in ("['hidden_0']['kernel']", "<- chosen", "added to the product of"):
        assert word in text
    assert len(plan.leaves) == len(jax.tree.leaves(model[1]))
    structured, jacobian = plan.costs
    assert structured.flops < jacobian.flops / 3
    assert plan.kernel_bytes == 23 * 23 * 4
    assert ni.explain(*model, x, x[:5], outputs="full").kernel_bytes == 23 * 5 * 9 * 4


@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(
    n1=st.integers(1, 20), n2=st.integers(0, 20), block=st.integers(1, 25), c=st.integers(1, 3), out=st.data()
)
def test_any_shape_and_block(n1, n2, block, c, out):
    outputs = out.draw(st.sampled_from(["trace", "diagonal", "full"]))
    x = jax.random.normal(jax.random.key(n1), (20, 2))
    model = plain(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], {"a": (2, 9), "b": (9, c)})(None, x)
    x1, x2 = x[:n1], x[20 - n2 :] if n2 else None
    kernel = ni.ntk(*model, x1, x2, outputs=outputs, block=block)
    full = reduced(reference(*model, x), outputs)
    expected = full[:n1, :n1] if x2 is None else full[:n1, 20 - n2 :]
    assert kernel.shape == expected.shape
    assert distance(kernel, expected) < 2 * tolerance(jnp.float32)
    if x2 is None:
        axes = (1, 0, 3, 2) if outputs == "full" else (1, 0, 2)[: kernel.ndim]
        np.testing.assert_array_equal(kernel, np.transpose(kernel, axes))


@pytest.mark.parametrize("method", ["structured", "jacobian"])
@pytest.mark.parametrize("outputs", quick(["trace", "diagonal", "full"], "trace", "full"))
def test_where_the_kernel_is_kept(method, outputs, key, x, tmp_path):
    model = small("pe", key, x, out=2)
    device = ni.ntk(*model, x, outputs=outputs, method=method, block=6)
    calls = []
    options = {"outputs": outputs, "method": method, "block": 6, "progress": lambda *at: calls.append(at)}
    host = ni.ntk(*model, x, out="host", **options)
    assert isinstance(device, jax.Array)
    assert isinstance(host, np.ndarray)
    np.testing.assert_array_equal(device, host)
    assert calls == [(done, 10) for done in range(1, 11)]
    disk = np.memmap(tmp_path / "K", "float32", "w+", shape=host.shape)
    assert ni.ntk(*model, x, out=disk, **options) is disk
    np.testing.assert_array_equal(np.memmap(tmp_path / "K", "float32", "r", shape=host.shape), host)


@pytest.mark.parametrize(("outputs", "tiles"), [("trace", 3), ("full", 3), ("full", 1)])
def test_device_assembly_of_accelerators(outputs, tiles, key, x):
    """What an accelerator does, whose memory NumPy can't write to."""
    model = small("pe", key, x, out=2)
    block = len(x) // tiles
    host = ni.ntk(*model, x, outputs=outputs, block=block)
    parts = assembly.tiles(Request.of(*model, x, outputs=outputs), Cut(block=block, panel=2, bytes=0))
    kernel = storage.on_device(host.shape, host.dtype, parts, symmetric=True, traced=True)
    np.testing.assert_array_equal(kernel, host)


def test_wide_jacobians_stay_below_a_bound(x64, monkeypatch):
    """Of parameters in no product; their columns are multiplied some at a time, rows computed again."""
    x = jnp.linspace(-1, 1, 24)[:, None]
    model = lambda p, x: jnp.sin(x * p[None]).mean(1, keepdims=True), jnp.linspace(0.0, 9.0, 40000)
    monkeypatch.setattr(memory, "_BESIDE_BYTES", 4 * 10**6)
    plan = ni.explain(*model, x)
    assert plan.panel * plan.block < len(x)
    assert plan.costs[0].bytes <= 4 * 10**6
    assert distance(ni.ntk(*model, x), ni.ntk(*model, x, method="jacobian")) < tolerance(jnp.float64)


def test_a_small_memory_limit_recomputes_factors_and_changes_nothing(key):
    x = jax.random.uniform(key, (300, 2))
    model = small("pe", key, x)
    whole = ni.ntk(*model, x)
    kernel_bytes = 300 * 300 * 4
    limit = kernel_bytes + 200_000
    assert ni.explain(*model, x, memory_limit=limit).panel * ni.explain(*model, x, memory_limit=limit).block < 300
    np.testing.assert_allclose(ni.ntk(*model, x, memory_limit=limit), whole, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"needs at least .* kB.*memory_limit leaves 1 kB"):
        ni.ntk(*model, x, memory_limit=1000)


class BatchStandardised:
    """Batch normalization in training mode, without the module."""

    def __call__(self, params, x):
        h = x @ params["w"]
        h = (h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-3)
        return jnp.tanh(h) @ params["out"]


@pytest.mark.parametrize("outputs", quick(["trace", "diagonal", "full"], "trace"))
def test_coupled_takes_the_batch_as_one_function(outputs, key, x, x64):
    apply = BatchStandardised()
    params = in_float64(plain(len, {"w": (2, 8), "out": (8, 2)})(key, x)[1])
    jacobian = jax.jacrev(lambda p: apply(p, x))(params)
    leaves = [leaf.reshape(23, 2, -1) for leaf in jax.tree.leaves(jacobian)]
    full = sum(jnp.einsum("icp,jep->ijce", leaf, leaf) for leaf in leaves)
    for block in (None, 5):
        kernel = ni.ntk(apply, params, x, coupled=True, outputs=outputs, block=block)
        assert distance(kernel, reduced(np.asarray(full), outputs)) < tolerance(jnp.float64)
    with pytest.raises(ValueError, match=r"apply mixes examples.*coupled=True"):
        ni.ntk(apply, params, x, outputs=outputs)
    with pytest.raises(ValueError, match="whole batch"):
        ni.ntk(apply, params, x, coupled=True, method="structured")


@pytest.mark.parametrize("method", ["structured", "jacobian"])
@pytest.mark.parametrize("block", quick([1, 4, 23, 100], 4, 100))
def test_blocks_change_nothing_but_rounding(key, x, method, block):
    model = small("pe", key, x, out=2)
    whole = ni.ntk(*model, x, method=method)
    assert distance(ni.ntk(*model, x, method=method, block=block), whole) < tolerance(jnp.float32)


def test_symmetric_to_the_bit_and_positive_semidefinite(key, x):
    for name, method in (("relu", "structured"), ("siren", "structured"), ("siren", "jacobian")):
        kernel = np.asarray(ni.ntk(*small(name, key, x), x, method=method))
        np.testing.assert_array_equal(kernel, kernel.T)
        values = np.linalg.eigvalsh(kernel.astype(float))
        assert values[0] > -len(x) * np.finfo(np.float32).eps * values[-1]


def test_outputs_agree_with_each_other(key, x):
    model = small("pe", key, x, out=3)
    full = ni.ntk(*model, x, outputs="full")
    diagonal = jnp.einsum("ijcc->ijc", full)
    np.testing.assert_allclose(ni.ntk(*model, x, outputs="diagonal"), diagonal, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(ni.ntk(*model, x), diagonal.mean(axis=-1), rtol=1e-4, atol=1e-3)


def test_a_second_call_does_not_trace_again(key, x):
    # For the shape of its output, whether it mixes examples (five calls), the plan, and the factors (twice each:
    # JAX asks for the shape of the output apart).
    @chex.assert_max_traces(n=10)
    def apply(params, x):
        return jnp.tanh(x @ params["w"]) @ params["out"]

    params = drawn({"w": (2, 8), "out": (8, 1)})
    first = ni.ntk(apply, params, x)
    traced = jax.tree.map(lambda leaf: leaf + 1, params)
    for _ in range(4):
        ni.ntk(apply, traced, 0.5 * x)
    assert first.shape == (23, 23)


def test_many_sizes_share_their_programs(key):
    x = jax.random.uniform(key, (1100, 2))
    model = small("relu", key, x)
    ni.ntk(*model, x[:600])
    ni.ntk(*model, x[:700])
    compiled = [program._cache_size() for program in (assembly.factors, assembly._tile, assembly._halves)]
    for n in (1000, 1100, 900, 650):
        kernel = ni.ntk(*model, x[:n])
        assert kernel.shape == (n, n)
    assert [program._cache_size() for program in (assembly.factors, assembly._tile, assembly._halves)] == compiled
    np.testing.assert_array_equal(kernel, kernel.T)
    np.testing.assert_allclose(kernel[:9, 600:], ni.ntk(*model, x[:9], x[600:650]), rtol=1e-4, atol=1e-3)


def test_seeds_of_one_network_share_a_compilation(x):
    net = ni.variant("rff", features=8, depth=1)
    models = [ni.init(net, jax.random.key(seed), x) for seed in range(3)]
    assert len({jax.tree.structure(model) for model in models}) == 1
    assert len({hash(jax.tree.structure(model[0])) for model in models}) == 1


def test_under_jit_vmap_and_grad(key, x):
    net = ni.variant("rff", features=16, depth=2)
    models = jax.vmap(lambda k: ni.init(net, k, x))(jax.random.split(key, 3))
    stacked = jax.jit(jax.vmap(lambda a, p: ni.moments(ni.ntk(a, p, x)).cv))(*models)
    alone = [ni.moments(ni.ntk(*jax.tree.map(lambda leaf, s=s: leaf[s], models), x)).cv for s in range(3)]
    np.testing.assert_allclose(stacked, alone, rtol=1e-4)


def test_gradient_of_cv_equals_finite_differences(key, x, x64):
    params = in_float64(drawn({"w": (2, 16), "out": (16, 1)}))
    points = x.astype(jnp.float64)

    def cv(scale):
        def apply(p, x):
            return jnp.sin(scale * (x @ p["w"])) @ p["out"]

        return ni.moments(ni.ntk(apply, params, points)).cv

    step = 1e-5
    numeric = (cv(2.0 + step) - cv(2.0 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(cv)(2.0), numeric, rtol=1e-7)


def test_derivatives_where_uses_of_a_weight_coincide(x, x64):
    """Orthonormal rows have no derivative there, the kernel has."""
    params = in_float64(drawn({"in": (2, 40), "w": (40, 40), "out": (40, 2)}))
    points = x[:4].astype(jnp.float64)

    def size(shift):
        def apply(p, x):
            h = jnp.tanh(x @ p["in"])
            return (jnp.tanh(h @ p["w"]) + 2 * jnp.tanh((h + shift * jnp.sin(h)) @ p["w"])) @ p["out"]

        return (ni.ntk(apply, params, points) ** 2).sum()

    numeric = (size(1e-5) - size(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(size)(0.0), numeric, rtol=1e-6)
    slope = jax.grad(size)
    np.testing.assert_allclose(jax.grad(slope)(0.0), (slope(1e-5) - slope(-1e-5)) / 2e-5, rtol=1e-5)


def test_gradients_by_parameters_and_coordinates(key, x, x64):
    apply, params = in_float64(small("siren", key, x[:5]))
    points = x[:5].astype(jnp.float64)

    def cv(params, points):
        return ni.moments(ni.ntk(apply, params, points)).cv

    by_params, by_points = jax.grad(cv, (0, 1))(params, points)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), (params, points))
    moved = [jax.tree.map(lambda a, d, s=s: a + s * 1e-6 * d, (params, points), direction) for s in (1, -1)]
    numeric = (cv(*moved[0]) - cv(*moved[1])) / 2e-6
    exact = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, ((by_params, by_points), direction)), strict=True))
    np.testing.assert_allclose(exact, numeric, rtol=1e-6)
