"""Do normalization and modulation make training stable, and does the kernel tell the largest stable learning rate?

    python -m benchmarks.stability            # all of it, about 10 minutes on 2 cores; goes on where it was stopped
    python -m benchmarks.stability --quick    # a small image and three variants, under a minute, nothing kept

Writes benchmarks/results/stability/<device>/: results.json, sensitivity (PSNR after a fixed number of Adam steps over
seeds and learning rates) and stable_rate (the largest stable rate of full-batch gradient descent, found by bisection
of real runs, beside 2 n c / lambda_max of the kernel at initialisation, T10.2), each as PNG and SVG. Several rates are
tried at once, so a round of the bisection cuts its bracket by more than two. Errors are standard errors.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import ntk_inr as ni
from benchmarks.keep import (
    ERRORS,
    Claim,
    Measure,
    Picture,
    Profile,
    collect,
    judged,
    mean,
    profile_and_jobs,
    publish,
    up_to_exact,
    verdict,
)
from ntk_inr.study.candidate import training_kernel_in_float64
from ntk_inr.study.figures import end_at_exact
from ntk_inr.style import FAST, MARKERS, NEUTRAL, PALETTE, PREDICTED, figure_style, pyplot


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a profile runs: ``per_decade`` learning rates of Adam, ``rounds`` of bisection."""

    pixels: int = 32
    features: int = 64
    depth: int = 3
    seeds: int = 10
    steps: int = 250
    per_decade: int = 3
    descent_seeds: int = 4
    descent_steps: int = 100
    rounds: int = 3
    variants: tuple[str, ...] = ("relu", "pe", "pe+sphere", "pe+layer", "pe+hadamard", "pe+sphere+hadamard", "siren")


PROFILES: dict[Profile, Settings] = {
    "quick": Settings(12, 32, 1, 3, 40, 1, 2, 40, 2, ("pe", "pe+sphere", "pe+hadamard")),
    "cpu": Settings(),
    "gpu": Settings(48, 128, 3, 20, 1000, 6, 8, 300),
}
# Exponents of Adam's rates; one of them is what most people begin with.
LOW, HIGH, USUAL = -5, 0, -3
CLOSE_DB = 1.0
# Bisection begins with a bracket from 2**-REACH to 2**REACH times the kernel's rate, and tries INNER rates a round.
REACH, INNER = 5.0, 7
# A kernel whose largest eigenvalue grew by more is no network's that learned something.
BLOWN = 1e3
# A predicted rate is right within this relative error.
RELATIVE = 0.2
PAIRS = {
    "Normalization": [("pe", "pe+sphere"), ("pe", "pe+layer"), ("pe+hadamard", "pe+sphere+hadamard")],
    "Modulation": [("pe", "pe+hadamard"), ("pe+sphere", "pe+sphere+hadamard")],
}
CRITERIA = {"never_above": "loss never above its start", "ends_below": "loss ends below its start"}


def spread(values: Any) -> Measure:
    """Return the standard deviation over seeds, with the error that it has for normal values."""
    deviation = float(np.std(values, ddof=1))
    return Measure(deviation, deviation / np.sqrt(2 * (len(values) - 1)))


def clearly_below(a: Measure, b: Measure) -> bool:
    """Return whether a lies below b by ERRORS standard errors of the difference."""
    return b.value - a.value > ERRORS * float(np.hypot(a.error, b.error))


