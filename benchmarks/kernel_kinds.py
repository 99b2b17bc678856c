"""Networks whose parameters are not those of dense layers, for ``benchmarks.kernel_speed``: how fast, how small."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk_inr as ni
from benchmarks import timing

WIDTH, DEPTH = 256, 4


def plane(n: int) -> Any:
    """Return n scattered coordinates in the plane."""
    return jax.random.uniform(jax.random.key(1), (n, 2), minval=-1.0)


def factorised(params: Any, x: Any) -> Any:
    """Return the values of an MLP whose columns have trained lengths (random weight factorisation)."""
    for i, layer in enumerate(params):
        x = x @ (layer["g"] * layer["v"]) + layer["b"][None, :]
        x = jnp.tanh(x) if i < len(params) - 1 else x
    return x


def complex_wire(params: Any, x: Any) -> Any:
    """Return the real part of a network of complex Gabor wavelets with complex weights."""
    h = x.astype(jnp.result_type(x, 1j))
    for layer in params[:-1]:
        z = h @ layer["w"] + layer["b"][None, :]
        h = jnp.exp(10j * z - jnp.abs(5 * z) ** 2)
    return (h @ params[-1]["w"]).real


def _layers(is_complex: bool, width: int) -> list[dict[str, Any]]:
    """Return the parameters of one of the two networks."""
    rng, widths = np.random.default_rng(0), [2, *[width] * DEPTH, 1]

    def drawn(m: int, *shape: int) -> Any:
        parts = rng.normal(size=(2, *shape)) / m**0.5
        return jnp.asarray(
            parts[0] + 1j * parts[1] if is_complex else parts[0], "complex64" if is_complex else "float32"
        )

    pairs = list(itertools.pairwise(widths))
    if is_complex:
        return [{"w": drawn(30 * m, m, o), "b": drawn(30 * m, o)} for m, o in pairs]
    return [{"v": drawn(m, m, o), "g": 1 + drawn(100, o), "b": drawn(100, o)} for m, o in pairs]


def hash_grid(width: int, levels: int, log2_size: int) -> tuple[Any, Any]:
    """Return an MLP behind a hash grid, whose table is drawn as trained ones are spread, and its parameters."""
    grid = ni.HashGrid(levels=levels, log2_size=log2_size, features=2)
    apply, params = ni.init(
        ni.CoordinateMLP(features=width, depth=DEPTH, encoding=grid), jax.random.key(0), jnp.zeros((1, 2))
    )
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape), params)
    return apply, params


def against_jacobians(quick: bool) -> list[dict[str, Any]]:
    """Against contracted Jacobians, with the distance of both to float64."""
    n, width = (128, 64) if quick else (1024, WIDTH)
    networks = {
        "weight factorisation": (factorised, _layers(is_complex=False, width=width)),
        "complex WIRE": (complex_wire, _layers(is_complex=True, width=width)),
        "hash grid, 16 levels of 2^12": hash_grid(width, 16, 12),
    }
    x, rows = plane(n), []
    for name, (apply, params) in networks.items():
        calls = {
            method: functools.partial(ni.ntk, apply, params, x, method=method) for method in ("structured", "jacobian")
        }
        found = timing.compare(calls, repeats=2 if quick else 5)
        ratio = found["jacobian"]["median_s"] / found["structured"]["median_s"]
        rows.append({"network": name, "n": n, **found, "ratio": ratio, **_errors(apply, params, x[:64])})
    return rows


def _errors(apply: Any, params: Any, x: Any) -> dict[str, float]:
    """Return the relative distances of both methods in float32 to contracted Jacobians in float64."""
    single = {method: np.asarray(ni.ntk(apply, params, x, method=method)) for method in ("structured", "jacobian")}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf, jnp.float64)), (params, x))
        exact = np.asarray(ni.ntk(apply, *wide, method="jacobian"))
    size = np.linalg.norm(exact)
    return {f"{method}_error": float(np.linalg.norm(kernel - exact) / size) for method, kernel in single.items()}


def hash_against_mlp(quick: bool) -> dict[str, Any]:
    """Return the time of a hash grid's kernel and of that of the same MLP without the table."""
    n, levels, size = (256, 4, 10) if quick else (4096, 16, 19)
    grid, x = hash_grid(WIDTH, levels, size), plane(n)
    apply, params = ni.init(ni.CoordinateMLP(features=WIDTH, depth=DEPTH), jax.random.key(0), x[:1])
    calls = {"hash": functools.partial(ni.ntk, *grid, x), "mlp": functools.partial(ni.ntk, apply, params, x)}
    found = timing.compare(calls, 2 if quick else 5)
    return {"n": n, "levels": levels, "log2_size": size, **found, **_ratio(found, "hash", "mlp")}


