"""The checklist of good and of bad models."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from tests.conftest import small

X = np.linspace(-1, 1, 24, dtype="f").reshape(12, 2)
PARAMS = {
    "w": np.random.default_rng(0).normal(size=(2, 16)).astype("f"),
    "out": np.random.default_rng(1).normal(size=(16, 1)).astype("f"),
}


def net(p, x):
    return jnp.tanh(x @ p["w"]) @ p["out"]


def verdicts(checked):
    return {stage.name: stage.verdict for stage in checked.stages if stage.verdict != "ok"}


def test_a_network_of_the_library_passes(key):
    checked = ni.check(*small("siren", key, X), X)
    assert checked.ok
    assert verdicts(checked) == {}
    assert all(stage.what for stage in checked.stages)
    lines = str(checked).splitlines()
    assert len(lines) == len(checked.stages)
    assert all(line.startswith("ok ") for line in lines)
    assert jax.tree.map(lambda leaf: leaf, checked).stages[0].name == "function"


def failing(x):
    raise KeyError("lost")


def second_difference(p, x):
    return (net(p, x + 1e-3) + net(p, x - 1e-3) - 2 * net(p, x)) / 1e-6


def shifted(p, x):
    return net(p, jnp.sin(x + (p["t"] ** 2).mean(0, keepdims=True)))


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (g / jnp.maximum(1, jnp.abs(g).max()),))

NOT_RUN = dict.fromkeys(("values", "examples", "derivative", "fast path", "rounding"), "not run")
BAD = {
    "no function": ({"apply": None}, {"function": "failed", "output": "not run", **NOT_RUN}, "can't be called"),
    "integers": (
        {"params": PARAMS | {"n": np.arange(3)}},
        {"parameters": "failed", "finite": "not run", "output": "not run", **NOT_RUN},
        "fix: Close over arrays that are not trained",
    ),
    "NaN": (
        {"params": PARAMS | {"w": np.full((2, 16), np.nan, "f")}},
        {"finite": "failed", **{name: "not run" for name in NOT_RUN if name != "fast path"}},
        r"params\['w'\] holds 32 NaN",
    ),
    "flat": ({"apply": lambda p, x: net(p, x)[:, 0]}, {"output": "failed", **NOT_RUN}, r"fix: Add the axis of outputs"),
    "one by one": (
        {"apply": lambda p, x: jnp.tanh(p["w"].T @ x) @ p["out"]},
        {"output": "failed", **NOT_RUN},
        r"\n +fix: It takes one coordinate.*jax\.vmap",
    ),
    "raising": ({"apply": lambda p, x: failing(x)}, {"output": "failed", **NOT_RUN}, "KeyError.*lost"),
    "infinite": (
        {"apply": lambda p, x: net(p, x) / (x[:, :1] + 1)},
        {"values": "failed", "examples": "not run", "derivative": "not run", "rounding": "not run"},
        r"NaN or infinity at \[-1",
    ),
    "mixing": (
        {"apply": lambda p, x: net(p, x - x.mean(0, keepdims=True))},
        {"examples": "failed"},
        "fix: Pass coupled=True",
    ),
    "root": (
        {"apply": lambda p, x: net(p, x) * jnp.sqrt(jnp.abs(p["w"] - p["w"]).sum())},
        {"derivative": "failed", "rounding": "not run"},
        r"by params\['(w|out)'\] is NaN or infinite",
    ),
    "stopped": (
        {"apply": lambda p, x: net(jax.tree.map(lambda a: (a + jax.lax.stop_gradient(a)) / 2, p), x)},
        {"derivative": "warning"},
        "fix: Training follows ni.kernels.training_kernel",
    ),
    "constant": ({"apply": lambda p, x: jnp.sign(net(p, x))}, {"derivative": "warning"}, "no output depends"),
    "clipped": (
        {"apply": lambda p, x: clipped(net(p, x) * 100)},
        {"derivative": "warning"},
        r"not linear in the cotangent.*\n +fix: Use ni\.ntk",
    ),
    "cancelling": ({"apply": second_difference}, {"rounding": "warning"}, r"jax\.enable_x64"),
    "far out": ({"x": 30 * X}, {"coordinates": "warning"}, r"expect \[-1, 1\]"),
    "half": (
        {"params": {name: leaf.astype(jnp.float16) for name, leaf in PARAMS.items()}, "x": X.astype(jnp.float16)},
        {"parameters": "warning"},
        "fix: Derivatives round at a few digits",
    ),
    "idle": ({"params": PARAMS | {"idle": np.ones(3, "f")}}, {"fast path": "warning"}, r"depends on \['idle'\]"),
    "slow": (
        {"params": PARAMS | {"t": np.ones((3000, 2), "f")}, "apply": shifted},
        {"fast path": "warning"},
        r"\['t'\] keeps its Jacobian",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_raises_nothing_and_says_what_to_do(unchecked, name):
    change, expected, message = BAD[name]
    checked = ni.check(**{"apply": net, "params": PARAMS, "x": X, **change})
    found = verdicts(checked)
    if name == "half":  # which rounds coarsely too
        found.pop("rounding", None)
    assert found == expected, str(checked)
    assert checked.ok == ("failed" not in expected.values())
    assert re.search(message, str(checked)), str(checked)


def test_inside_a_transformation_there_is_nothing_to_check():
    with pytest.raises(ValueError, match="check works on the host"):
        jax.jit(lambda p: ni.check(net, p, X).ok)(PARAMS)