def at_own_rate(base: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return ``base`` times a rate that lies beside the network's parameters: all rates share one compilation."""

    def update(gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = base.update(gradient["net"], state, params["net"])
        scaled = jax.tree.map(lambda leaf: params["rate"] * leaf, updates)
        return {"net": scaled, "rate": jnp.zeros_like(params["rate"])}, state

    return optax.GradientTransformation(lambda params: base.init(params["net"]), update)


ADAM, DESCENT = at_own_rate(optax.adam(1.0)), at_own_rate(optax.sgd(1.0))


def _of_net(apply: Any, params: Any, x: Any) -> Any:
    return apply(params["net"], x)


def trained(
    networks: Any, task: Any, rates: np.ndarray, optimizer: Any, steps: int
) -> list[list[ni.training.FitResult]]:
    """Train each seed of ``(apply, params)`` at each of its rates (seeds, k), all at once."""
    seeds, k = rates.shape
    apply, params = jax.tree.map(lambda leaf: jnp.repeat(leaf[:seeds], k, axis=0), networks)
    stacked = {"net": params, "rate": jnp.asarray(rates.ravel(), jnp.float32)}
    runs = ni.fit_seeds(Partial(_of_net, apply), stacked, task.x, task.y, optimizer=optimizer, steps=steps)
    return [runs[i : i + k] for i in range(0, len(runs), k)]


def final_psnr(run: ni.training.FitResult) -> float:
    """Return the PSNR at the end in dB; 0, that of an error as large as the range, where there is worse or none."""
    return 0.0 if run.status == "diverged" else max(0.0, float(run.history["psnr"][-1]))


def tolerance(exponents: np.ndarray, psnr: np.ndarray) -> float:
    """Return how many decades of rates come within CLOSE_DB of the best, PSNR interpolated between them."""
    curve = np.interp(np.linspace(LOW, HIGH, 2001), exponents, psnr)
    return float((curve > curve.max() - CLOSE_DB).mean() * (HIGH - LOW))


def stable(run: ni.training.FitResult, criterion: str) -> bool:
    """Return whether a run of gradient descent is stable by one of CRITERIA."""
    start = run.history["loss"][0]
    # Rounding may raise the loss of a run that hardly moves.
    calm = run.losses.max() <= start * (1 + 1e-5) if criterion == "never_above" else run.history["loss"][-1] < start
    return run.status == "finished" and bool(calm)


def bisected(networks: Any, task: Any, predicted: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray, Any]:
    """Bisect for log2 of the largest stable rate over ``predicted`` (seeds,).

    Returns:
        The ends of the brackets (seeds, criteria): the largest that is stable and the least that is not. And, of each
        seed, the parameters after its largest run that is stable by the last criterion, None where there is none.
    """
    seeds = len(predicted)
    lower, upper = np.full((seeds, len(CRITERIA)), -REACH), np.full((seeds, len(CRITERIA)), REACH)
    ends: list[Any] = [None] * seeds
    for _ in range(settings.rounds):
        edges = np.linspace(lower, upper, INNER + 2, axis=-1)
        rates = predicted[:, None] * 2 ** edges[..., 1:-1].reshape(seeds, -1)
        runs = trained(networks, task, rates, DESCENT, settings.descent_steps)
        tried = [[row[INNER * j : INNER * (j + 1)] for j in range(len(CRITERIA))] for row in runs]
        passed = [[[stable(run, c) for run in part] for c, part in zip(CRITERIA, row, strict=True)] for row in tried]
        # Up to the first rate that is unstable, whatever larger ones do.
        count = np.cumprod(passed, axis=-1).sum(axis=-1)[..., None]
        lower, upper = (np.take_along_axis(edges, count + shift, axis=-1)[..., 0] for shift in (0, 1))
        for seed, last in enumerate(count[:, -1, 0]):
            ends[seed] = tried[seed][-1][last - 1].params["net"] if last else ends[seed]
    return lower, upper, ends


def measure(name: str, task: Any, settings: Settings, exponents: np.ndarray) -> dict[str, Any]:
    """Measure one variant: PSNR of Adam over seeds and rates, stable rates of gradient descent beside the kernel's."""
    net, x = ni.variant(name, features=settings.features, depth=settings.depth), jnp.asarray(task.x)
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    networks = jax.jit(jax.vmap(lambda key: ni.init(net, key, x)))(keys)
    sweep = trained(networks, task, np.tile(10.0**exponents, (settings.seeds, 1)), ADAM, settings.steps)
    psnr = np.array([[final_psnr(run) for run in row] for row in sweep])
    best, usual = int(psnr.mean(axis=0).argmax()), int(np.abs(exponents - USUAL).argmin())

    def limit(apply: Any, params: Any) -> float:
        return np.nan if params is None else float(ni.max_learning_rate(training_kernel_in_float64(apply, params, x)))

    few = [jax.tree.map(lambda leaf, s=s: leaf[s], networks) for s in range(settings.descent_seeds)]
    predicted = np.array([limit(apply, params) for apply, params in few])
    lower, upper, ends = bisected(networks, task, predicted, settings)
    at_end = np.array([limit(apply, end) for (apply, _), end in zip(few, ends, strict=True)])
    outside = (lower == -REACH) | (upper == REACH)
    return {
        "psnr": psnr,
        "best_rate": float(10 ** exponents[best]),
        "psnr_at_best": mean(psnr[:, best]),
        "spread_at_best": spread(up_to_exact(psnr[:, best])),
        "spread_at_usual": spread(up_to_exact(psnr[:, usual])),
        "decades": mean([tolerance(exponents, row) for row in psnr]),
        "predicted_rate": predicted,
        "largest_stable_rate": {key: predicted * 2 ** lower[:, j] for j, key in enumerate(CRITERIA)},
        "ratio": {key: mean(2 ** lower[:, j]) for j, key in enumerate(CRITERIA)},
        "resolution": float(2 ** (upper - lower).max() - 1),
        "seeds_outside_bracket": {key: int(outside[:, j].sum()) for j, key in enumerate(CRITERIA)},
        "limit_at_end_over_start": at_end / predicted,
        "rate_over_limit_at_end": predicted * 2 ** lower[:, -1] / at_end,
    }


def sensitivity(found: dict[str, Any], component: str, to: str, keys: dict[str, str], *, lowers: bool) -> Claim:
    """Judge whether a component lowers (or else raises) what lies under ``keys``, in each of its pairs."""
    pairs = [pair for pair in PAIRS[component] if set(pair) <= set(found)]
    falls, rises, numbers = [], [], []
    for key, unit in keys.items():
        falls += [clearly_below(found[b][key], found[a][key]) for a, b in pairs]
        rises += [clearly_below(found[a][key], found[b][key]) for a, b in pairs]
        texts = [f"{a} → {b} {found[a][key]} → {found[b][key]}" for a, b in pairs]
        numbers.append(f"{unit}: {', '.join(texts)}")
    better, worse = (falls, rises) if lowers else (rises, falls)
    return Claim(
        f"{component} makes training less sensitive to the {to}",
        judged(better, worse),
        "; ".join(numbers),
        f"By {ERRORS:g} standard errors it does in {sum(better)} of {len(better)} comparisons, and the opposite "
        f"in {sum(worse)}.",
    )


def predicts(ratio: Measure) -> bool:
    """Return whether a ratio of measured to predicted is 1 within RELATIVE."""
    return abs(ratio.value - 1) <= RELATIVE


def rate_claim(found: dict[str, Any], criterion: str, statement: str, why: str) -> Claim:
    """Judge whether the kernel at initialisation predicts the largest rate that is stable by a criterion."""
    ratios = {name: row["ratio"][criterion] for name, row in found.items()}
    bounds = {name for name, row in found.items() if row["seeds_outside_bracket"][criterion]}
    numbers = [f"{name} {ratio}{' (a bound)' if name in bounds else ''}" for name, ratio in ratios.items()]
    wrong = [name for name, ratio in ratios.items() if not predicts(ratio)]
    return Claim(
        f"{statement} (T10.2)",
        verdict([name not in wrong for name in ratios]),
        f"measured / predicted: {', '.join(numbers)}",
        f"Off by more than {100 * RELATIVE:g} %: {', '.join(wrong) or 'none'}. {why}",
    )


def claims(found: dict[str, Any]) -> list[Claim]:
    """Return what the numbers say."""
    seeds = {"spread_at_best": "dB of PSNR over seeds at the best rate", "spread_at_usual": f"at 1e{USUAL}"}
    rates = {"decades": f"decades within {CLOSE_DB:g} dB of the best"}
    resolution = max(row["resolution"] for row in found.values())
    grown = {name: 1 / np.nanmedian(row["limit_at_end_over_start"]) for name, row in found.items()}
    blown = [f"{name} (by a factor of {grown[name]:.0e})" for name in found if grown[name] > BLOWN]
    whole = {name: row for name, row in found.items() if grown[name] <= BLOWN}
    moved = ", ".join(f"{name} {np.nanmean(row['limit_at_end_over_start']):.2g}" for name, row in whole.items())
    edge = ", ".join(f"{name} {np.nanmean(row['rate_over_limit_at_end']):.2f}" for name, row in whole.items())
    why = (
        f"After the largest stable run 2 n c / λmax, as a multiple of its value at the start, is {moved}: where it is "
        "above 1 the kernel gave way before the loss had grown for good. The rate of that run, as a multiple of "
        f"2 n c / λmax then, is {edge}, where 1 is the edge of stability."
    )
    if blown:
        why += f" The kernel grew out of bounds where the loss still ended below its start: {', '.join(blown)}."
    return [
        *[sensitivity(found, each, "seed", seeds, lowers=True) for each in PAIRS],
        *[sensitivity(found, each, "learning rate", rates, lowers=False) for each in PAIRS],
        rate_claim(
            found,
            "never_above",
            "The kernel at initialisation tells the largest rate at which the loss never rises above its start",
            f"Found by bisection of full-batch gradient descent to {100 * resolution:.0f} %.",
        ),
        rate_claim(found, "ends_below", "At rates above the kernel's, training ends above its start or diverges", why),
    ]


def plot_sensitivity(found: dict[str, Any], exponents: np.ndarray, steps: int) -> Picture:
    """Draw PSNR over the rate, and what it says of seeds and of rates."""
    highest = {name: up_to_exact(row["psnr"]).mean(axis=0).max() for name, row in found.items()}
    best = ", ".join(name for name in found if highest[name] == max(highest.values()))
    least = min(found, key=lambda name: found[name]["spread_at_best"].value)
    widest = max(found, key=lambda name: found[name]["decades"].value)
    lines = [
        (1, "spread_at_best", -0.12, FAST, "at the best rate"),
        (1, "spread_at_usual", 0.12, PREDICTED, f"at rate 1e{USUAL}"),
        (2, "decades", 0, FAST, None),
    ]
    with figure_style():
        figure, axes = pyplot().subplots(1, 3, figsize=(13, 4), width_ratios=[1.5, 1, 1])
        for (name, row), color, marker in zip(found.items(), PALETTE, MARKERS, strict=False):
            values, errors = np.transpose([mean(column) for column in up_to_exact(row["psnr"]).T])
            axes[0].errorbar(10.0**exponents, values, errors, color=color, marker=marker, ms=4, capsize=2, label=name)
        for panel, key, shift, color, label in lines:
            values, errors = np.transpose([row[key] for row in found.values()])
            at = np.arange(len(found)) + shift
            axes[panel].errorbar(values, at, xerr=errors, fmt="o", ms=5, capsize=2, color=color, label=label)
        for axis in axes[1:]:
            axis.set(yticks=range(len(found)), yticklabels=list(found), ylim=(len(found) - 0.5, -0.5))
            axis.set_xlim(left=0)
        axes[0].set(xscale="log", xlabel="learning rate of Adam", ylabel=f"PSNR after {steps} steps [dB]")
        end_at_exact(axes[0])
        axes[0].set_title(f"Highest: {best}")
        axes[1].set(xlabel="standard deviation over seeds [dB]", title=f"Seeds: {least} varies least")
        axes[2].set(xlabel=f"decades within {CLOSE_DB:g} dB of the best", title=f"Rates: {widest} has most room")
        axes[1].legend()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(found))
    finding = (
        f"After {steps} steps of Adam {least} depends least on the seed ({found[least]['spread_at_best']} dB at its "
        f"best rate), {widest} least on the rate ({found[widest]['decades']} decades within {CLOSE_DB:g} dB)."
    )
    return Picture(figure, finding)


def plot_stable_rate(found: dict[str, Any]) -> Picture:
    """Draw measured and predicted largest stable rates, by both criteria, and their ratio."""
    hits = {key: f"{sum(predicts(row['ratio'][key]) for row in found.values())} of {len(found)}" for key in CRITERIA}
    everything = np.concatenate([row["predicted_rate"] for row in found.values()])
    line = [everything.min() / 1.5, everything.max() * 1.5]
    with figure_style():
        figure, (left, right) = pyplot().subplots(1, 2, figsize=(10.5, 4.2))
        left.plot(line, line, color=NEUTRAL, lw=1, label="as predicted")
        for (key, label), shift, color, marker in zip(
            CRITERIA.items(), (-0.1, 0.1), (FAST, PREDICTED), "os", strict=True
        ):
            measured = np.concatenate([row["largest_stable_rate"][key] for row in found.values()])
            left.plot(everything, measured, marker, color=color, ms=4, alpha=0.7, label=label)
            values, errors = np.transpose([row["ratio"][key] for row in found.values()])
            at = np.arange(len(found)) + shift
            right.errorbar(values, at, xerr=errors, fmt=marker, ms=5, capsize=2, color=color)
        left.set(xscale="log", yscale="log", ylabel="largest stable rate of gradient descent")
        left.set_xlabel(r"$2nc\,/\,\lambda_{\max}$ at initialisation")
        left.set_title(f"Loss never rises: right for {hits['never_above']}")
        left.legend()
        right.axvline(1, color=NEUTRAL, lw=1)
        right.set_xscale("log", base=2)
        right.xaxis.set_major_formatter("{x:g}")
        right.set(yticks=range(len(found)), yticklabels=list(found), ylim=(len(found) - 0.5, -0.5))
        right.set(xlabel="measured / predicted", title=f"Loss may rise between: right for {hits['ends_below']}")
    finding = (
        "The kernel at initialisation tells the largest learning rate without a rise of the loss for "
        f"{hits['never_above']} variants, and the largest that training survives for {hits['ends_below']}."
    )
    return Picture(figure, finding)


def main() -> None:
    """Measure, judge, and keep."""
    profile, jobs = profile_and_jobs(__doc__)
    settings = PROFILES[profile]
    task = ni.image_task("camera", size=settings.pixels, grey=True)
    exponents = np.linspace(LOW, HIGH, (HIGH - LOW) * settings.per_decade + 1)
    computes = {name: functools.partial(measure, name, task, settings, exponents) for name in settings.variants}

    def said(name: str, row: dict[str, Any]) -> str:
        ratios = ", ".join(f"{CRITERIA[key]} up to {ratio}" for key, ratio in row["ratio"].items())
        return f"{name}: spread {row['spread_at_best']} dB, {row['decades']} decades; {ratios} times"

    found = collect("stability", profile, settings, computes, said, jobs)
    publish(
        "stability",
        profile,
        settings={**dataclasses.asdict(settings), "rates": 10.0**exponents, "reach": REACH},
        measured=found,
        claims=claims(found),
        pictures={
            "sensitivity": plot_sensitivity(found, exponents, settings.steps),
            "stable_rate": plot_stable_rate(found),
        },
    )


if __name__ == "__main__":
    main()
