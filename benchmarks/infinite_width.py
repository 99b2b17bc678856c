"""Do wide networks tend to the infinite-width kernels, at the rate 1/sqrt(width), and what do these cost?

    python -m benchmarks.infinite_width            # all of it, about 20 minutes on 2 cores
    python -m benchmarks.infinite_width --quick    # narrow networks and few seeds, a minute or two, nothing kept

Writes benchmarks/results/infinite_width/<device>/: results.json and convergence.png. Three parts: the distance between
ni.ntk and ni.infinite_kernel at growing widths; ours against neural-tangents' stax and against the mean over seeds
of wide networks; and the time of ours beside stax's, by turns in one process. Float32, the "ntk" parameterization,
coordinates uniform in the plane; distances are relative, in the Frobenius norm.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk_inr as ni
from benchmarks import timing
from benchmarks.keep import Claim, chosen_profile, print_claims, results_folder
from ntk_inr.infinite.network import infinite_kernel
from ntk_inr.networks.initializers import Law
from ntk_inr.study.environment import environment
from ntk_inr.study.figures import save_figure
from ntk_inr.study.record import write_json
from ntk_inr.style import MARKERS, NEUTRAL, PALETTE, figure_style, pyplot

PICTURES = {"convergence": "Networks tend to the infinite-width kernel as one over the root of the width."}

# Convergence: widths, seeds at each, coordinates, hidden layers.
WIDTHS, SEEDS, POINTS, DEPTH = [64, 128, 256, 512, 1024, 2048, 4096], 8, 48, 3
PANELS: dict[str, dict[str, dict[str, Any]]] = {
    "activation": {
        "relu": {},
        "sine": {"activation": "sine"},
        "gauss": {"activation": "gauss"},
        "gabor": {"activation": "gabor"},
        "erf": {"activation": "erf"},
        "tanh": {"activation": jnp.tanh},
    },
    "normalization (ReLU)": {
        "none": {},
        "sphere": {"normalization": "sphere"},
        "layer": {"normalization": "layer"},
    },
    "modulation (ReLU)": {
        "none": {},
        "fixed": {"modulation": ni.FourierModulation(omega=4.0)},
        "trained": {"modulation": ni.FourierModulation(omega=4.0, trained=True)},
    },
}
# Networks that --quick measures.
QUICK = ("relu", "sine", "none", "sphere")
# The mean over seeds of networks as wide as this, at few coordinates.
MEAN_WIDTH, MEAN_SEEDS, MEAN_POINTS, MEAN_DEPTH = 4096, 64, 16, 2
# Speed.
SPEED_POINTS, SPEED_DEPTH, SPEED_REPEATS = 2048, 4, 15


class NormalSine(ni.networks.Sine):
    """With normal weights in every layer, as stax has them."""

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return SIREN's variances."""
        return Law(4 / self.omega**2) if first else Law(2 / self.omega**2)


class NormalGauss(ni.networks.Gauss):
    """With normal weights in every layer."""

    def law(self, *, first: bool, readout: bool) -> Law:
        """Return the variance of U(±1/sqrt(n))."""
        return Law(1 / 3)


SHARED: dict[str, dict[str, Any]] = {
    "relu": {},
    "erf": {"activation": "erf"},
    "sine": {"activation": NormalSine(omega=10.0)},
    "gauss": {"activation": NormalGauss(width=0.3)},
    "relu, layer": {"normalization": "layer"},
    "relu, modulated": {"modulation": ni.FourierModulation(omega=4.0)},
}


def coordinates(n: int) -> jax.Array:
    """Return n scattered coordinates in the plane."""
    return jax.random.uniform(jax.random.key(1), (n, 2), minval=-1.0)


def network(features: int, depth: int, **settings: Any) -> ni.CoordinateMLP:
    """Return a network in the parameterization whose kernel has a limit."""
    return ni.CoordinateMLP(features=features, depth=depth, parameterization="ntk", **settings)


def kernels(net: ni.CoordinateMLP, x: jax.Array, seeds: int) -> np.ndarray:
    """Return the kernels of a network at independent initialisations, (seeds, n, n)."""

    @jax.jit
    def sample(key: jax.Array) -> jax.Array:
        return ni.ntk(*ni.init(net, key, x), x)

    return np.stack([np.asarray(sample(key), float) for key in jax.random.split(jax.random.key(0), seeds)])


