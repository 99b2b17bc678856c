"""Checks of the sharded kernel, run by test_sharded.py in processes of their own.

multiprocess_worker.py devices           8 simulated devices in this process
multiprocess_worker.py process ID PORT   2 simulated devices in each of two processes
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import ntk_inr as ni

N = 64
# Another order of summation, in float32.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def kernel(apply, params, x1, x2=None, *, mesh, outputs="trace", block=None):
    """The one place that says how a user asks for a sharded kernel."""
    return ni.ntk(apply, params, x1, x2, mesh=mesh, outputs=outputs, block=block)


def model():
    """Return a network, its parameters and coordinates, the same in every process."""
    x = np.random.default_rng(0).uniform(-1, 1, (N, 2)).astype(np.float32)
    return *ni.init(ni.variant("pe", features=24, depth=2, out=2), jax.random.key(0), x), x


def reference(apply, params, x):
    """Return the full kernel (n, n, c, c) from whole Jacobians, on the host and in float64."""
    leaves = jax.tree.leaves(jax.jit(jax.jacrev(apply))(params, x))
    jacobian = np.concatenate([np.asarray(leaf, np.float64).reshape(N, 2, -1) for leaf in leaves], axis=2)
    return np.einsum("iop,jqp->ijoq", jacobian, jacobian, optimize=True)


def reduced(full, outputs):
    diagonal = np.einsum("ijoo->ijo", full)
    return {"full": full, "diagonal": diagonal, "trace": diagonal.mean(-1)}[outputs]


def check_rows(array, expected, mesh):
    """Check that each device holds its own rows of what is expected, and nothing else."""
    assert array.shape == expected.shape
    rows = NamedSharding(Mesh(mesh.devices, mesh.axis_names), PartitionSpec(mesh.axis_names))
    assert array.sharding.is_equivalent_to(rows, array.ndim), array.sharding
    for shard in array.addressable_shards:
        assert shard.data.shape == (N // mesh.size, *expected.shape[1:])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(shard.data) / scale, expected[shard.index] / scale, **CLOSE)


def check_uses(K, expected, mesh):
    """Check what is made of a sharded (n, n) kernel, and that no rows of it move for that."""
    for got, wanted in zip(*map(jax.tree.leaves, (ni.moments(K), ni.moments(expected))), strict=True):
        assert got.is_fully_replicated
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    v = np.linspace(-1, 1, N, dtype=np.float32)
    check_rows(K @ v, expected @ v, mesh)
    check_rows(K @ jnp.asarray(v), expected @ v, mesh)

    top = ni.top_eigenpairs(K, 2, key=jax.random.key(0))
    np.testing.assert_allclose(top.values, np.linalg.eigvalsh(expected)[:-3:-1], rtol=1e-5)

    program = jax.jit(ni.moments).lower(K).compile().as_text()
    assert "all-reduce" in program
    for moves in ("all-gather", "all-to-all", "collective-permute"):
        assert moves not in program, program
    sums = [line.split("all-reduce(")[0] for line in program.splitlines() if " all-reduce(" in line]
    assert sums
    assert not any(f",{N}]" in line for line in sums), sums
    product = jax.jit(jnp.matmul).lower(K, v).compile().as_text()
    assert "all-" not in product, product


def in_one_process():
    assert jax.device_count() == 8
    apply, params, x = model()
    full = reference(apply, params, x)
    line, auto = jax.make_mesh((8,), ("rows",)), jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    plane = jax.make_mesh((4, 2), ("a", "b"))
    for mesh, outputs, columns, block in (
        (line, "trace", None, 3),
        (line, "diagonal", 11, None),
        (line, "full", None, None),
        (auto, "diagonal", None, 2),
        (plane, "trace", 3, None),
        (plane, "full", 16, 5),
    ):
        K = kernel(apply, params, x, x[:columns] if columns else None, mesh=mesh, outputs=outputs, block=block)
        check_rows(K, reduced(full[:, :columns], outputs), mesh)

    traces = 0

    def counted(params, x):
        nonlocal traces
        traces += 1
        return apply(params, x)

    K = kernel(counted, params, x, mesh=auto)
    first = traces
    K = kernel(counted, params, x, mesh=line)  # the same devices with other axis types are the same program
    assert traces == first > 0
    check_uses(K, reduced(full, "trace"), line)

    on_mesh = jax.device_put(params, NamedSharding(auto, PartitionSpec()))
    spread = jax.device_put(x, NamedSharding(auto, PartitionSpec("rows")))
    check_rows(kernel(apply, on_mesh, spread, mesh=line), reduced(full, "trace"), line)
    with jax.set_mesh(auto):
        check_rows(kernel(apply, params, x, mesh=line), reduced(full, "trace"), line)
    with jax.set_mesh(line), pytest.raises(ValueError, match=r"jax\.set_mesh has set .*Explicit.* axes are Auto"):
        kernel(apply, params, x, mesh=line)
    with pytest.raises(ValueError, match=r"63 rows, which 8 devices .* use 56 or 64 rows"):
        kernel(apply, params, x[:63], mesh=line)
    with pytest.raises(ValueError, match=r"3 rows, .* use 8 rows"):
        kernel(apply, params, x[:3], mesh=line)


def in_two_processes(process, port):
    jax.distributed.initialize(f"localhost:{port}", 2, process, initialization_timeout=30)
    assert (jax.device_count(), jax.local_device_count()) == (4, 2)
    apply, params, x = model()
    full = reference(apply, params, x)
    mesh = jax.make_mesh((4,), ("rows",))
    check_rows(kernel(apply, params, x, x[:7], mesh=mesh, outputs="full"), full[:, :7], mesh)
    K = kernel(apply, params, jnp.asarray(x), mesh=mesh, block=3)
    assert not K.is_fully_addressable
    assert len(K.addressable_shards) == 2
    check_rows(K, reduced(full, "trace"), mesh)
    check_uses(K, reduced(full, "trace"), mesh)
    with pytest.raises(AssertionError, match="not the same"):
        kernel(apply, params, x + process, mesh=mesh)


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if sys.argv[1] == "devices":
        jax.config.update("jax_num_cpu_devices", 8)
        in_one_process()
    else:
        jax.config.update("jax_num_cpu_devices", 2)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        in_two_processes(*map(int, sys.argv[2:]))
    print("passed")
