"""Is the choice that ni.tune makes before training the one that a sweep of trainings makes?

    python -m benchmarks.tune_validation                  # hours on 2 cores; goes on where it was stopped
    python -m benchmarks.tune_validation camera torus     # these signals alone
    python -m benchmarks.tune_validation --jobs 8         # eight cases at once, on a GPU or on many cores
    python -m benchmarks.tune_validation --into cpu       # completes what was begun there; each case states its device
    python -m benchmarks.tune_validation --quick          # two small sweeps, under a minute, nothing kept

For each signal and family of networks every setting is trained from several seeds (the sweep), and predicted by
ni.tune, which sees the rows trained on only. Writes benchmarks/results/tune_validation/<device>/: results.json, which
grows case by case, table.md and regret.png.

Rank correlation is Spearman's, with a bootstrap interval over the settings. Regret is what taking the predicted best
loses against the best of the sweep, in dB of mean PSNR; PSNR on rows trained on counts up to CEILING.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

import ntk_inr as ni
from benchmarks.keep import (
    ERRORS,
    Claim,
    arguments_of,
    counted,
    each,
    markdown,
    profile_of,
    results_folder,
    this_device,
    verdict,
)
from ntk_inr import style
from ntk_inr.study.environment import environment
from ntk_inr.study.figures import save_figure
from ntk_inr.study.record import write_json, write_text
from ntk_inr.study.tuning import Objective
from ntk_inr.training.curves import psnr

SIZE = {"features": 128, "depth": 3}
# Held-out PSNR is for the end of training, PSNR on rows trained on for a short one: later most reach the ceiling.
STEPS: dict[Objective, int] = {"heldout": 500, "fit": 100}
# After a short training seeds differ by more.
SEEDS: dict[Objective, int] = {"heldout": 2, "fit": 6}
# What rounding to 8 bits leaves of a signal.
CEILING = 58.9
# A larger regret is explained: above CLOSE all go at Adam's own pace; a kernel that moves by more than
# MOVED of its norm in the pilot run is another one in the end.
LARGE, CLOSE, MOVED = 2.0, 45.0, 0.5
PILOTS = [0, 25]
PIXELS, SAMPLES, POINTS = 48, 1024, 2304
# The search that `ntk-inr tune` makes where nothing else is asked for, and the training that it plans.
USUAL = {"side": 64, "features": 256, "depth": 4, "steps": 500, "repeats": 3}

PICTURES = {"regret": "What the choice made before training loses against a sweep, over all cases."}


@dataclasses.dataclass(frozen=True)
class Family:
    """A variant, one setting of it and its values, and the learning rate of Adam."""

    variant: str
    setting: str
    values: list[Any]
    rate: float


def _spaced(low: float, high: float, count: int) -> list[float]:
    return [float(f"{value:.3g}") for value in np.geomspace(low, high, count)]


FAMILIES = {
    "rff scale": Family("rff", "encoding.scale", _spaced(0.25, 32, 8), 1e-3),
    "nerf bands": Family("pe", "encoding.bands", list(range(1, 9)), 1e-3),
    "siren omega": Family("siren", "activation.omega", _spaced(4, 128, 8), 5e-4),
    "gauss width": Family("gauss", "activation.width", _spaced(0.01, 0.32, 8), 1e-3),
    "wire omega": Family("wire", "omega", _spaced(4, 64, 6), 2e-3),
    "fouriernet scale": Family("fouriernet", "scale", _spaced(8, 512, 8), 1e-2),
    "topk k": Family("pe+topk", "sparsity.k", [8, 24, 64, 128], 1e-3),
}
ENCODINGS = ["rff scale", "nerf bands", "fouriernet scale"]


class Half:
    """A task of which every second row, at random, is held out."""

    def __init__(self, task: Any) -> None:
        self._task = task
        rows = np.random.default_rng(0).permutation(len(task.x))
        kept, other = np.sort(rows[: len(rows) // 2]), np.sort(rows[len(rows) // 2 :])
        self.x, self.y = task.x[kept], task.y[kept]
        self.heldout = task.x[other], task.y[other]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def _image(name: str, size: int = PIXELS) -> Any:
    return ni.image_task(name, size=size, holdout=0.5, grey=True)


def _chord() -> Any:
    return ni.signal_task(ni.audio_task("chord").samples[: 2 * SAMPLES], holdout=0.5)


def _shape(name: str) -> Any:
    return Half(ni.shape_task(name, points=POINTS))


SHAPES = ["torus", "gyroid"]
SIGNALS: dict[str, Callable[[], Any]] = {
    **{name: functools.partial(_image, name) for name in ("camera", "astronaut", "coffee", "chelsea")},
    **{name: functools.partial(ni.signal_task, name, samples=SAMPLES, holdout=0.5) for name in ("chirp", "steps")},
    "chord": _chord,
    **{name: functools.partial(_shape, name) for name in SHAPES},
}


def sweep(
    task: Any,
    family: Family,
    seeds: dict[Objective, int],
    steps: dict[Objective, int],
    size: dict[str, int] = SIZE,
    kept: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train every setting from every seed that is not kept; return PSNR (settings, seeds) for each objective.

    "seconds" are those of all trainings, kept ones included.
    """
    kept = kept or {objective: [[] for _ in family.values] for objective in steps} | {"seconds": 0.0}
    found: dict[str, Any] = {objective: [list(scores) for scores in kept[objective]] for objective in steps}
    began = time.perf_counter()
    for place, value in enumerate(family.values):
        for seed in range(max(seeds.values())):
            wanted = {o: budget for o, budget in steps.items() if len(found[o][place]) <= seed < seeds[o]}
            if wanted:
                for objective, score in _trained(task, family, value, seed, wanted, size).items():
                    found[objective][place].append(score)
    return found | {"seconds": kept["seconds"] + time.perf_counter() - began}