def relative(found: Any, expected: Any) -> float:
    """Return the relative distance of two kernels."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def slope(widths: list[int], distances: np.ndarray) -> tuple[float, float]:
    """Return the slope of log distance (widths, seeds) over log width by least squares, and its standard error."""
    x = np.repeat(np.log(widths), distances.shape[1])
    y = np.log(distances).ravel()
    x = x - x.mean()
    found = float(x @ y / (x @ x))
    rest = y - y.mean() - found * x
    return found, float(math.sqrt(rest @ rest / (len(y) - 2) / (x @ x)))


def convergence(quick: bool) -> list[dict[str, Any]]:
    """Measure the distance to the limit at each width, and its slope."""
    widths, seeds, x = (WIDTHS[:3], 3, coordinates(12)) if quick else (WIDTHS, SEEDS, coordinates(POINTS))
    rows, done = [], {}
    for panel, lines in PANELS.items():
        for name, settings in lines.items():
            if quick and name not in QUICK:
                continue
            if not settings and "relu" in done:
                rows.append({**done["relu"], "panel": panel, "name": name})
                continue
            distances = []
            for width in widths:
                net = network(width, DEPTH, **settings)
                limit = infinite_kernel(net)(x).ntk
                distances.append([relative(found, limit) for found in kernels(net, x, seeds)])
            found = np.array(distances)
            fitted, stderr = slope(widths, found)
            row = {
                "panel": panel,
                "name": name,
                "widths": widths,
                "mean": found.mean(1).tolist(),
                "stderr": (found.std(1, ddof=1) / math.sqrt(seeds)).tolist(),
                "slope": fitted,
                "slope_stderr": stderr,
            }
            print(
                f"{panel}, {name}: distance {row['mean'][0]:.3f} at {widths[0]}, "
                f"{row['mean'][-1]:.4f} at {widths[-1]}; "
                f"slope {fitted:.3f} ± {stderr:.3f} (theory -1/2)",
                flush=True,
            )
            done[name] = row
            rows.append(row)
    return rows


def agreement(quick: bool) -> list[dict[str, Any]]:
    """Compare ours with stax, and with the mean over seeds of wide networks."""
    width, seeds, x = (128, 8, coordinates(8)) if quick else (MEAN_WIDTH, MEAN_SEEDS, coordinates(MEAN_POINTS))
    rows = []
    for name, settings in SHARED.items():
        if quick and name not in QUICK:
            continue
        net = network(width, MEAN_DEPTH, bias_law=Law(0.1), **settings)
        own = infinite_kernel(net)(x).ntk
        stax = infinite_kernel(net, backend="neural-tangents")
        with jax.enable_x64(True):
            x64 = jnp.asarray(x, jnp.float64)
            exact = np.asarray(infinite_kernel(net)(x64).ntk)
            to_stax = relative(exact, infinite_kernel(net, backend="neural-tangents")(x64).ntk)
        found = kernels(net, x, seeds)
        error = found.std(0, ddof=1) / math.sqrt(seeds)
        row = {
            "name": name,
            "width": width,
            "seeds": seeds,
            "to_stax_float64": to_stax,
            "rounding_float32": relative(own, exact),
            "rounding_float32_stax": relative(stax(x).ntk, exact),
            "to_wide_mean": relative(found.mean(0), exact),
            "to_wide_mean_stderr": float(np.linalg.norm(error) / np.linalg.norm(exact)),
        }
        rows.append(row)
        print(
            f"{name}: to stax {row['to_stax_float64']:.1e} in float64; rounding in float32 "
            f"{row['rounding_float32']:.1e} (stax {row['rounding_float32_stax']:.1e}); "
            f"to the mean of {seeds} networks of "
            f"width {width}: {row['to_wide_mean']:.1e}, where its standard error is {row['to_wide_mean_stderr']:.1e}",
            flush=True,
        )
    return rows


def speed(quick: bool) -> list[dict[str, Any]]:
    """Time ours beside stax's jitted kernel_fn for the same network."""
    x, repeats = (coordinates(512), 3) if quick else (coordinates(SPEED_POINTS), SPEED_REPEATS)
    rows = []
    for name, settings in SHARED.items():
        if quick and name not in QUICK:
            continue
        net = network(256, SPEED_DEPTH, bias_law=Law(0.1), **settings)
        own, stax = infinite_kernel(net), infinite_kernel(net, backend="neural-tangents")
        found = timing.compare({"own": lambda own=own: own(x), "stax": lambda stax=stax: stax(x)}, repeats)
        ratio = found["stax"]["median_s"] / found["own"]["median_s"]
        rows.append({"name": name, "n": len(x), "depth": SPEED_DEPTH, **found, "ratio": ratio})
        print(
            f"{name}, n={len(x)}, depth {SPEED_DEPTH}: {found['own']['median_s']:.3f} s, "
            f"{ratio:.1f} times faster than stax",
            flush=True,
        )
    for name, net in {
        "relu, default laws": network(256, SPEED_DEPTH),
        "sine, default laws": network(256, 4, activation="sine"),
    }.items():
        own = infinite_kernel(net)
        found = timing.compare({"own": lambda own=own: own(x)}, repeats)
        rows.append({"name": name, "n": len(x), "depth": SPEED_DEPTH, **found})
        print(f"{name}, n={len(x)}, depth {SPEED_DEPTH}: {found['own']['median_s']:.3f} s", flush=True)
    return rows


