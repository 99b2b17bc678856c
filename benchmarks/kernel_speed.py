"""How fast and how small is the structured kernel, and what limits it?

    python -m benchmarks.kernel_speed            # all of it, about 10 minutes on 2 cores
    python -m benchmarks.kernel_speed growth     # this part alone; what is kept of the others stays
    python -m benchmarks.kernel_speed --quick    # small sizes, nothing kept

Writes benchmarks/results/kernel_speed/<device>/: results.json and growth.png. Width 256, depth 4, two inputs, ReLU,
float32 and full precision unless said; medians of calls by turns in one process, compile time apart.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk_inr as ni
from benchmarks import kernel_kinds, timing
from benchmarks.keep import (
    Claim,
    arguments_of,
    collect,
    parts_asked_for,
    profile_of,
    publish_parts,
    results_folder,
    verdict,
)
from ntk_inr.kernels import structured
from ntk_inr.study.figures import save_figure
from ntk_inr.style import FAST, MEASURED, figure_style, pyplot

GROWTH = "Time grows as the flops do: quadratically in n, linearly in width, depth and outputs."
GROWTH_ON_ACCELERATORS = "Up to some n = 4096 the host's few milliseconds are the time; then it grows as the flops do."
NAME = "kernel_speed"
WIDTH, DEPTH = kernel_kinds.WIDTH, kernel_kinds.DEPTH
PARTS = [
    "neural_tangents", "jacobians", "hash", "equation", "traced", "gram_products", "sampled_moments", "growth", "large",
    "extra_memory", "streamed_moments", "hash_memory", "equation_memory", "tomography",
]  # fmt: skip
# What bounds small kernels on a GPU.
OVERHEAD = "A few milliseconds go into checks of the input and the start of each program, whatever n is."


def model(n: int, width: int = WIDTH, depth: int = DEPTH, c: int = 1, variant: str = "relu") -> tuple[Any, Any, Any]:
    """Return a network, its parameters and n scattered coordinates in the plane."""
    x = jax.random.uniform(jax.random.key(1), (n, 2), minval=-1.0)
    return *ni.init(ni.variant(variant, features=width, depth=depth, out=c), jax.random.key(0), x[:1]), x


def against_neural_tangents(quick: bool) -> list[dict[str, Any]]:
    """Against neural-tangents' Jacobian contraction, with the distance of both to float64."""
    rows = []
    for c in (1,) if quick else (1, 3):
        apply, params, x = model(128 if quick else 1024, c=c)
        found = timing.compare(
            {
                "structured": lambda a=apply, p=params, x=x: ni.ntk(a, p, x),
                "neural_tangents": lambda a=apply, p=params, x=x: ni.ntk(a, p, x, method="neural-tangents"),
            },
            repeats=2 if quick else 5,
        )
        ratio = found["neural_tangents"]["median_s"] / found["structured"]["median_s"]
        rows.append({"n": len(x), "c": c, **found, "ratio": ratio, **_distances(apply, params, x)})
    return rows


def _distances(apply: Any, params: Any, x: Any) -> dict[str, float]:
    """Return the relative distances to contracted Jacobians in float64, at most 256 coordinates."""
    x = x[:256]
    single = np.asarray(ni.ntk(apply, params, x), float)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (apply, params, x))
        reference = np.asarray(ni.ntk(*exact, method="jacobian"))
        double = np.asarray(ni.ntk(*exact))
    scale = np.linalg.norm(reference)
    return {
        "relative_difference_float32": float(np.linalg.norm(single - reference) / scale),
        "relative_difference_float64": float(np.linalg.norm(double - reference) / scale),
    }


