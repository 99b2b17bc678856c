"""Products with coordinates are in full precision always; the others in that which is asked for."""

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.lax import Precision

import ntk_inr as ni
from ntk_inr.networks.products import of_coordinates, product
from ntk_inr.study.description import describe

SIZE = {"features": 16, "depth": 3}


def dots_of(jaxpr, depths):
    """Return the products of a program as (depth, equation), and the depths of its outputs.

    Depth counts the products between the coordinates and a value, None where it does not depend on them. Coordinates
    that stand beside hidden values in one array count; those that multiply them entry by entry, as filters do, don't.
    """
    known = dict(zip(jaxpr.invars, depths, strict=True))
    dots = []
    for equation in jaxpr.eqns:
        inputs = [known.get(atom) for atom in equation.invars if not isinstance(atom, jex.Literal)]
        reached = [depth for depth in inputs if depth is not None]
        merge = min if equation.primitive.name == "concatenate" else max
        depth = merge(reached) if reached else None
        parameters = jax.tree.leaves(list(equation.params.values()))
        inner = [value for value in parameters if isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)]
        if equation.primitive.name == "dot_general":
            if depth is not None:
                dots.append((depth, equation))
                depth += 1
        elif len(inner) == 1 and len(getattr(inner[0], "jaxpr", inner[0]).invars) == len(equation.invars):
            own = [None if isinstance(atom, jex.Literal) else known.get(atom) for atom in equation.invars]
            deeper, _ = dots_of(getattr(inner[0], "jaxpr", inner[0]), own)
            dots += deeper
            depth = depth if not deeper else max(place for place, _ in deeper) + 1
        else:
            for part in inner:
                assert "dot_general" not in part.pretty_print(use_color=False)
        known |= dict.fromkeys(equation.outvars, depth)
    return dots, [known.get(atom) for atom in jaxpr.outvars]


def products(net, d=2):
    """Return the products of a network by kind: with coordinates, the others, and those that take rounded numbers."""
    x = jnp.zeros((5, d))
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    traced = jax.make_jaxpr(lambda x, variables: net.apply(variables, x))(x, variables)
    depths = [0] + [None] * (len(traced.jaxpr.invars) - 1)
    dots, _ = dots_of(traced.jaxpr, depths)
    full = [place for place, dot in dots if dot.params["precision"] == (Precision.HIGHEST, Precision.HIGHEST)]
    others = [(place, dot) for place, dot in dots if dot.params["precision"] != (Precision.HIGHEST, Precision.HIGHEST)]
    assert all(atom.aval.dtype == jnp.float32 for place, dot in dots if place == 0 for atom in dot.invars)
    assert all(place > 0 for place, _ in others)
    return full, others


@pytest.mark.parametrize("name", ni.variants())
def test_coordinates_of_every_variant_are_multiplied_in_full_precision(name):
    full, others = products(ni.variant(name, **SIZE))
    assert 0 in full or name == "hash"  # a hash grid multiplies them entry by entry
    assert {dot.params["precision"] for _, dot in others} == {None}
    # Two hidden layers after the first and the readout: of complex numbers four products each, of two maps more.
    expected = {"wire": 2 * 4 + 2, "wire2d": 2 * 8 + 2, "wire+real": 2 * 2 + 1}.get(name, 3)
    assert len(others) == expected
    for precision, kind in (("default", Precision.DEFAULT), ("high", Precision.HIGH)):
        asked = products(ni.variant(name, precision=precision, **SIZE))
        assert asked[0] == full
        assert [dot.params["precision"] for _, dot in asked[1]] == [(kind, kind)] * expected
    same, rounded = products(ni.variant(f"{name}:precision=bfloat16", **SIZE))
    assert same == full
    assert {atom.aval.dtype for _, dot in rounded for atom in dot.invars} == {jnp.dtype("bfloat16")}
    # The readout's sums stay as they are.
    sums = [dot.outvars[0].aval.dtype for _, dot in rounded]
    assert sums.count(jnp.float32) == (2 if name in ("wire", "wire2d") else 1)


def test_tensor_float_32_would_merge_coordinates():
    x = np.linspace(-1, 1, 8000, dtype=np.float32).view(np.uint32)
    # To the nearest with 10 bits after the first, ties to even.
    kept = (x + 0xFFF + ((x >> 13) & 1)) & 0xFFFFE000
    assert len(np.unique(x)) == 8000
    assert len(np.unique(kept)) == 6048
    with jax.default_matmul_precision("bfloat16"):
        traced = jax.make_jaxpr(of_coordinates)(jnp.zeros((3, 2)), jnp.zeros((2, 4)))
    assert traced.eqns[0].params["precision"] == (Precision.HIGHEST, Precision.HIGHEST)


def test_bfloat16_rounds_operands_and_hidden_sums(key):
    h, matrix = jax.random.normal(key, (2, 8, 8))
    exact = np.asarray(h.astype(jnp.bfloat16), np.float64) @ np.asarray(matrix.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(product(h, matrix, "bfloat16", sums=True), exact, rtol=1e-5, atol=1e-5)
    rounded = product(h, matrix, "bfloat16")
    assert rounded.dtype == jnp.float32
    # Half of the last of eight bits is 2^-9 of a number; without optimizations a CPU rounds after each of 8 summands.
    np.testing.assert_allclose(rounded, exact, atol=8 * 2**-9 * float((jnp.abs(h) @ jnp.abs(matrix)).max()))
    np.testing.assert_array_equal(rounded, rounded.astype(jnp.bfloat16).astype(jnp.float32))


def test_networks_in_bfloat16_have_float32_parameters_kernels_and_training(key, x):
    plain, low = (ni.variant("siren", precision=how, features=16, depth=2) for how in (None, "bfloat16"))
    (apply, params), (rounded, own) = (ni.init(net, key, x) for net in (plain, low))
    jax.tree.map(np.testing.assert_array_equal, params, own)
    values = rounded(own, x)
    assert values.dtype == jnp.float32
    size = float(jnp.abs(values).max())
    assert 1e-5 * size < float(jnp.abs(values - apply(params, x)).max()) < 0.02 * size
    kernel, other = ni.ntk(apply, params, x), ni.ntk(rounded, own, x)
    assert other.dtype == jnp.float32
    # Two roundings of 2^-9 a layer, of values whose errors are independent.
    assert float(jnp.linalg.norm(kernel - other)) < 0.01 * float(jnp.linalg.norm(kernel))
    jacobian = ni.ntk(rounded, own, x, method="jacobian")
    assert float(jnp.linalg.norm(jacobian - other)) < 2e-3 * float(jnp.linalg.norm(jacobian))
    run = ni.fit(rounded, own, x, jnp.sin(3 * x[:, :1]), optimizer=optax.adam(1e-3), steps=60)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(run.params))
    assert run.psnr[-1] > run.psnr[0] + 7
    assert "precision='bfloat16'" in describe(low)


def test_the_precision_is_one_of_those_named(unchecked):
    for build in (ni.CoordinateMLP, ni.networks.FourierNet, ni.networks.Wire):
        with pytest.raises(ValueError, match=r"unknown precision 'bf16'.*bfloat16"):
            build(precision="bf16")
    with pytest.raises(ValueError, match="write name=number"):
        ni.variant("siren:omega=bfloat16")
    assert ni.variant("hash:interpolation=smoothstep").encoding.interpolation == "smoothstep"
    assert ni.networks.with_settings(ni.variant("wire"), {"precision": "high"}).precision == "high"