def whole(swept: dict[str, Any]) -> bool:
    """Return whether a sweep has every seed."""
    return all(len(scores) >= count for objective, count in SEEDS.items() for scores in swept[objective])


def _trained(
    task: Any, family: Family, value: Any, seed: int, steps: dict[Objective, int], size: dict[str, int]
) -> dict[Objective, float]:
    net = ni.variant(family.variant, **size, out=task.channels)
    apply, params = ni.init(net, jax.random.key(seed), jnp.asarray(task.x), settings={family.setting: value})
    optimizer = ni.optimizer("adam", learning_rate=family.rate)
    run = ni.fit(
        apply, params, task.x, task.y, optimizer=optimizer, steps=max(steps.values()), loss=task.loss,
        data_range=task.data_range,
    )  # fmt: skip
    scores: dict[Objective, float] = {}
    if "heldout" in steps:
        x, y = task.heldout
        error = np.asarray(apply(run.params, jnp.asarray(x)), np.float64) - y
        scores["heldout"] = float(psnr((error**2).mean(), task.data_range))
    if "fit" in steps:
        scores["fit"] = min(float(run.psnr_per_step[min(steps["fit"], run.steps)]), CEILING)
    return scores


def predict(task: Any, family: Family, steps: dict[Objective, int], pilot: int) -> dict[str, Any]:
    """Return the scores (settings, repeats) that ni.tune predicts for each objective, and its seconds."""
    found: dict[str, Any] = {"seconds": {}, "drift": []}
    for objective, budget in steps.items():
        began = time.perf_counter()
        tuned = ni.tune(
            task, family.variant, {family.setting: family.values}, objective=objective, steps=budget,
            **SIZE, recipe="same", learning_rate=family.rate, refine=0, pilot=pilot,
        )  # fmt: skip
        found["seconds"][objective] = time.perf_counter() - began
        found[objective] = [candidate.score for candidate in tuned.candidates]
        found["drift"] = [float(np.mean(candidate.drift)) for candidate in tuned.candidates if candidate.drift]
    return found