def against_gram_products(n: int) -> dict[str, Any]:
    """Against the full Gram products that the formula is made of, each on its own and already given its factors."""
    apply, params, x = model(n)
    rows = jax.jit(lambda a, p, x: structured.factors(a, p, x, 1, "trace"))(apply, params, x)
    matrices = [m.reshape(len(x), -1) for row in rows for m in (row.h, row.delta) if m is not None]
    gram = jax.jit(lambda m: jnp.dot(m, m.T, precision="highest"))

    def grams() -> None:
        for matrix in matrices:
            gram(matrix).block_until_ready()

    found = timing.compare({"structured": lambda: ni.ntk(apply, params, x), "grams": grams}, 31)
    flops = 2 * len(x) ** 2 * sum(m.shape[1] for m in matrices)
    square = jax.random.normal(jax.random.key(0), (2048, 2048))
    product = jax.jit(lambda m: jnp.dot(m, m, precision="highest"))
    rate = 2 * 2048**3 / timing.compare({"p": lambda: product(square)}, 5)["p"]["median_s"]
    return {
        "n": len(x),
        **found,
        "ratio": found["structured"]["median_s"] / found["grams"]["median_s"],
        "gram_flops": flops,
        "gram_rate_flops_s": flops / found["grams"]["median_s"],
        "matrix_product_2048_rate_flops_s": rate,
        "structured_rate_flops_s": ni.explain(apply, params, x).costs[0].flops / found["structured"]["median_s"],
    }


