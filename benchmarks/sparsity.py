"""Does keeping the k largest units suppress the variance of the kernel as k squared, and what does it do to training?

    python -m benchmarks.sparsity            # three inputs, three networks, four k, about 8 minutes on 2 cores
    python -m benchmarks.sparsity --quick    # two inputs, networks, gates and k, under a minute, nothing kept

Writes benchmarks/results/sparsity/<device>/: results.json; kernel_<depth>x<width>.png, variance, mean, cv and condition
number over k with the variance's exponents; training.png, PSNR over k. Kernels are in float64. Two-layer networks train
their first layer and have closed forms; deeper ones are coordinate networks that train everything.
"""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntk_inr as ni
from benchmarks.keep import (
    ERRORS,
    Claim,
    Measure,
    Picture,
    Profile,
    chosen_profile,
    decibels_of,
    mean,
    publish,
    up_to_exact,
    verdict,
)
from ntk_inr.study.candidate import kernel_in_float64
from ntk_inr.study.figures import end_at_exact
from ntk_inr.style import MARKERS, MEASURED, PALETTE, figure_style, pyplot

GATES: dict[str, dict[str, Any]] = {
    "TopK": {"mode": "hard"},
    "TopK-SP": {"mode": "sphere"},
    "soft-TopK": {"mode": "soft", "temperature": 0.1},
}
# Ways for a soft gate to keep the signal in a deep network.
MENDS: dict[str, dict[str, Any]] = {
    "shrinkage, the default": {},
    "shrinkage after a sphere": {"normalization": ni.Sphere("hidden_pre")},
    "gated": {"soft": "gated"},
    "straight-through": {"soft": "straight_through"},
}
METRICS = {
    "variance": "variance of eigenvalues",
    "mean": "mean of eigenvalues",
    "cv": "cv of eigenvalues",
    "condition": "condition number",
}
TRAINED = "encoded pixels"
BANDS, LEARNING_RATE = 6, 1e-3
# An exponent is about quadratic from here, theory's is met within this, and two cv are the same within this share.
QUADRATIC, EXPONENT_APART, SAME = 1.75, 0.1, 0.05
# A kernel sees the inputs below this share of the largest cv.
SEEING = 0.9


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes: pixels a side; dimension of random directions; networks are depth and width, shares m / k."""

    side: int
    dimension: int
    inputs: tuple[str, ...]
    gates: tuple[str, ...]
    networks: tuple[tuple[int, int], ...]
    shares: tuple[int, ...]
    seeds: int
    steps: int  # of training, which the last network gets
    fits: int  # seeds of training


INPUTS, ALL = ("random directions", TRAINED, "pixels"), tuple(GATES)
PROFILES: dict[Profile, Settings] = {
    "quick": Settings(8, 4 * BANDS, INPUTS[:2], ALL[:2], ((1, 64), (2, 32)), (8, 4), 2, 20, 2),
    "cpu": Settings(16, 96, INPUTS, ALL, ((1, 256), (1, 4096), (3, 256)), (32, 16, 8, 4), 8, 300, 3),
    "gpu": Settings(32, 384, INPUTS, ALL, ((1, 256), (1, 4096), (2, 256), (4, 256)), (64, 32, 16, 8, 4), 8, 1000, 5),
}


def inputs(settings: Settings) -> dict[str, np.ndarray]:
    """Return side² rows of each kind, of mean square 1 an entry, so that one temperature suits all."""
    pixels = ni.image_task("camera", size=settings.side, grey=True).x
    directions = np.random.default_rng(0).standard_normal((len(pixels), settings.dimension))
    made: dict[str, np.ndarray] = {
        "random directions": directions / np.linalg.norm(directions, axis=1, keepdims=True),
        "encoded pixels": np.asarray(ni.NeRFEncoding(bands=BANDS).apply({}, jnp.asarray(pixels))),
        "pixels": np.concatenate([pixels, np.ones_like(pixels[:, :1])], axis=1),
    }
    return {name: (made[name] / np.sqrt((made[name] ** 2).mean())).astype(np.float32) for name in settings.inputs}


def mean_squared_cosine(x: np.ndarray) -> float:
    """Return the mean over pairs of rows."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return float(((unit @ unit.T) ** 2)[~np.eye(len(x), dtype=bool)].mean())


def network(depth: int, width: int, x: np.ndarray, sparsity: ni.TopK | None, normalization: Any = None) -> Any:
    """Return the two-layer network of the closed forms, or a deeper coordinate network."""
    if depth > 1:
        return ni.CoordinateMLP(features=width, depth=depth, sparsity=sparsity, normalization=normalization)
    return ni.networks.two_layer_network(width, sparsity=sparsity, weight_std=x.shape[1] ** -0.5)


