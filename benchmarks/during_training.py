"""How does the kernel move while a network trains, and does its conditioning at initialisation last?

    python -m benchmarks.during_training            # all of it, 15 minutes on 2 cores; goes on where it was stopped
    python -m benchmarks.during_training --quick    # a small image and three variants, under a minute, nothing kept

Writes benchmarks/results/during_training/<device>/: results.json, and a figure for Adam and one for gradient descent
(adam, descent), each as PNG and SVG: moments, largest eigenvalues, alignment and drift of the kernel at steps 0, 1, 2,
4, 8 and so on, means over seeds with standard errors. Both optimizers see the whole image, its mean taken off, because
that would be most of the target's energy. The rate of gradient descent is half of the largest stable one of any seed.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats

import ntk_inr as ni
from benchmarks.keep import (
    ERRORS,
    Claim,
    Measure,
    Picture,
    Plain,
    Profile,
    collect,
    mean,
    profile_and_jobs,
    publish,
    verdict,
)
from ntk_inr.style import MARKERS, NEUTRAL, PALETTE, figure_style, pyplot


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a profile runs."""

    pixels: int = 32
    features: int = 64
    depth: int = 3
    seeds: int = 4
    steps: int = 1024
    variants: tuple[str, ...] = ("relu", "pe", "pe+sphere", "pe+hadamard", "siren", "finer", "rff", "fouriernet")


PROFILES: dict[Profile, Settings] = {
    "quick": Settings(12, 24, 1, 2, 32, ("relu", "pe+hadamard", "siren")),
    "cpu": Settings(),
    "gpu": Settings(48, 128, 3, 8, 8192),
}
RATE = 1e-3
ADAM = optax.adam(RATE)
OPTIMIZERS = {"adam": "Adam", "descent": "gradient descent"}
# Eigenpairs that are recorded, and how many of them "the top modes" are.
RECORDED, TOP = 32, 8
# A kernel that drifts less is constant; an order with a rank correlation above this persists; a change from start to
# end counts where it is beyond this relative size and ERRORS standard errors.
LAZY, PERSISTS, LEAST = 0.1, 0.8, 0.05
QUANTITIES = {
    "mean": ("mean", "mean eigenvalue / its start"),
    "variance": ("variance", "variance / its start"),
    "largest": ("λ₁", "λ₁ / its start"),
    "cv": ("cv", "cv of the eigenvalues"),
    "top_trace": ("top modes", f"share of the trace in the top {TOP}"),
    "target": ("alignment", "kernel-target alignment"),
    "residual": ("residual", f"share of the residual in the top {TOP}"),
    "drift": ("drift", "‖K − K₀‖ / ‖K₀‖"),
}
SHARES = {"top_trace", "target", "residual"}
# In place of yellow, which is hard to see as a line.
COLORS = [*PALETTE[:7], NEUTRAL]


