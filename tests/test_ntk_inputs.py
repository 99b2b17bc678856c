"""What the kernel takes and what it refuses: dtypes, byte orders, functions that mix examples, and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from ntk_inr._checks import native
from ntk_inr.kernels import memory
from tests.conftest import in_float64, quick, small
from tests.kernel_models import distance, drawn, tolerance


def test_the_byte_order_of_coordinates_values_and_kernels_changes_nothing(key):
    def other(array):
        return np.asarray(array).astype(array.dtype.newbyteorder("S"))

    x = np.linspace(-1, 1, 6, dtype=np.float32)[:, None]
    apply, params = ni.init(ni.variant("relu", features=8, depth=1), key, x)
    kernel = np.asarray(ni.ntk(apply, params, x))
    np.testing.assert_array_equal(ni.ntk(apply, params, other(x)), kernel)
    assert ni.moments(other(kernel)).cv == ni.moments(kernel).cv
    np.testing.assert_array_equal(ni.alignment(other(kernel), other(x)).energy, ni.alignment(kernel, x).energy)
    turned = native({"w": [other(x)], "n": 3})
    assert turned["w"][0].dtype == np.float32
    np.testing.assert_array_equal(turned["w"][0], x)
    hidden = np.ma.array(x, mask=x > 0.9)
    for call in (lambda: ni.ntk(apply, params, hidden), lambda: ni.moments(np.ma.array(kernel, mask=kernel < 1e9))):
        with pytest.raises(ValueError, match="masked values"):
            call()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x1": np.zeros((4, 2), int)}, TypeError, r"x1 has dtype int\d+; coordinates are floating point"),
        ({"x1": np.zeros(4)}, ValueError, r"x1 has shape \(4,\).*Reshape it with x1\[:, None\]"),
        ({"x1": np.zeros((0, 2))}, ValueError, "empty"),
        ({"x1": np.full((4, 2), np.nan)}, ValueError, "x1 holds 8 NaN"),
        ({"x2": np.zeros((4, 3))}, ValueError, "x2 has 3 coordinates a row but x1 has 2"),
        ({"params": {}}, ValueError, "params holds no arrays"),
        ({"params": {"w": np.ones((2, 1)), "n": np.arange(3)}}, TypeError, r"params\['n'\] has dtype int"),
        ({"params": {"w": np.full((2, 1), np.nan)}}, ValueError, r"params\['w'\] holds 2 NaN"),
        ({"apply": lambda p, x: (x @ p["w"])[:, 0]}, ValueError, r"gave shape \(4,\).*\[:, None\]"),
        ({"apply": lambda p, x: (x @ p["w"])[None]}, ValueError, r"expected \(4, c\)"),
        ({"apply": lambda p, x: {"a": x}}, ValueError, "gave dict"),
        ({"apply": lambda p, x: x @ p["w"] > 0}, TypeError, "gave dtype bool"),
        ({"apply": None}, TypeError, "can't be called"),
        ({"outputs": "sum"}, ValueError, "unknown outputs 'sum'; known: trace, diagonal, full"),
        ({"method": "structred"}, ValueError, "Did you mean 'structured'"),
        ({"block": 0}, ValueError, "block is 0"),
        ({"memory_limit": 0}, ValueError, "memory_limit is 0"),
        ({"memory_limit": 100}, ValueError, r"needs at least 1\d\d B with blocks of 1 rows"),
        ({"precision": "hihgest"}, ValueError, "Did you mean 'highest'"),
        ({"out": "disk"}, ValueError, "unknown out 'disk'; known: device, host"),
        ({"out": np.zeros((4, 3), np.float32)}, ValueError, r"out has shape \(4, 3\).*np.memmap"),
        ({"out": [0]}, TypeError, "out is list"),
        ({"apply": lambda p, x: x @ p["w"] + x.mean()}, ValueError, "mixes examples.*coupled=True"),
        ({"apply": lambda p, x: jnp.sort(x @ p["w"], 0)}, ValueError, "mixes examples"),
        ({"apply": lambda p, x: x @ p["w"] * jnp.arange(len(x))[:, None]}, ValueError, "mixes examples"),
        ({"apply": lambda p, x: x @ p["w"] / jnp.std(x @ p["w"])}, ValueError, "NaN or infinity.*coupled=True"),
        (
            {"x2": np.eye(4, 2) + 1, "x1": np.eye(1, 2), "apply": lambda p, x: x @ p["w"] + x.mean()},
            ValueError,
            "mixes",
        ),
        ({"x1": "photo.png"}, TypeError, "x1 is 'photo.png'; expected an array"),
        ({"params": {"w": "relu"}}, TypeError, r"params\['w'\] is 'relu'"),
    ],
)
def test_bad_input_says_what_is_expected(unchecked, change, error, message):
    call = {"apply": lambda p, x: x @ p["w"], "params": {"w": np.ones((2, 1))}, "x1": np.eye(4, 2), **change}
    with pytest.raises(error, match=message):
        ni.ntk(**call)


def _net(params, x):
    return jnp.tanh(x @ params["w"]) @ params["out"]


def _normalised(h):
    return (h - h.mean(0, keepdims=True)) / (h.std(0, keepdims=True) + 1)


MIXING = {
    "scaled by the largest": lambda p, x: _net(p, x / jnp.abs(x).max()),
    "rolled": lambda p, x: _net(p, x) + _net(p, jnp.roll(x, 2, 0)),
    "rolled by half": lambda p, x: _net(p, jnp.roll(x, len(x) // 2, 0)),
    "centred by a part": lambda p, x: _net(p, x) - _net(p, x[: len(x) // 3]).sum(0, keepdims=True),
    "next to last": lambda p, x: _net(p, x) + 1e-3 * _net(p, x[-1:]),
    "divided by the number": lambda p, x: _net(p, x) / len(x),
    "numbered": lambda p, x: _net(p, x + 0.01 * jnp.arange(len(x), dtype=x.dtype)[:, None]),
    "sorted": lambda p, x: jnp.sort(_net(p, x), 0),
    "a running sum": lambda p, x: jnp.cumsum(_net(p, x), 0),
    "in pairs": lambda p, x: _net(p, x.reshape(2, -1, 2).mean(0)).repeat(2, 0),
    "softmax over rows": lambda p, x: jax.nn.softmax(_net(p, x), 0),
    "before a last layer of zeros": lambda p, x: _normalised(x @ p["w"]) @ (0 * p["out"] + p["zero"]),
}


@pytest.mark.parametrize("name", quick(MIXING, "scaled by the largest", "rolled", "divided by the number", "in pairs"))
def test_functions_that_mix_are_refused_at_any_coordinates(name, x):
    params = drawn({"w": (2, 16), "out": (16, 1)}) | {"zero": jnp.zeros((16, 1))}
    axis = jnp.linspace(-1, 1, 10)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    pair = jnp.asarray(x[:22]).at[11].set(x[0])
    for points in (grid, jnp.tile(x, (2, 1)), pair):
        with pytest.raises(ValueError, match="coupled=True"):
            ni.explain(MIXING[name], params, points)


def test_rounding_is_not_taken_for_mixing(key, x, x64):
    """Neither where the function computes in float32 nor where it magnifies each digit."""
    apply, params = small("siren", key, x.astype(jnp.float32))
    singly = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    kernel = ni.ntk(
        lambda p, x: apply(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p), x), in_float64(params), x
    )
    assert distance(kernel, ni.ntk(apply, singly, x.astype(jnp.float32))) < tolerance(jnp.float32)

    def chaotic(weights, x):
        return functools.reduce(lambda h, w: jnp.sin(4 * h @ w), weights, x)[:, :1]

    weights = [jax.random.normal(jax.random.key(i), (32 if i else 2, 32), jnp.float32) for i in range(16)]
    assert np.isfinite(ni.ntk(chaotic, weights, x.astype(jnp.float32))).all()

    def second_difference(params, x):
        return (_net(params, x + 1e-3) + _net(params, x - 1e-3) - 2 * _net(params, x)) / 1e-6

    params = drawn({"w": (2, 16), "out": (16, 1)})
    for points in (np.zeros((1, 2), "f"), np.zeros((9, 2), "f"), 0.1 * np.eye(2, dtype="f")):
        assert np.isfinite(ni.ntk(second_difference, params, points)).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_summed_in_float32_at_the_coordinates_as_they_are(dtype):
    x = np.linspace(-1, 1, 1000, dtype="f")[:, None]
    apply, half = ni.init(ni.variant("siren", features=16, depth=2, param_dtype=dtype), jax.random.key(0), x)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    exact = ni.ntk(apply, single, x)
    for method in ("structured", "jacobian"):
        kernel = ni.ntk(apply, half, x, method=method)
        assert kernel.dtype == jnp.float32
        assert distance(kernel, exact) < float(jnp.finfo(dtype).eps)
        assert len(np.unique(np.asarray(kernel)[0])) > 900
    A = ni.NTKOperator(apply, half, x)
    assert A.dtype == jnp.float32
    assert distance(A @ x, exact @ x) < float(jnp.finfo(dtype).eps)
    assert distance(A.diagonal(), exact.diagonal()) < float(jnp.finfo(dtype).eps)


def test_coupled_calls_no_other_batch(x):
    near = jax.random.uniform(jax.random.key(1), (23, 23))
    params = drawn({"w": (2, 16), "out": (16, 1)})

    def graph(p, x):
        return near @ jnp.tanh(near @ x @ p["w"]) @ p["out"]

    jacobian = jax.jacrev(lambda p: graph(p, x)[:, 0])(params)
    leaves = [leaf.reshape(23, -1) for leaf in jax.tree.leaves(jacobian)]
    assert distance(ni.ntk(graph, params, x, coupled=True), sum(leaf @ leaf.T for leaf in leaves)) < 1e-5
    traced = jax.jit(lambda scale: ni.ntk(lambda p, x: scale * graph(p, x), params, x, coupled=True))(1.0)
    assert distance(traced, sum(leaf @ leaf.T for leaf in leaves)) < 1e-5
    with pytest.raises(ValueError, match=r"takes 23 coordinates but not 1.*coupled=True"):
        ni.ntk(graph, params, x)


@pytest.mark.parametrize("method", ["structured", "jacobian"])
def test_an_output_that_owes_nothing_to_parameters_has_a_kernel_of_zeros(x, method):
    kernel = ni.ntk(lambda p, x: jnp.sign(x @ p), jnp.ones((2, 1)), x, method=method)
    np.testing.assert_array_equal(kernel, np.zeros((23, 23)))


def test_parameters_may_be_closed_over(key, x):
    apply, params = small("pe", key, x)
    kernel = ni.ntk(apply, params, x)
    np.testing.assert_allclose(jax.jit(lambda x: ni.ntk(apply, params, x))(x), kernel, rtol=1e-4, atol=1e-3)
    assert jax.jit(lambda v: ni.NTKOperator(apply, params, x) @ v)(x[:, 0]).shape == (23,)


def test_one_coordinate_is_enough(key, x):
    assert ni.ntk(*small("relu", key, x), x[:1]).shape == (1, 1)


def test_a_callable_without_hash_works(x):
    class Model(dict):
        def __call__(self, params, x):
            return x @ params

    assert ni.ntk(Model(), jnp.ones((2, 1)), x).shape == (23, 23)


def test_a_branch_times_zero_and_a_layer_without_units(x):
    def scaled(params, x, scale=0.0):
        return scale * jnp.tanh(x @ params["W"]) @ params["V"] + params["b"][None, :]

    for units in (4, 0):
        params = {"W": jnp.ones((2, units)), "V": jnp.ones((units, 1)), "b": jnp.ones(1)}
        np.testing.assert_array_equal(ni.ntk(scaled, params, x), 1.0)


def test_a_parameter_that_is_a_number(x):
    def slope(params, x):
        return params * x[:, :1]

    np.testing.assert_allclose(ni.ntk(slope, 2.0, x, method="jacobian"), ni.ntk(slope, 2.0, x), rtol=1e-6)
    assert "1" in str(ni.explain(slope, 2.0, x))


V2 = {"memory.max": "5000", "memory.current": "3000", "memory.stat": "anon 2000\ninactive_file 600\n"}
V1 = {
    "memory.limit_in_bytes": "5000",
    "memory.usage_in_bytes": "3000",
    "memory.stat": "inactive_file 1\ntotal_inactive_file 600\n",
}
MOUNT_2 = "32 31 0:29 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw"
MOUNT_1 = "35 31 0:32 {} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "left"),
    [
        ("0::/a/b", [MOUNT_2], {"a/b": V2}, 2600),
        ("0::/a/b", [MOUNT_2], {"a/b": V2 | {"memory.max": "max"}, "a": V2 | {"memory.current": "4900"}}, 700),
        ("0::/a/b", [MOUNT_2], {"a/b": V2 | {"memory.max": "2000", "memory.current": "2900"}}, 0),
        ("0::/", [MOUNT_2], {"": V2}, 2600),  # a container that sees itself as the root
        ("0::/../host", [MOUNT_2], {"": V2}, 2600),
        ("0::/a", [MOUNT_2], {"a": V2 | {"memory.max": "max"}}, None),
        ("4:memory:/a/b\n1:cpu:/c\n0::/d", [MOUNT_1.format("/")], {"memory/a": V1}, 2600),
        ("4:cpu,memory:/docker/id/a", [MOUNT_1.format("/docker/id")], {"memory/a": V1}, 2600),
        ("4:memory:/docker/id", [MOUNT_1.format("/other")], {"memory": V1}, 2600),
        ("4:memory:/a", [MOUNT_1.format("/")], {"memory/a": V1 | {"memory.limit_in_bytes": str(2**63 - 4096)}}, None),
        ("1:cpu:/a", [MOUNT_2], {"a": V2}, None),  # memory is not controlled
        (None, [], {}, None),  # not Linux
    ],
)
def test_memory_left_is_what_the_container_leaves(tmp_path, cgroup, mounts, files, left):
    if cgroup is not None:
        files = {f"sys/fs/cgroup/{folder}": names for folder, names in files.items()}
        files["proc/self"] = {"cgroup": cgroup, "mountinfo": "\n".join(mounts)}
    for folder, names in files.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in names.items():
            (tmp_path / folder / name).write_text(text)
    found = memory.available_on_host(tmp_path)
    assert found == left if left is not None else found > 10**6