def measure_extra_memory(n: int) -> dict[str, Any]:
    """Return the peak beyond K and the factors, in this process; its programs are compiled at a smaller n first."""
    apply, params, x = model(n)
    jax.block_until_ready(ni.ntk(apply, params, x[: n // 4]))
    before = timing.resident_bytes()
    kernel = jax.block_until_ready(ni.ntk(apply, params, x))
    kept = kernel.nbytes + n * 4 * sum(leaf.floats for leaf in ni.explain(apply, params, x).leaves)
    extra = timing.peak_bytes() - before - kept
    return {"n": n, "kernel_bytes": kernel.nbytes, "extra_bytes": extra, "extra_per_kernel": extra / kernel.nbytes}


def measure_streamed(n: int) -> dict[str, Any]:
    """Return the peak memory of this process for the moments of a kernel that is never stored."""
    apply, params, x = model(n)
    found = timing.compare({"s": lambda: ni.streamed_moments(apply, params, x)}, 1)["s"]
    return {"n": n, **found, "kernel_bytes": 4 * n * n, "peak_process_bytes": timing.peak_bytes()}


def sampled(quick: bool) -> list[dict[str, Any]]:
    """Mean and variance at the coordinates of a large image."""
    side = 128 if quick else 1024
    axis = jnp.linspace(-1, 1, side)
    x = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    rows = []
    for variant in ("siren",) if quick else ("relu", "pe", "pe+hadamard", "siren"):
        apply, params, _ = model(1, variant=variant)
        last: list[Any] = []

        def run(a: Any = apply, p: Any = params, last: list[Any] = last) -> None:
            last[:] = [ni.sampled_moments(a, p, x, key=jax.random.key(2))]

        found = timing.compare({"s": run}, 1 if quick else 3)["s"]
        m = last[0]
        rows.append(
            {
                "n": len(x),
                "variant": variant,
                **found,
                "mean_stderr_relative": m.mean_stderr / m.mean,
                "variance_stderr_relative": m.variance_stderr / m.variance,
                "submatrices": m.submatrices,
                "size": m.size,
                "cv": m.cv,
            }
        )
    return rows


SWEEPS: dict[str, list[int]] = {
    "n": [512, 1024, 2048, 4096, 8192, 16384],
    "width": [64, 128, 256, 512, 1024],
    "depth": [2, 4, 6, 8],
    "c": [1, 3, 10],
}


def growth(quick: bool) -> list[dict[str, Any]]:
    """Time against each size, the others at n 4096, width 256, depth 4, c 1, beside the flops of the plan."""
    rows = []
    for name, values in ({"n": SWEEPS["n"][:2]} if quick else SWEEPS).items():
        for value in values:
            sizes = {"n": 4096, "width": WIDTH, "depth": DEPTH, "c": 1, name: value}
            apply, params, x = model(**sizes)
            found = timing.compare({"s": lambda a=apply, p=params, x=x: ni.ntk(a, p, x)}, 1 if value > 8192 else 3)["s"]
            flops = ni.explain(apply, params, x).costs[0].flops
            rows.append({"sweep": name, **sizes, **found, "flops": flops, "rate_flops_s": flops / found["median_s"]})
    return rows


def large_on_accelerator() -> dict[str, Any]:
    """N = 32768 on an accelerator, against the rate of matrix products measured at the same precision."""
    apply, params, x = model(32768)
    square = jax.random.normal(jax.random.key(0), (8192, 8192))
    result: dict[str, Any] = {"n": len(x)}
    for precision in ("highest", "tensorfloat32"):
        product = jax.jit(lambda m, precision=precision: jnp.dot(m, m, precision=precision))
        found = timing.compare(
            {
                "structured": lambda precision=precision: ni.ntk(apply, params, x, precision=precision),
                "product": lambda product=product: product(square),
            },
            5,
        )
        rate = ni.explain(apply, params, x).costs[0].flops / found["structured"]["median_s"]
        best = 2 * len(square) ** 3 / found["product"]["median_s"]
        result[precision] = {**found, "rate_flops_s": rate, "product_rate_flops_s": best, "fraction": rate / best}
    return result


def plot(rows: list[dict[str, Any]], device: str) -> Any:
    """Draw time against each size, with the time that the flops would take at the best rate reached."""
    plt = pyplot()
    best = max(row["rate_flops_s"] for row in rows)
    with figure_style():
        figure, axes = plt.subplots(1, len(SWEEPS), figsize=(11, 3), sharey=True)
        for axis, name in zip(axes, SWEEPS, strict=True):
            swept = [row for row in rows if row["sweep"] == name]
            values = [row[name] for row in swept]
            axis.loglog(values, [row["median_s"] for row in swept], "o-", color=MEASURED, label="measured")
            model_s = [row["flops"] / best for row in swept]
            axis.loglog(values, model_s, "--", color=FAST, label=f"flops at {best / 1e9:.0f} GFLOP/s")
            axis.set_xlabel({"n": "coordinates n", "width": "width", "depth": "hidden layers", "c": "outputs c"}[name])
            axis.set_xticks(values, [str(v) for v in values], rotation=45 if name == "n" else 0)
            axis.minorticks_off()
        axes[0].set_ylabel("seconds")
        axes[0].legend()
        figure.suptitle(f"Structured NTK, n 4096, width 256, depth 4, c 1 where not swept; {device}", fontsize=9)
    return figure


def claims(results: dict[str, Any]) -> list[Claim]:
    """Return what the numbers say of the speed that the design asks for."""
    said, least, accelerator = [], {1: 40, 3: 100}, not results["environment"]["device"].startswith("cpu")
    if "neural_tangents" in results:
        ratios = {row["c"]: row["ratio"] for row in results["neural_tangents"] if row["c"] in least}
        own = [1e3 * row["structured"]["median_s"] for row in results["neural_tangents"]]
        said.append(
            Claim(
                "The structured kernel is 40 times (three outputs: 100) as fast as contracting Jacobians, n = 1024",
                "holds" if all(ratios[c] >= least[c] for c in ratios) else "does not hold",
                ", ".join(f"{ratio:.3g} times at c = {c}" for c, ratio in ratios.items()),
                "Against neural-tangents' Jacobian contraction, in one process, where ours takes "
                f"{' and '.join(f'{time:.3g}' for time in own)} ms. {OVERHEAD if accelerator else ''}",
            )
        )
    said += claims_of_kinds(results)
    if "gram_products" in results:
        gram = results["gram_products"]
        said.append(
            Claim(
                f"It takes at most half of the time of its own Gram products, n = {gram['n']}",
                "holds" if gram["ratio"] <= 0.5 else "does not hold",
                f"{gram['ratio']:.3f}",
                OVERHEAD
                if accelerator
                else "Tiles of the upper half only; other runs on the same machine vary by a few hundredths.",
            )
        )
    if "large" in results:
        fractions = [results["large"][precision]["fraction"] for precision in ("highest", "tensorfloat32")]
        said.append(
            Claim(
                "At n = 32768 it does its flops at half of the rate of one large matrix product, or faster",
                verdict([fraction >= 0.5 for fraction in fractions]),
                "{:.2f} of the rate in full float32, {:.2f} in TF32".format(*fractions),
                "The entries of each layer's products are multiplied and added in memory, which TF32 makes no faster.",
            )
        )
    if "extra_memory" in results:
        extra = results["extra_memory"]
        said.append(
            Claim(
                "Memory beyond K and the factors is at most half of K",
                "holds" if extra["extra_per_kernel"] <= 0.5 else "does not hold",
                f"{extra['extra_per_kernel']:.2f} K at n = {extra['n']}",
                "Tiles are written in place.",
            )
        )
    return said


def claims_of_kinds(results: dict[str, Any]) -> list[Claim]:
    """Return what the numbers say of parameters that are not those of dense layers, and of kernels inside jit."""
    said = []

    def claim(text: str, holds: bool, found: str, note: str) -> None:
        said.append(Claim(text, verdict([holds]), found, note))

    least = {"weight factorisation": 40, "complex WIRE": 20}
    for row in results.get("jacobians", []):
        times = least.get(row["network"], 30)
        claim(
            f"{row['network']}: {times} times as fast as contracting Jacobians, n = {row['n']}",
            row["ratio"] >= times,
            f"{row['ratio']:.3g} times",
            f'Against method="jacobian"; ours takes {1e3 * row["structured"]["median_s"]:.3g} ms. Errors in float32: '
            f"{row['structured_error']:.1e}, of Jacobians {row['jacobian_error']:.1e}.",
        )
    if "hash" in results:
        row = results["hash"]
        name = f"A hash grid of {row['levels']} levels of 2^{row['log2_size']}, n = {row['n']}"
        claim(
            f"{name}: at most 5 times the time of the same MLP without the table",
            row["ratio"] <= 5,
            f"{row['ratio']:.2f} times",
            f"{row['hash']['median_s']:.2f} s.",
        )
    for part, name, most in (
        ("hash_memory", "A hash grid of 16 levels of 2^19", 2),
        ("equation_memory", "Helmholtz", 1),
    ):
        if part in results:
            row = results[part]
            peak = row["peak_process_bytes"] / 2**30
            claim(f"{name}, n = {row['n']}: at most {most} GiB", peak <= most, f"{peak:.2f} GiB", "The whole process.")
    if "tomography" in results:
        row = results["tomography"]
        extra = row["extra_bytes"] / 2**30
        claim(
            f"Tomography, n = {row['n']}: at most 1 GiB beyond K",
            extra <= 1,
            f"{extra:.2f} GiB",
            f"{row['median_s']:.1f} s; each ray sums {row['samples']} points, so its layers keep their Jacobians.",
        )
    for row in results.get("traced", []):
        claim(
            f"Inside jit the kernel of {row['of']} takes at most 1.3 times what it takes outside, n = {row['n']}",
            row["ratio"] <= 1.3,
            f"{row['ratio']:.2f} times",
            f"{1e3 * row['jit']['median_s']:.3g} ms, and {row['jit']['compile_s']:.1f} s to compile.",
        )
    for row in results.get("equation", []):
        claim(
            f"A training step of the Helmholtz task is no slower than by nested derivatives, {row['variant']}",
            row["step_ratio"] >= 1,
            f"{row['step_ratio']:.2f} times as fast",
            f"Its kernel, n = {row['n']}, takes {row['kernel']['forward']['median_s']:.2f} s: 4 products a layer.",
        )
    return said


def main() -> None:
    """Measure, print the table, and keep the JSON and the plot."""
    parser = arguments_of(__doc__, parts=PARTS)
    alone: dict[str, Callable[[int], dict[str, Any]]] = {
        "gram_products": against_gram_products, "extra_memory": measure_extra_memory,
        "streamed_moments": measure_streamed, "hash_memory": kernel_kinds.hash_memory,
        "equation_memory": kernel_kinds.equation_memory, "tomography": kernel_kinds.tomography,
    }  # fmt: skip
    parser.add_argument("--only", choices=list(alone), help=argparse.SUPPRESS)
    parser.add_argument("--n", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(alone[arguments.only](arguments.n)))
        return
    profile = profile_of(arguments, timed=True)
    quick, accelerator = profile == "quick", jax.default_backend() != "cpu"
    n = 1024 if quick else 4096

    def own_process(part: str, n: int) -> Callable[[], Any]:
        return lambda: timing.in_own_process("benchmarks.kernel_speed", f"--only={part}", f"--n={n}")

    computes: dict[str, Callable[[], Any]] = {
        "neural_tangents": lambda: against_neural_tangents(quick),
        "jacobians": lambda: kernel_kinds.against_jacobians(quick),
        "hash": lambda: kernel_kinds.hash_against_mlp(quick),
        "equation": lambda: kernel_kinds.equation(quick),
        "traced": lambda: kernel_kinds.traced(quick),
        "sampled_moments": lambda: sampled(quick),
        "growth": lambda: growth(quick),
    }
    # Two processes can't share an accelerator's memory.
    if accelerator:
        computes |= {"gram_products": lambda: against_gram_products(n), "large": large_on_accelerator}
    else:
        sizes = {"gram_products": n, "extra_memory": 2 * n, "streamed_moments": 2048 if quick else 16384}
        sizes |= {"hash_memory": n, "equation_memory": 12 if quick else 48, "tomography": 256 if quick else 2048}
        computes |= {part: own_process(part, size) for part, size in sizes.items()}
    asked = parts_asked_for(arguments, computes)
    settings = {"width": WIDTH, "depth": DEPTH, "inputs": 2, "activation": "relu", "dtype": "float32"}
    found = collect(NAME, profile, settings, asked, lambda key, _: f"{key}: measured")
    if quick:
        report(found)
        return
    if "growth" in found:
        device = f"{jax.local_devices()[0].device_kind}, {os.cpu_count()} cores"
        save_figure(plot(found["growth"], device), results_folder(NAME) / "growth")
    pictures = {"growth": GROWTH_ON_ACCELERATORS if accelerator else GROWTH}
    report(publish_parts(NAME, settings=settings, found=found, order=PARTS, pictures=pictures))


def report(results: dict[str, Any]) -> None:
    """Print one line for each number."""
    for row in results.get("neural_tangents", []):
        print(
            f"n={row['n']} c={row['c']}: {row['ratio']:.3g} times as fast as neural-tangents' Jacobian contraction; "
            f"relative difference {row['relative_difference_float32']:.1e} in float32, "
            f"{row['relative_difference_float64']:.1e} in float64"
        )
    for claim in claims_of_kinds(results):
        print(f"{claim.statement}: {claim.number}. {claim.why}")
    if "gram_products" in results:
        row = results["gram_products"]
        print(
            f"n={row['n']}: {row['ratio']:.2f} of the sum of the Gram products, which run at "
            f"{row['gram_rate_flops_s'] / 1e9:.0f} GFLOP/s (a 2048 product: "
            f"{row['matrix_product_2048_rate_flops_s'] / 1e9:.0f}, structured: "
            f"{row['structured_rate_flops_s'] / 1e9:.0f})"
        )
    for row in results.get("sampled_moments", []):
        worst = max(row["mean_stderr_relative"], row["variance_stderr_relative"])
        print(f"sampled, n={row['n']}, {row['variant']}: {row['median_s']:.3g} s, standard error {100 * worst:.2f} %")
    if "extra_memory" in results:
        row = results["extra_memory"]
        print(f"n={row['n']}: {row['extra_per_kernel']:.2f} K beyond K and the factors")
    if "streamed_moments" in results:
        row = results["streamed_moments"]
        print(f"streamed, n={row['n']}: {row['median_s']:.1f} s, peak {row['peak_process_bytes'] / 1e9:.2f} GB")
    if "large" in results:
        for precision in ("highest", "tensorfloat32"):
            row = results["large"][precision]
            print(f"n={results['large']['n']}, {precision}: {row['fraction']:.2f} of the matrix product's rate")
    if "growth" in results:
        rates = [row["rate_flops_s"] / 1e9 for row in results["growth"]]
        print(f"growth: {min(rates):.0f} to {max(rates):.0f} GFLOP/s over {len(rates)} sizes")


if __name__ == "__main__":
    main()