def closed_form(x: np.ndarray, width: int, sparsity: ni.TopK) -> dict[str, Any]:
    """Return the moments of a two-layer network's eigenvalues as theory has them, in float64."""
    with jax.enable_x64(True):
        points = jnp.asarray(x, jnp.float64)
        form = ni.two_layer_moments(points, width=width, sparsity=sparsity, weight_std=x.shape[1] ** -0.5)
        return {name: float(getattr(form, name)) for name in ("mean", "variance", "cv")} | {"status": form.status}


def measured_cell(x: np.ndarray, net: Any, seeds: int) -> dict[str, Any]:
    """Return the moments and the condition number of the kernel, a value a seed."""
    cell: dict[str, Any] = {name: [] for name in ("mean", "variance", "cv", "condition", "resolved")}
    for seed in range(seeds):
        kernel = kernel_in_float64(*ni.init(net, jax.random.key(seed), x), x)
        moments, condition = ni.moments(kernel), ni.condition_number(kernel)
        found = (moments.mean, moments.variance, moments.cv, condition.value, condition.resolved)
        for kept, value in zip(cell.values(), found, strict=True):
            kept.append(value.item())
    return cell


def psnr(settings: Settings, x: np.ndarray, net: Any) -> list[float]:
    """Return what a network reaches on the image, in dB, a value a seed."""
    y = ni.image_task("camera", size=settings.side, grey=True).y
    reached = []
    for seed in range(settings.fits):
        apply, params = ni.init(net, jax.random.key(seed), x)
        run = ni.fit(apply, params, x, y, optimizer=optax.adam(LEARNING_RATE), steps=settings.steps)
        reached.append(float(run.psnr[-1]))
    return reached