def cost(settings: dict[str, int], family: Family) -> dict[str, float]:
    """Return the seconds of a search as users make it, and of training its candidates as often as it draws them."""
    task, steps = _image("camera", settings["side"]), settings["steps"]
    size = {name: settings[name] for name in SIZE}
    began = time.perf_counter()
    tuned = ni.tune(
        task, family.variant, {family.setting: (family.values[0], family.values[-1])}, steps=steps,
        repeats=settings["repeats"], recipe="same", **size,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    drawn = dataclasses.replace(family, values=[candidate.settings[family.setting] for candidate in tuned.candidates])
    measured = sweep(task, drawn, {"heldout": settings["repeats"]}, {"heldout": steps}, size)
    heldout = np.mean(measured["heldout"], axis=1)
    return {
        "candidates": len(heldout), "tune_seconds": seconds, "sweep_seconds": measured["seconds"],
        "regret": float(heldout.max() - heldout[tuned.candidates.index(tuned.best)]),
    }  # fmt: skip


def compared(predicted: Any, measured: Any) -> dict[str, float]:
    """Return rank correlation with its interval, and regret, of mean scores (settings,) of both."""
    predicted, measured = np.array(predicted), np.array(measured)
    rng = np.random.default_rng(0)

    def rho(rows: np.ndarray) -> float:
        if np.ptp(measured[rows]) == 0 or np.ptp(predicted[rows]) == 0:
            return np.nan
        return float(scipy.stats.spearmanr(predicted[rows], measured[rows])[0])

    draws = [rho(rng.integers(len(measured), size=len(measured))) for _ in range(500)]
    low, high = np.nanquantile(draws, [0.05, 0.95])
    return {
        "rank": rho(np.arange(len(measured))), "low": float(low), "high": float(high),
        "regret": float(measured.max() - measured[predicted.argmax()]),
        "guess": float(measured.max() - measured.mean()),
    }  # fmt: skip


def measure(task: Any, family: Family, seeds: dict[Objective, int], kept: dict[str, Any]) -> dict[str, Any]:
    """Return the sweep of a case, predictions with each pilot, and how they compare; what is kept is not done again."""
    swept = sweep(task, family, seeds, STEPS, kept=kept.get("sweep"))
    predicted = kept.get("predicted") or {str(pilot): predict(task, family, STEPS, pilot) for pilot in PILOTS}
    return {
        "sweep": swept,
        "predicted": predicted,
        "compared": {
            pilot: {
                objective: compared(np.mean(found[objective], axis=1), np.mean(swept[objective], axis=1))
                for objective in STEPS
            }
            for pilot, found in predicted.items()
        },
    }


def measure_signal(signal: str, family: Family, kept: dict[str, Any]) -> dict[str, Any]:
    """Return the case of a signal and a family."""
    return {"device": this_device(), **measure(SIGNALS[signal](), family, SEEDS, kept)}


def line(row: dict[str, Any]) -> str:
    """Return what is said of a case."""
    return "; ".join(
        f"pilot {pilot} {objective}: rank {case['rank']:.2f} regret {case['regret']:.1f} dB"
        for pilot, cases in row["compared"].items()
        for objective, case in cases.items()
    )


def across(rows: list[dict[str, Any]], pilot: int, objective: str) -> dict[str, float]:
    """Compare all settings of all families on one signal."""
    predicted = np.concatenate([np.mean(row["predicted"][str(pilot)][objective], axis=1) for row in rows])
    measured = np.concatenate([np.mean(row["sweep"][objective], axis=1) for row in rows])
    return compared(predicted, measured)


def summarize(content: dict[str, Any]) -> dict[str, Any]:
    """Return the figures over all cases, for each pilot and objective."""
    rows, found = content["rows"], {}
    signals = list(dict.fromkeys(row["signal"] for row in rows))
    for pilot in PILOTS:
        for objective in STEPS:
            cases = [row["compared"][str(pilot)][objective] for row in rows]
            encodings = [row["compared"][str(pilot)][objective]["rank"] for row in rows if row["family"] in ENCODINGS]
            pooled = {
                signal: across([row for row in rows if row["signal"] == signal], pilot, objective) for signal in signals
            }
            regrets = [case["regret"] for case in cases]
            found[f"{objective}, pilot {pilot}"] = {
                "cases": len(cases),
                "regret_median": float(np.median(regrets)),
                "regret_90": float(np.quantile(regrets, 0.9)),
                "regret_of_a_guess": float(np.median([case["guess"] for case in cases])),
                "rank_median": float(np.nanmedian([case["rank"] for case in cases])),
                "rank_median_encodings": float(np.nanmedian(encodings)) if encodings else None,
                "across_variants": pooled,
            }
    return found


def overview(content: dict[str, Any]) -> list[str]:
    """Return the summary as the lines of a Markdown table."""
    heads = [
        "objective", "cases", "regret [dB], median", "90th percentile", "of a random choice",
        "rank correlation, median", "of encodings",
    ]  # fmt: skip
    rows = []
    for name, found in content["summary"].items():
        encodings = found["rank_median_encodings"]
        rows.append(
            [
                name, found["cases"], f"{found['regret_median']:.2f}", f"{found['regret_90']:.2f}",
                f"{found['regret_of_a_guess']:.1f}", f"{found['rank_median']:.2f}",
                "" if encodings is None else f"{encodings:.2f}",
            ]
        )  # fmt: skip
    return markdown(heads, rows)


def table(content: dict[str, Any]) -> str:
    """Return Markdown: the summary, and each case."""
    said = ["# Does ni.tune choose what a sweep would?", "", *overview(content)]
    for name, found in content["summary"].items():
        rows = [[signal, _ranked(case), f"{case['regret']:.2f}"] for signal, case in found["across_variants"].items()]
        said += ["", f"## Across variants, {name}", "", *markdown(["signal", "rank correlation", "regret [dB]"], rows)]
    rows = [
        [
            row["signal"],
            row["family"],
            f"{objective}, pilot {pilot}",
            f"{case['regret']:.1f}",
            reason(row, pilot, objective),
        ]
        for pilot, objective in itertools.product(map(str, PILOTS), STEPS)
        for row in content["rows"]
        if (case := row["compared"][pilot][objective])["regret"] > LARGE
    ]
    heads = ["signal", "family", "objective", "regret [dB]", "why"]
    said += ["", f"## Every case above {LARGE:g} dB", "", *markdown(heads, rows)]
    for pilot, objective in itertools.product(map(str, PILOTS), STEPS):
        rows = []
        for row in content["rows"]:
            case = row["compared"][pilot][objective]
            best, chosen = (row["values"][place] for place in choices(row, pilot, objective))
            rows.append([row["signal"], row["family"], _ranked(case), f"{case['regret']:.2f}", f"{best:g}, {chosen:g}"])
        heads = ["signal", "family", "rank correlation", "regret [dB]", "best, chosen"]
        said += ["", f"## Each case, {objective}, pilot {pilot}", "", *markdown(heads, rows)]
    return "\n".join(said) + "\n"


def choices(row: dict[str, Any], pilot: str, objective: str) -> tuple[int, int]:
    """Return which setting is the best of the sweep, and which is predicted to be."""
    best, chosen = (np.mean(of[objective], axis=1).argmax() for of in (row["sweep"], row["predicted"][pilot]))
    return int(best), int(chosen)


def reason(row: dict[str, Any], pilot: str, objective: str) -> str:
    """Return what explains a large regret: the first of these that the numbers show."""
    best, chosen = choices(row, pilot, objective)
    scores, predicted = (np.array(of[objective])[[best, chosen]] for of in (row["sweep"], row["predicted"][pilot]))
    lost, error = _difference(scores)
    if lost < ERRORS * error:
        return f"seeds differ as much: {lost:.1f} ± {error:.1f} dB"
    ahead, error = _difference(predicted)
    if ahead < ERRORS * error:
        return f"the prediction is not surer: {ahead:.1f} ± {error:.1f} dB"
    if scores.mean(axis=1).min() > CLOSE:
        return f"both fit closely, {_decibels(scores)}: there Adam gains half a dB a step, whatever the kernel"
    drift = max(row["predicted"][str(PILOTS[-1])]["drift"][place] for place in (best, chosen))
    moved = f"{_decibels(scores)}; the kernel moves by {drift:.1f} of its norm in {PILOTS[-1]} steps"
    if drift > MOVED:
        return f"{moved}: features are learned"
    if row["signal"] in SHAPES and objective == "fit":
        return f"{_decibels(scores)}: the L1 loss ends where Adam's noise is, of which only the size is known"
    return f"{moved}, too little to explain it"


def _difference(scores: np.ndarray) -> tuple[float, float]:
    """Return by how much two settings differ, and the standard error."""
    return float(np.ptp(scores.mean(axis=1))), float(np.hypot(*scores.std(axis=1, ddof=1)) / scores.shape[1] ** 0.5)


def _decibels(scores: np.ndarray) -> str:
    return " and ".join(f"{score:.1f} dB" for score in scores.mean(axis=1))


def _ranked(case: dict[str, float]) -> str:
    return f"{case['rank']:.2f} [{case['low']:.2f}, {case['high']:.2f}]"


def _cost_line(found: dict[str, float]) -> str:
    return (
        f"{found['sweep_seconds'] / found['tune_seconds']:.0f} times cheaper: {found['tune_seconds']:.0f} s for "
        f"{found['candidates']:.0f} candidates of {found['repeats']:.0f} repeats, which take "
        f"{found['sweep_seconds']:.0f} s to train"
    )


def claims(content: dict[str, Any]) -> list[Claim]:
    """Return what the numbers say of the choice."""
    said = []
    if content["costs"]:
        cheap = [found["sweep_seconds"] >= 20 * found["tune_seconds"] for found in content["costs"].values()]
        said.append(
            Claim(
                "A search costs a twentieth of the sweep that it replaces",
                verdict(cheap),
                "; ".join(f"{_cost_line(found)} ({device})" for device, found in content["costs"].items()),
                "Compilation included; rff scale on camera at {side} x {side}, half held out, width {features}, depth "
                "{depth}, {steps} steps. A sweep grows with the rows, a search does not.".format(**USUAL),
            )
        )
    for name, found in content["summary"].items():
        good = found["regret_median"] < 0.5 and found["regret_90"] < 2
        said.append(
            Claim(
                f"The predicted best loses under 0.5 dB in the median and under 2 dB in nine of ten cases ({name})",
                "holds" if good else "does not hold",
                f"{found['regret_median']:.2f} and {found['regret_90']:.2f} dB over {found['cases']} cases; a random "
                f"choice {found['regret_of_a_guess']:.1f} dB",
                "Each case is in table.md.",
            )
        )
        if found["rank_median_encodings"] is not None:
            said.append(
                Claim(
                    f"For scales of encodings predicted and measured orders agree, rank correlation above 0.9 ({name})",
                    "holds" if found["rank_median_encodings"] > 0.9 else "does not hold",
                    f"{found['rank_median_encodings']:.3f} in the median",
                    f"Over all families it is {found['rank_median']:.2f}.",
                )
            )
    return said


def measured_on(content: dict[str, Any]) -> str:
    """Return on which devices how many cases ran, in a sentence."""
    return f"Cases: {counted(row['device'] for row in content['rows'])}."


def figure(content: dict[str, Any]) -> Any:
    """Return the regret of each case, sorted, beside that of a random choice."""
    plt = style.pyplot()
    with style.figure_style():
        figure, axes = plt.subplots(1, len(STEPS), figsize=(10, 3.8), sharey=True)
        for axis, objective in zip(axes, STEPS, strict=True):
            cases = [row["compared"] for row in content["rows"]]
            guess = sorted(case[str(PILOTS[0])][objective]["guess"] for case in cases)
            share = (np.arange(len(cases)) + 0.5) / len(cases)
            axis.plot(guess, share, color=style.NEUTRAL, linestyle=":", label="a random choice")
            for pilot, color in zip(PILOTS, (style.PREDICTED, style.FAST), strict=True):
                regrets = sorted(case[str(pilot)][objective]["regret"] for case in cases)
                label = "kernel at initialisation" if pilot == 0 else f"kernel after {pilot} steps"
                axis.plot(regrets, share, color=color, label=label, drawstyle="steps-post")
            axis.set_xscale("symlog", linthresh=0.5)
            axis.set_xticks([0, 0.5, 1, 2, 5, 10, 20], ["0", "0.5", "1", "2", "5", "10", "20"])
            axis.minorticks_off()
            axis.set(xlabel="PSNR lost against the best of the sweep [dB]", xlim=(0, None), ylim=(0, 1))
            good = 100 * np.mean(np.array(regrets) < LARGE)
            rows = {"heldout": "Rows held out", "fit": "Rows trained on"}[objective]
            axis.set_title(f"{rows}: after {PILOTS[-1]} steps {good:.0f} % lose under {LARGE:g} dB")
        axes[0].set_ylabel("share of cases")
        axes[1].legend(loc="lower right")
    return figure


def main() -> None:
    """Measure, print, and keep."""
    parser = arguments_of(__doc__, rows=True)
    parser.add_argument("signals", nargs="*", choices=[*SIGNALS, []], help="which signals; all by default")
    parser.add_argument("--into", metavar="DEVICE", help="whose cases to complete; by default those of this device")
    parser.add_argument("--predict-again", action="store_true", help="after a change of ni.tune: keep sweeps alone")
    arguments = parser.parse_args()
    if profile_of(arguments) == "quick":
        task = _image("camera", 16)
        for name in ("rff scale", "nerf bands"):
            family = dataclasses.replace(FAMILIES[name], values=FAMILIES[name].values[:4])
            print(f"camera, {name}: {line(measure(task, family, dict.fromkeys(STEPS, 1), {}))}", flush=True)
        small = {"side": 16, "features": 32, "depth": 2, "steps": 20, "repeats": 2}
        print(_cost_line({**small, **cost(small, FAMILIES["rff scale"])}))
        return
    folder = results_folder("tune_validation", arguments.into)
    path = folder / "results.json"
    content: dict[str, Any] = {"schema": "ntk_inr.tune_validation v2", "rows": [], "costs": {}}
    content["environment"] = environment()
    if path.exists():
        content = json.loads(path.read_text())
    content["settings"] = {**SIZE, "seeds": SEEDS, "steps": STEPS, "ceiling": CEILING}
    known = {(row["signal"], row["family"]): row for row in content["rows"]}
    cases, computes = {}, {}
    for signal, (name, family) in itertools.product(arguments.signals or SIGNALS, FAMILIES.items()):
        kept = known.get((signal, name), {})
        if arguments.predict_again:
            kept = {key: kept[key] for key in ("sweep",) if key in kept}
        if "predicted" not in kept or not whole(kept["sweep"]):
            key = f"{signal}, {name}"
            cases[key] = {"signal": signal, "family": name, "values": family.values, "rate": family.rate}
            computes[key] = functools.partial(measure_signal, signal, family, kept)
    for key, found in each(computes, arguments.jobs):
        print(f"{key}: {line(found)}", flush=True)
        case = cases[key] | {"jobs": arguments.jobs} | found
        others = [row for row in content["rows"] if (row["signal"], row["family"]) != (case["signal"], case["family"])]
        content["rows"] = [*others, case]
        content["summary"] = summarize(content)
        write_json(path, content)
        write_text(folder / "table.md", table(content))
    save_figure(figure(content), folder / "regret")
    if this_device() not in content["costs"]:
        content["costs"][this_device()] = {**USUAL, **cost(USUAL, FAMILIES["rff scale"])}
        print(_cost_line(content["costs"][this_device()]), flush=True)
        write_json(path, content)


if __name__ == "__main__":
    main()