def plot(rows: list[dict[str, Any]]) -> Any:
    """Draw the distance to the limit over the width, beside the theory's slope."""
    plt = pyplot()
    with figure_style():
        figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 4.6), sharey=True)
        for axis, panel in zip(axes, PANELS, strict=True):
            lines = [row for row in rows if row["panel"] == panel]
            for index, row in enumerate(lines):
                axis.errorbar(
                    row["widths"],
                    row["mean"],
                    row["stderr"],
                    color=PALETTE[index],
                    marker=MARKERS[index],
                    markersize=4,
                    label=f"{row['name']}: {row['slope']:.2f} ± {row['slope_stderr']:.2f}",
                )
            widths = np.array(lines[0]["widths"], float)
            guide = 0.6 * min(row["mean"][0] for row in lines) * (widths / widths[0]) ** -0.5
            axis.loglog(widths, guide, "--", color=NEUTRAL, label="slope -1/2")
            axis.set_xticks(lines[0]["widths"], [str(w) for w in lines[0]["widths"]], rotation=45)
            axis.minorticks_off()
            axis.set_xlabel("width")
            axis.set_title(panel)
            axis.legend(title="slope", loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2)
        axes[0].set_ylabel("relative distance to the limit")
        figure.suptitle("Networks tend to the infinite-width kernel as 1/√width, whatever they are made of")
    return figure


def claims(results: dict[str, Any]) -> list[Claim]:
    """Return what the numbers say."""
    slopes = results["convergence"]
    # At these widths terms of the next order still show: in relu's and sine's slopes by a few hundredths.
    off = [row for row in slopes if abs(row["slope"] + 0.5) > max(3 * row["slope_stderr"], 0.05)]
    timed = [row["ratio"] for row in results["speed"] if "ratio" in row]
    shared = [row["to_stax_float64"] for row in results["agreement"] if "to_stax_float64" in row]
    return [
        Claim(
            "Kernels of finite width tend to the infinite one as width to the power -1/2",
            "holds" if not off else "holds when",
            f"slopes {min(r['slope'] for r in slopes):.2f} to {max(r['slope'] for r in slopes):.2f} over "
            f"{len({row['slope'] for row in slopes})} networks",
            "Within three standard errors or 0.05." if not off else f"Not {', '.join(row['name'] for row in off)}.",
        ),
        Claim(
            "ni.infinite_kernel is that of neural-tangents' stax where both have the layers",
            "holds" if max(shared) < 1e-7 else "does not hold",
            f"relative difference at most {max(shared):.1e} in float64, {min(timed):.1f} to {max(timed):.1f} times "
            "as fast",
            "Differences above 1e-12 are those of quadratures.",
        ),
    ]


def main() -> None:
    """Measure, print, and keep the JSON and the plot."""
    quick = chosen_profile(__doc__) == "quick"
    results: dict[str, Any] = {
        "schema": "ntk_inr.infinite_width v1",
        "environment": environment(),
        "settings": {"inputs": 2, "depth": DEPTH, "points": POINTS, "seeds": SEEDS, "dtype": "float32"},
        "convergence": convergence(quick),
        "agreement": agreement(quick),
        "speed": speed(quick),
    }
    print_claims(claims(results))
    if not quick:
        folder = results_folder("infinite_width")
        write_json(folder / "results.json", results)
        save_figure(plot(results["convergence"]), folder / "convergence")
        print("wrote", folder)


if __name__ == "__main__":
    main()