def _ratio(found: dict[str, Any], of: str, over: str) -> dict[str, float]:
    return {"ratio": found[of]["median_s"] / found[over]["median_s"]}


def hash_memory(n: int) -> dict[str, Any]:
    """Return the peak memory of this process for the kernel of a hash grid."""
    apply, params = hash_grid(WIDTH, 16, 19)
    jax.block_until_ready(ni.ntk(apply, params, plane(n)))
    table = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return {"n": n, "parameter_bytes": table, "peak_process_bytes": timing.peak_bytes()}


def tomography(n: int) -> dict[str, Any]:
    """Return the time and this process's peak beyond K for integrals along rays, whose layers keep a Jacobian."""
    task = ni.tomography_task(angles=n // 64, size=64)
    apply, params = ni.init(ni.variant("siren", features=WIDTH, depth=DEPTH), jax.random.key(0), jnp.zeros((1, 2)))
    observed = task.observe(apply)
    jax.block_until_ready(ni.ntk(observed, params, task.x[:256]))
    before = timing.resident_bytes()
    found = timing.compare({"s": lambda: ni.ntk(observed, params, task.x)}, 1)["s"]
    kernel = 4 * task.n**2
    return {
        "n": task.n,
        "samples": 64,
        **found,
        "kernel_bytes": kernel,
        "extra_bytes": timing.peak_bytes() - before - kernel,
    }


def traced(quick: bool) -> list[dict[str, Any]]:
    """The kernel inside ``jit`` against that driven from the host, of one set of coordinates and of two."""
    rows = []
    for n in (256,) if quick else (1024, 4096):
        apply, params = ni.init(ni.variant("siren", features=WIDTH, depth=DEPTH), jax.random.key(0), plane(1))
        for name, arguments in {"x": (plane(n),), "x1, x2": (plane(n), -plane(n))}.items():
            host = functools.partial(ni.ntk, apply, params, *arguments)
            inside = functools.partial(jax.jit(functools.partial(ni.ntk, apply)), params, *arguments)
            found = timing.compare({"host": host, "jit": inside}, 2 if quick else 9)
            rows.append({"n": n, "of": name, **found, **_ratio(found, "jit", "host")})
    return rows


def equation(quick: bool) -> list[dict[str, Any]]:
    """The kernel and a training step of the Helmholtz task, against those of nested derivatives."""
    rows, task = [], ni.pde_task("helmholtz", points=12 if quick else 48)
    x, y = jnp.asarray(task.x), jnp.asarray(task.y)
    for variant in ("siren",) if quick else ("tanh", "siren"):
        apply, params = ni.init(ni.variant(variant, features=WIDTH, depth=DEPTH), jax.random.key(0), x[:1])
        observed = {"forward": task.observe(apply), "nested": _nested(apply)}

        def loss(params: Any, of: Any) -> Any:
            return ((of(params, x) - y) ** 2).mean()

        step = jax.jit(jax.value_and_grad(loss), static_argnames="of")
        kernels = {name: functools.partial(ni.ntk, of, params, x) for name, of in observed.items()}
        steps = {name: functools.partial(step, params, of=of) for name, of in observed.items()}
        found = {"kernel": timing.compare(kernels, 2 if quick else 5), "step": timing.compare(steps, 2 if quick else 9)}
        ratios = {f"{name}_ratio": of["nested"]["median_s"] / of["forward"]["median_s"] for name, of in found.items()}
        rows.append({"n": task.n, "variant": variant, **found, **ratios})
    return rows


def _nested(apply: Any) -> Any:
    """Return ``(params, x) -> (n, 1)``, the Laplacian and the value of a network by two nested derivatives an axis."""

    def observed(params: Any, x: Any) -> Any:
        def second(axis: Any) -> Any:
            direction = jnp.broadcast_to(axis, x.shape)

            def slope(x: Any) -> Any:
                return jax.jvp(lambda x: apply(params, x), (x,), (direction,))[1]

            return jax.jvp(slope, (x,), (direction,))[1]

        return sum(map(second, jnp.eye(x.shape[1], dtype=x.dtype)), apply(params, x))

    return observed


def equation_memory(points: int) -> dict[str, Any]:
    """Return the peak memory of this process for the kernel of the Helmholtz task."""
    task = ni.pde_task("helmholtz", points=points)
    apply, params = ni.init(ni.variant("siren", features=WIDTH, depth=DEPTH), jax.random.key(0), jnp.zeros((1, 2)))
    jax.block_until_ready(ni.ntk(task.observe(apply), params, task.x))
    return {"n": task.n, "peak_process_bytes": timing.peak_bytes()}