def quantities(history: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    r"""Return what is looked at, an entry a record, of a recorder's history on n points.

    Alignment is :math:`\langle K, yy^\top\rangle / (\lVert K\rVert_F \lVert y\rVert^2)` over the recorded modes, which
    is a lower bound that what is left of the trace hardly moves.
    """
    average, variance, values = history["ntk_mean"], history["ntk_variance"], history["eigenvalues"]
    norm = np.sqrt(n * (variance + average**2))
    return {
        "mean": average / average[0],
        "variance": variance / variance[0],
        "largest": values[:, 0] / values[0, 0],
        "cv": history["ntk_cv"],
        "top_trace": values[:, :TOP].sum(axis=1) / (n * average),
        "target": (values * history["target_alignment"]).sum(axis=1) / norm,
        "residual": history["residual_alignment"][:, :TOP].sum(axis=1),
        "drift": history["drift"],
    }


def follow(network: tuple[Any, Any], x: Any, y: Any, optimizer: Any, steps: int) -> dict[str, Any]:
    """Train a network; return the quantities at each record, and how the run ended."""
    (apply, params), recorder = network, ni.Recorder(points=len(x), top=RECORDED)
    run = ni.fit(apply, params, x, y, optimizer=optimizer, steps=steps, recorder=recorder)
    found = quantities(recorder.history, len(x))
    return found | {"step": recorder.history["step"], "psnr": float(run.history["psnr"][-1]), "status": run.status}


def measure(name: str, x: Any, y: Any, settings: Settings) -> dict[str, dict[str, Any]]:
    """Follow one variant from every seed: by optimizer, quantities (seeds, records), "psnr" and "status" (seeds,)."""
    net = ni.variant(name, features=settings.features, depth=settings.depth)
    networks = [ni.init(net, jax.random.key(seed), x) for seed in range(settings.seeds)]
    kernels = [ni.kernels.training_kernel(apply, params, x) for apply, params in networks]
    rate = min(float(ni.max_learning_rate(kernel)) for kernel in kernels) / 2
    found: dict[str, dict[str, Any]] = {}
    for key, optimizer in {"adam": ADAM, "descent": optax.sgd(rate)}.items():
        runs = [follow(network, x, y, optimizer, settings.steps) for network in networks]
        # A run that diverged has fewer records.
        records = min(len(run["step"]) for run in runs)
        found[key] = {each: np.array([run[each][:records] for run in runs]) for each in QUANTITIES}
        found[key] |= {each: [run[each] for run in runs] for each in ("psnr", "status")}
        found[key] |= {"step": runs[0]["step"][:records], "rate": RATE if key == "adam" else rate}
    return found


def changes(found: dict[str, Any], quantity: str) -> dict[tuple[str, str], Measure]:
    """Return log2 of end over start of a quantity, by variant and optimizer."""
    cases = {(name, key): row[key][quantity] for name, row in found.items() for key in OPTIMIZERS}
    return {case: mean(np.log2(values[:, -1] / values[:, 0])) for case, values in cases.items()}


def directions(found: dict[str, Any], quantity: str, *keys: str) -> tuple[list[bool], list[bool]]:
    """Return whether a quantity rises, and whether it falls, in each case."""
    cases = [each for (_, key), each in changes(found, quantity).items() if key in keys]
    least = [max(ERRORS * each.error, np.log2(1 + LEAST)) for each in cases]
    pairs = list(zip(cases, least, strict=True))
    return [each.value > bound for each, bound in pairs], [each.value < -bound for each, bound in pairs]


def listed(found: dict[str, Any], texts: dict[tuple[str, str], str]) -> str:
    """Return what is said of each variant, by optimizer."""
    return "; ".join(
        f"{label}: {', '.join(f'{name} {texts[name, key]}' for name in found)}" for key, label in OPTIMIZERS.items()
    )


def judged(found: dict[str, Any], statement: str, quantity: str, *, rises: bool) -> Claim:
    """Judge whether a quantity rises (or else falls) from start to end, in every case."""
    up, down = directions(found, quantity, *OPTIMIZERS)
    factors = {case: (2**each.value, each.error * np.log(2)) for case, each in changes(found, quantity).items()}
    texts = {case: f"× {factor:.3g} ± {factor * error:.1g}" for case, (factor, error) in factors.items()}
    return Claim(
        statement,
        verdict(up if rises else down),
        f"end over start {listed(found, texts)}",
        f"By {100 * LEAST:g} % and {ERRORS:g} standard errors it rises in {sum(up)} and falls in {sum(down)} of "
        f"{len(up)} cases, a case being a variant under an optimizer.",
    )


def lazy(found: dict[str, Any]) -> Claim:
    """Judge whether the kernel is constant."""
    drifts = {(name, key): mean(row[key]["drift"][:, -1]) for name, row in found.items() for key in OPTIMIZERS}
    constant = [each.value + ERRORS * each.error < LAZY for each in drifts.values()]
    return Claim(
        "The kernel stays what it was at initialisation (lazy training)",
        verdict(constant),
        f"drift ‖K − K₀‖ / ‖K₀‖ {listed(found, {case: str(each) for case, each in drifts.items()})}",
        f"It stays below {LAZY:g} by {ERRORS:g} standard errors in {sum(constant)} of {len(constant)} cases.",
    )


def order(found: dict[str, Any], key: str) -> Measure:
    """Return Spearman's correlation over variants between cv at the start and at the end, under one optimizer."""
    start, end = (np.array([row[key]["cv"][:, at] for row in found.values()]) for at in (0, -1))
    return mean([scipy.stats.spearmanr(*columns).statistic for columns in zip(start.T, end.T, strict=True)])


def persists(found: dict[str, Any]) -> Claim:
    """Judge whether the variants' order by cv lasts."""
    rho = {key: order(found, key) for key in OPTIMIZERS}
    numbers = ", ".join(f"{label} {rho[key]}" for key, label in OPTIMIZERS.items())
    last = [each.value - ERRORS * each.error > PERSISTS for each in rho.values()]
    return Claim(
        "The order of networks by cv at initialisation is their order after training",
        verdict(last),
        f"Spearman's correlation of cv at start and end over {len(found)} variants: {numbers}",
        f"It counts as kept where the correlation is above {PERSISTS:g} by {ERRORS:g} standard errors.",
    )


def claims(found: dict[str, Any]) -> list[Claim]:
    """Return what the numbers say."""
    aligned = "The kernel turns towards the image (feature learning): its alignment with it grows"
    return [
        lazy(found),
        judged(found, "Training conditions the kernel better: cv falls", "cv", rises=False),
        judged(found, aligned, "target", rises=True),
        judged(found, "The largest eigenvalue grows (progressive sharpening)", "largest", rises=True),
        judged(found, "What is left of the residual leaves the top modes (spectral bias)", "residual", rises=False),
        persists(found),
    ]


def title(found: dict[str, Any], quantity: str, key: str) -> str:
    """Return what a panel shows."""
    name = QUANTITIES[quantity][0]
    if quantity == "drift":
        ends = [row[key]["drift"][:, -1].mean() for row in found.values()]
        return f"{name}: {min(ends):.2g} to {max(ends):.2g} at the end"
    up, down = directions(found, quantity, key)
    return f"{name}: rises in {sum(up)}, falls in {sum(down)} of {len(up)}"


def plot(found: dict[str, Any], key: str) -> Picture:
    """Draw each quantity over the step under one optimizer."""
    with figure_style():
        figure, axes = pyplot().subplots(2, 4, figsize=(14, 6), sharex=True)
        for axis, (quantity, (_, label)) in zip(axes.flat, QUANTITIES.items(), strict=True):
            for (name, row), color, marker in zip(found.items(), COLORS, MARKERS, strict=False):
                # The drift is zero at first, which a logarithm has no place for.
                first = int(quantity == "drift")
                values = row[key][quantity][:, first:]
                at, middle = np.maximum(row[key]["step"][first:], 0.5), values.mean(axis=0)
                error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
                axis.plot(at, middle, color=color, marker=marker, ms=3, lw=1.2, label=name)
                low = np.maximum(middle - error, middle / 10)
                axis.fill_between(at, low, middle + error, color=color, alpha=0.15, lw=0)
            axis.set(xscale="log", ylabel=label, title=title(found, quantity, key))
            if quantity not in SHARES:
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(Plain())
                axis.yaxis.set_minor_formatter(Plain(minor_thresholds=(1, 0.4)))
        for axis in axes[1]:
            axis.set_xlabel("step (step 0 at 1/2)")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(found))
    up, down = directions(found, "cv", key)
    turned, _ = directions(found, "target", key)
    finding = (
        f"Under {OPTIMIZERS[key]} cv falls in {sum(down)} and rises in {sum(up)} of {len(found)} variants, and the "
        f"kernel turns towards the image in {sum(turned)}; cv at start and end correlate by {order(found, key)}."
    )
    return Picture(figure, finding)


def main() -> None:
    """Measure, judge, and keep."""
    profile, jobs = profile_and_jobs(__doc__)
    settings = PROFILES[profile]
    task = ni.image_task("camera", size=settings.pixels, grey=True)
    x, y = jnp.asarray(task.x), jnp.asarray(task.y - task.y.mean())
    computes = {name: functools.partial(measure, name, x, y, settings) for name in settings.variants}

    def said(name: str, rows: dict[str, Any]) -> str:
        ends = [
            f"{OPTIMIZERS[key]}: cv {row['cv'].mean(axis=0)[0]:.3g} → {row['cv'].mean(axis=0)[-1]:.3g}, "
            f"{np.mean(row['psnr']):.1f} dB"
            for key, row in rows.items()
        ]
        return f"{name}, {'; '.join(ends)}"

    found = collect("during_training", profile, settings, computes, said, jobs)
    publish(
        "during_training",
        profile,
        settings={**dataclasses.asdict(settings), "adam_rate": RATE, "recorded": RECORDED, "top": TOP},
        measured=found,
        claims=claims(found),
        pictures={key: plot(found, key) for key in OPTIMIZERS},
    )


if __name__ == "__main__":
    main()