def mended(settings: Settings, x: np.ndarray) -> dict[str, Any]:
    """Return cv and PSNR of the deepest network with the fewest units, by how its soft gate keeps the signal."""
    depth, width = settings.networks[-1]
    found = {}
    for name, change in MENDS.items():
        sparsity = ni.TopK(width // settings.shares[0], **GATES["soft-TopK"], soft=change.get("soft", "shrinkage"))
        net = network(depth, width, x, sparsity, change.get("normalization"))
        cv = measured_cell(x, net, settings.fits)["cv"]
        found[name] = {"k": sparsity.k, "rows": len(x), "cv": cv, "psnr": psnr(settings, x, net)}
        print(f"soft-TopK, {name}", flush=True)
    return found


def measure(settings: Settings) -> dict[str, Any]:
    """Return the kernels' figures and closed forms by inputs, network, gate and k, and what training reaches."""
    points = inputs(settings)
    found: dict[str, Any] = {
        "mean_squared_cosine": {kind: mean_squared_cosine(x) for kind, x in points.items()},
        "cells": [],
        "training": [],
        "dense_psnr": psnr(settings, points[TRAINED], network(*settings.networks[-1], points[TRAINED], None)),
        "mended": mended(settings, points[TRAINED]),
    }
    for (depth, width), (kind, x), gate in itertools.product(settings.networks, points.items(), settings.gates):
        for share in settings.shares:
            sparsity = ni.TopK(width // share, **GATES[gate])
            cell = {"inputs": kind, "depth": depth, "width": width, "gate": gate, "k": width // share}
            net = network(depth, width, x, sparsity)
            cell |= measured_cell(x, net, settings.seeds)
            cell["closed_form"] = closed_form(x, width, sparsity) if depth == 1 else {}
            found["cells"].append(cell)
            if kind == TRAINED and (depth, width) == settings.networks[-1]:
                reached = psnr(settings, x, net)
                found["training"].append({key: cell[key] for key in ("gate", "k", "width", "cv")} | {"psnr": reached})
        print(f"{kind}, {title(depth, width)}, {gate}: {len(settings.shares)} k", flush=True)
    return found


def title(depth: int, width: int) -> str:
    """Return a network in words."""
    return f"{depth} x {width}"


def line(found: dict[str, Any], kind: str, depth: int, width: int, gate: str) -> list[dict[str, Any]]:
    """Return what was measured of one gate in one network, smallest k first."""
    return [
        cell
        for cell in found["cells"]
        if (cell["inputs"], cell["depth"], cell["width"], cell["gate"]) == (kind, depth, width, gate)
    ]


def slope(cells: list[dict[str, Any]], values: Any) -> Any:
    """Return p of values ~ k^p by log-log least squares, for each column of the values."""
    return np.polyfit(np.log([cell["k"] for cell in cells]), np.log(values), 1)[0]


def exponent(cells: list[dict[str, Any]], metric: str) -> Measure:
    """Return p of what was measured."""
    return mean(slope(cells, [cell[metric] for cell in cells]))


def closed_exponent(cells: list[dict[str, Any]]) -> float:
    """Return p of the variance that closed forms give."""
    return float(slope(cells, [cell["closed_form"]["variance"] for cell in cells]))


def cases(found: dict[str, Any], settings: Settings, gate: str) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of a gate by inputs and network, in words."""
    return {
        f"{kind}, {title(*network)}": line(found, kind, *network, gate)
        for kind, network in itertools.product(settings.inputs, settings.networks)
    }


def suppression(found: dict[str, Any], settings: Settings, gate: str, statement: str, why: str) -> Claim:
    """Judge whether the variance falls about as k squared or faster."""
    powers = {case: exponent(cells, "variance") for case, cells in cases(found, settings, gate).items()}
    holds = {case: p - ERRORS * error >= QUADRATIC for case, (p, error) in powers.items()}
    cosines = ", ".join(f"{value:.2g} for {kind}" for kind, value in found["mean_squared_cosine"].items())
    return Claim(
        statement,
        verdict([*holds.values()]),
        f"exponent of k (above {QUADRATIC} by {ERRORS:g} standard errors in {sum(holds.values())} of {len(holds)}): "
        + "; ".join(f"{case}: {power}" for case, power in powers.items()),
        f"{why} Mean squared cosine of the inputs: {cosines}.",
    )


def grows(found: dict[str, Any], settings: Settings, metric: str) -> Claim:
    """Judge whether a metric of TopK-SP falls with k."""
    holds, said = [], []
    for case, cells in cases(found, settings, "TopK-SP").items():
        power = exponent(cells, metric)
        resolved = metric != "condition" or all(all(cell["resolved"]) for cell in cells)
        holds.append(resolved and power.value - ERRORS * power.error > 0)
        said.append(f"{case}: {power}" + " (lower bounds)" * (not resolved))
    return Claim(
        f"Fewer units of TopK-SP lower the {METRICS[metric]}",
        verdict(holds),
        f"exponent of k, positive by {ERRORS:g} standard errors in {sum(holds)} of {len(holds)}: " + "; ".join(said),
        "In the limit cv can't rise as k falls, (7.4); at finite k the norms of few survivors vary, (7.10).",
    )


def same_cv(found: dict[str, Any], settings: Settings) -> Claim:
    """Judge whether the sphere leaves the cv of TopK as it is."""
    holds, ratios = [], []
    hard, sphere = (cases(found, settings, gate).values() for gate in ("TopK", "TopK-SP"))
    for before, after in zip(itertools.chain(*hard), itertools.chain(*sphere), strict=True):
        log, error = mean(np.log(after["cv"]) - np.log(before["cv"]))
        holds.append(abs(log) <= max(ERRORS * error, SAME))
        ratios.append(float(np.exp(log)))
    return Claim(
        "Beside TopK, TopK-SP changes the kernel's scale and not its cv (7.7)",
        verdict(holds),
        f"cv times {min(ratios):.2f} to {max(ratios):.2f}; within {SAME:.0%} or {ERRORS:g} standard errors of 1 in "
        f"{sum(holds)} of {len(holds)}",
        "The theory is of infinite width, equal norms and two layers.",
    )


def closed_forms_agree(found: dict[str, Any], settings: Settings) -> Claim:
    """Judge whether closed forms tell the exponents of two-layer networks."""
    holds, apart = [], []
    for gate in settings.gates:
        for case, cells in cases(found, settings, gate).items():
            if cells[0]["depth"] == 1:
                power, theory = exponent(cells, "variance"), closed_exponent(cells)
                off = abs(power.value - theory)
                holds.append(off <= max(ERRORS * power.error, EXPONENT_APART))
                apart.append((off, f"{power} where theory has {theory:.2f}, {gate}, {case}"))
    return Claim(
        "Closed forms give the exponents of two-layer networks (T7)",
        verdict(holds),
        f"within {EXPONENT_APART} or {ERRORS:g} standard errors in {sum(holds)} of {len(holds)}; farthest "
        f"{max(apart)[1]}",
        "They are of first order in 1/m for TopK and TopK-SP, and limits for soft-TopK.",
    )


def slope_of_psnr(found: dict[str, Any], gate: str) -> Measure:
    """Return dB gained by halving k."""
    runs = [run for run in found["training"] if run["gate"] == gate]
    return mean(-np.polyfit(np.log2([run["k"] for run in runs]), up_to_exact([run["psnr"] for run in runs]), 1)[0])


def training_helps(found: dict[str, Any], settings: Settings) -> Claim:
    """Judge whether sparser gates, whose kernels vary less, train to better fits."""
    slopes = {gate: slope_of_psnr(found, gate) for gate in settings.gates}
    dense = decibels_of(found["dense_psnr"], error=True, unit=" dB")
    best = max(found["training"], key=lambda run: up_to_exact(run["psnr"]).mean())
    reached = decibels_of(best["psnr"], error=True, unit=" dB")
    return Claim(
        "Less variance by fewer units means better fits",
        verdict([gain - ERRORS * error > 0 for gain, error in slopes.values()]),
        "dB for each halving of k: "
        + ", ".join(f"{gate} {gain:+.2f} ± {error:.2f}" for gate, (gain, error) in slopes.items())
        + f"; best {best['gate']} with k = {best['k']}, {reached}, without a gate {dense} "
        f"({settings.steps} steps of Adam, {title(*settings.networks[-1])})",
        "Adam rescales gradients, so the kernel's scale counts for less; fewer units also leave fewer to fit with.",
    )


def keeps_the_signal(found: dict[str, Any], settings: Settings) -> Claim:
    """Judge whether a deep kernel sees more of the inputs than a constant, whose cv is sqrt(n - 1), the largest."""
    said, seeing = [], []
    for name, way in found["mended"].items():
        cv, error = mean(way["cv"])
        most = float(np.sqrt(way["rows"] - 1))
        seeing.append(cv < SEEING * most)
        reached = decibels_of(way["psnr"], error=True, unit=" dB")
        said.append(f"{name}: cv {cv:.3g} ± {error:.1g} of at most {most:.3g}, {reached}")
    depth, width = settings.networks[-1]
    return Claim(
        f"Soft-TopK with few units (k/m = 1/{settings.shares[0]}) keeps the signal in a deep network",
        verdict(seeing),
        f"{title(depth, width)}, {settings.steps} steps of Adam: " + "; ".join(said),
        "Shrinkage takes the threshold off what passes, so that each layer shrinks the signal, and where it is smaller "
        "than the temperature by the factor k/m, until all that trains is the readout's bias. A sphere before the "
        "gate, or a gate that passes the units themselves, mends it.",
    )


def claims(found: dict[str, Any], settings: Settings) -> list[Claim]:
    """Return what the numbers say."""
    judged = [
        ("TopK-SP", "TopK-SP, of radius sqrt(m), suppresses the variance about quadratically in k (paper)",
         "Theory of two layers: 2 or more for nearly orthogonal inputs, (7.8), less for similar ones; narrow layers "
         "add a floor of order 1/m, (7.5). Deeper networks train their readout, too: the sphere fixes the norm of what "
         "enters it, so that its part of the kernel falls by overlaps alone."),
        ("TopK", "TopK suppresses the variance at least about quadratically in k (7.4)",
         "For all inputs, in the limit of two layers: the mean falls as k, and cv doesn't rise."),
        ("soft-TopK", "Soft-TopK suppresses the variance at least about quadratically in k, as TopK does",
         "Its kernel tends to that of TopK as the temperature falls."),
    ]  # fmt: skip
    return [
        *(suppression(found, settings, *each) for each in judged if each[0] in settings.gates),
        same_cv(found, settings),
        grows(found, settings, "cv"),
        grows(found, settings, "condition"),
        closed_forms_agree(found, settings),
        training_helps(found, settings),
        keeps_the_signal(found, settings),
    ]


def kernel_picture(found: dict[str, Any], settings: Settings, network: tuple[int, int]) -> Picture:
    """Draw variance, mean, cv and condition number of one network over k, beside closed forms."""
    powers = {kind: exponent(line(found, kind, *network, "TopK-SP"), "variance") for kind in settings.inputs}
    finding = f"TopK-SP, {title(*network)}: variance as k to the power " + ", ".join(
        f"{power} ({kind})" for kind, power in powers.items()
    )
    rows, columns = len(METRICS), len(settings.inputs)
    with figure_style():
        figure, axes = pyplot().subplots(
            rows, columns, figsize=(4 * columns, 2.4 * rows), sharex=True, sharey="row", squeeze=False
        )
        # An error stays beside its value.
        figure.suptitle(textwrap.fill(finding.replace(" ± ", "\xa0±\xa0"), 40 * columns), fontweight="bold")
        for (row, metric), (column, kind) in itertools.product(enumerate(METRICS), enumerate(settings.inputs)):
            axis = axes[row, column]
            for gate, color, marker in zip(settings.gates, PALETTE, MARKERS, strict=False):
                cells = line(found, kind, *network, gate)
                closed = [cell["closed_form"][metric] for cell in cells if metric in cell["closed_form"]]
                label = gate
                if metric == "variance":
                    label = f"{gate}: p = {exponent(cells, metric)}"
                    label += f", theory {closed_exponent(cells):.2f}" if closed else ""
                over_k(axis, cells, metric, color, marker, label, "none" if closed else "-")
                if closed:
                    axis.plot([cell["k"] / cell["width"] for cell in cells], closed, "--", color=color)
            axis.set(yscale="log", title=kind if row == 0 else "")
            if metric == "variance":
                axis.legend(fontsize=7)
            axes[row, 0].set_ylabel(METRICS[metric])
        for axis in axes[-1]:
            label_shares(axis, settings)
    return Picture(figure, finding + "; markers are measured, dashed lines closed forms.")


def over_k(axis: Any, cells: list[dict[str, Any]], metric: str, color: str, marker: str, label: str, ls: str) -> None:
    """Draw means and standard errors over k/m."""
    middle, errors = np.transpose([mean(cell[metric]) for cell in cells])
    shares = [cell["k"] / cell["width"] for cell in cells]
    axis.errorbar(shares, middle, errors, color=color, marker=marker, label=label, ls=ls, capsize=2, ms=5)


def label_shares(axis: Any, settings: Settings) -> None:
    """Label k/m."""
    axis.set_xscale("log")
    axis.set_xticks([1 / share for share in settings.shares], [f"1/{share}" for share in settings.shares])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("k / m, share of units that pass")


def training_picture(found: dict[str, Any], settings: Settings) -> Picture:
    """Draw PSNR over k, and over the cv of the kernel at initialisation."""
    runs = found["training"]
    runs = [run | {"psnr": up_to_exact(run["psnr"]).tolist()} for run in runs]
    cv, reached = (np.array([np.mean(run[name]) for run in runs]) for name in ("cv", "psnr"))
    rho = float(np.corrcoef(cv.argsort().argsort(), reached.argsort().argsort())[0, 1])
    gains = {gate: slope_of_psnr(found, gate).value for gate in settings.gates}
    finding = "Halving k changes PSNR by " + ", ".join(f"{gain:+.1f} dB ({gate})" for gate, gain in gains.items())
    with figure_style():
        figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4), sharey=True)
        figure.suptitle(finding, fontweight="bold")
        for gate, color, marker in zip(settings.gates, PALETTE, MARKERS, strict=False):
            own = [run for run in runs if run["gate"] == gate]
            over_k(left, own, "psnr", color, marker, gate, "-")
            values, errors = np.transpose([mean(run["psnr"]) for run in own])
            right.errorbar([np.mean(run["cv"]) for run in own], values, errors, color=color, marker=marker, ls="none")
        dense, error = mean(up_to_exact(found["dense_psnr"]))
        left.axhline(dense, color=MEASURED, ls="--", label="no gate")
        left.axhspan(dense - error, dense + error, color=MEASURED, alpha=0.15, lw=0)
        label_shares(left, settings)
        left.set_title(f"Camera, {title(*settings.networks[-1])}, Adam")
        left.set_ylabel(f"PSNR after {settings.steps} steps, dB")
        left.legend()
        end_at_exact(left)
        right.set(xlabel="cv of eigenvalues at initialisation", title=f"Rank correlation of cv and PSNR: {rho:+.2f}")
    return Picture(figure, f"{finding}; rank correlation of PSNR with cv {rho:+.2f}.")


def main() -> None:
    """Measure, judge, draw and keep."""
    profile = chosen_profile(__doc__)
    settings = PROFILES[profile]
    found = measure(settings)
    shared = {"image": "camera", "bands": BANDS, "gates": GATES, "learning_rate": LEARNING_RATE, "dtype": "float64"}
    publish(
        "sparsity",
        profile,
        settings=dataclasses.asdict(settings) | shared,
        measured=found,
        claims=claims(found, settings),
        pictures={
            **{f"kernel_{n[0]}x{n[1]}": kernel_picture(found, settings, n) for n in settings.networks},
            "training": training_picture(found, settings),
        },
    )


if __name__ == "__main__":
    main()
