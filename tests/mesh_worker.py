"""Training over four simulated devices against one, in a process of its own."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.tree_util import Partial

import ntk_inr as ni


def worst(one, other):
    return max(float(abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(one, other, strict=True))


def layer(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


def main():
    assert jax.device_count() == 4
    x = jax.random.uniform(jax.random.key(3), (32, 2), minval=-1.0)
    y = jnp.sin(3 * x[:, :1])
    params = jax.random.normal(jax.random.key(0), (2, 16)), jnp.ones((16, 1))
    optimizer = optax.adam(1e-3)
    auto = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    explicit = jax.make_mesh((2, 2), ("a", "b"))
    batches = {"batch_size": 16, "key": jax.random.key(1)}
    for mesh, options in (
        (auto, {}),
        # 30 rows of data and 7 to validate, which four devices can't share, as they can the 16 of a step
        (
            explicit,
            {"x": x[:30], "y": y[:30]} | batches | {"sampling": "loss", "microbatch": 8, "validation": (x[:7], y[:7])},
        ),
    ):
        options = {"x": x, "y": y, "optimizer": optimizer, "steps": 10} | options
        runs = [ni.fit(layer, params, mesh=m, **options) for m in (None, mesh)]
        assert worst(*(jax.tree.leaves(run.params) for run in runs)) < 1e-5
        assert worst([runs[0].losses], [runs[1].losses]) < 1e-5
        assert len(jax.tree.leaves(runs[1].params)[0].devices()) == 4

    from ntk_inr.training.options import Options
    from ntk_inr.training.run import prepare
    from ntk_inr.training.steps import advance

    run = prepare(layer, params, (x, y), Options(mesh=auto, steps=2), None)
    lowered = advance.lower(run.apply, run.start, run.keys, run.limit, run.data, 0, 1, program=run.program)
    text = lowered.compile().as_text()
    assert "all-reduce" in text  # of the gradients
    assert "f32[8,16]" in text  # each device has a quarter of the rows
    assert "f32[32,16]" not in text

    seeds = Partial(layer), jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    pairs = zip(*(ni.fit_seeds(*seeds, x, y, optimizer=optimizer, steps=5, mesh=m) for m in (None, auto)), strict=True)
    for one, other in pairs:
        assert worst(jax.tree.leaves(one.params), jax.tree.leaves(other.params)) < 1e-5
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "x": x,
            "y": y,
            "optimizer": optimizer,
            "steps": 10,
            "checkpoint": f"{folder}/run",
            "overwrite": False,
        }
        one, two = (ni.fit(layer, params, mesh=auto, **options) for _ in range(2))
        assert worst(jax.tree.leaves(one.params), jax.tree.leaves(two.params)) == 0
        with pytest.raises(FileExistsError, match="settings"):
            ni.fit(layer, params, **options)
    with pytest.raises(ValueError, match="a step has 30 rows, which 4 devices"):
        ni.fit(layer, params, x[:30], y[:30], steps=1, mesh=auto)
    print("passed")


if __name__ == "__main__":
    main()
