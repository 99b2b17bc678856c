"""Does a lower variance of the kernel's eigenvalues mean faster convergence, and which figure ranks networks best?

    python -m benchmarks.convergence            # 34 networks, four tasks, about 25 minutes on 2 cores
    python -m benchmarks.convergence --quick    # three small networks, under a minute, nothing kept

Writes benchmarks/results/convergence/<device>/: results.json, convergence.png and ranking.png; a run that was
stopped goes on, network by network. For every variant but siren+fast (made for audio), on each task and
from several seeds: figures of the kernel at initialisation, in float64; the steps that it predicts gradient descent to
take (T10.1); and the steps that full-batch gradient descent at half of the largest stable rate, and Adam at 1e-3, did
take. All for the mean squared error, also on the torus. pe+batch has the kernel of its evaluation mode.

Targets are so many dB above the best constant. A task is judged at the highest one that half of its variants reach,
by the median over seeds; those that never reach it share the last rank. Correlations are Spearman's, signed so that
+1 is "the better figure is always faster", with 95 % intervals by a bootstrap over variants; over several tasks they
are averaged.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats

import ntk_inr as ni
from benchmarks.keep import Claim, Picture, Plain, Profile, collect, profile_and_jobs, publish, verdict
from ntk_inr import style
from ntk_inr.study.candidate import kernels_in_float64
from ntk_inr.training.curves import psnr

NAME = "convergence"
RATE = 1e-3
GAINS = (3, 6, 10, 15, 20)
BOOTSTRAP, LONGEST = 2000, 10**9
FAMILIES = {
    "plain": ["relu", "tanh", "gelu"],
    "encoding": ["pe", "rff", "rff+learned", "triangle", "oneblob", "hash"],
    "normalised": ["pe+sphere", "pe+layer", "pe+batch", "pe+weight"],
    "sparse": ["pe+topk", "pe+topk+sphere", "pe+topk+soft"],
    "modulated": ["relu+hadamard", "pe+hadamard", "pe+sphere+hadamard", "pe+gabor", "pe+modulator", "siren+film"],
    "sine-like": ["siren", "finer", "spder", "hosc", "sinc", "gauss", "quadratic", "gabor", "wire", "wire2d",
                  "wire+real"],
    "filter network": ["fouriernet", "gabornet", "bacon"],
}  # fmt: skip
VARIANTS = tuple(name for name in ni.variants() if name != "siren+fast")
# Whether less of it should be faster. The effective rank n / (1 + cv²) ranks the networks of one task as cv does.
FIGURES = {"cv": 1, "variance": 1, "condition number": 1, "effective rank": -1, "predicted steps": 1}
METHODS = {"predicted": "gradient descent as predicted", "gd": "gradient descent", "adam": "Adam", "seconds": "Adam"}
MEASURED = ("gd", "adam")
TICKS = [1, 2, 5, 10, 20, 50]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Tasks as ``ni.load_task`` takes them, networks, and how long they train."""

    tasks: dict[str, tuple[str, dict[str, Any]]]
    variants: tuple[str, ...] = VARIANTS
    features: int = 128
    depth: int = 3
    steps: int = 300
    seeds: int = 3


PROFILES: dict[Profile, Settings] = {
    "quick": Settings(
        {"camera": ("image", {"size": 8}), "chirp": ("signal", {"samples": 48})},
        ("relu", "pe", "siren"), features=16, depth=1, steps=200, seeds=2,
    ),
    "cpu": Settings(
        {
            "camera": ("image", {"size": 20}), "chirp": ("signal", {"samples": 256}),
            "torus": ("shape", {"points": 400}), "shepp-logan": ("tomography", {"size": 12, "angles": 8}),
        },
    ),
    "gpu": Settings(
        {
            "camera": ("image", {"size": 48}), "chirp": ("signal", {"samples": 512}),
            "torus": ("shape", {"points": 2048}), "shepp-logan": ("tomography", {"size": 24, "angles": 24}),
        },
        features=256, depth=4, steps=2000, seeds=5,
    ),
}  # fmt: skip


class Modes(NamedTuple):
    """A residual in the eigenvectors of the kernel that training follows, which are complex where some are frozen."""

    values: np.ndarray
    vectors: np.ndarray
    parts: np.ndarray


def modes_of(followed: ni.spectra.Eigensystem | np.ndarray, residual: np.ndarray) -> Modes:
    """Return the modes of a residual (n, c) under a kernel that is not symmetric, or the eigensystem of one that is."""
    if isinstance(followed, ni.spectra.Eigensystem):
        return Modes(np.maximum(followed.values, 0), followed.vectors, followed.vectors.T @ residual)
    values, vectors = np.linalg.eig(followed)
    return Modes(np.maximum(values.real, 0) + 1j * values.imag, vectors, np.linalg.solve(vectors, residual + 0j))


def predicted_steps(modes: Modes, rate: float, share: float) -> int | None:
    """Return the steps that (T10.1) takes until this share of the squared error is left; None beyond LONGEST."""

    def error(steps: int) -> float:
        with np.errstate(all="ignore"):  # modes that grow leave the range of floats
            left = (1 - rate * modes.values)[:, None] ** steps * modes.parts
            return float((np.abs(modes.vectors @ left) ** 2).sum())

    start = error(0)

    def reached(steps: int) -> bool:
        return error(steps) <= share * start

    return bisect.bisect_left(range(LONGEST), True, key=reached) if reached(LONGEST) else None


def measure(task: Any, name: str, settings: Settings) -> dict[str, Any]:
    """Return the row of a variant on a task; lists are by seed, or by target and then seed, None where not reached."""
    x, seeds = jnp.asarray(task.x), range(settings.seeds)
    net = ni.variant(name, features=settings.features, depth=settings.depth, out=task.channels)
    apply, params = jax.jit(jax.vmap(lambda key: ni.init(net, key, x)))(jax.random.split(jax.random.key(0), len(seeds)))
    observed = task.observe(apply)
    each = [jax.tree.map(lambda leaf, s=s: leaf[s], (observed, params)) for s in seeds]
    pairs = [kernels_in_float64(one, own, x) for one, own in each]
    if not np.isfinite(pairs).all():
        return {"variant": name, "failed": "the kernel at initialisation is not finite"}
    systems = [ni.spectra.eigensystem(pair.own) for pair in pairs]
    moments = [ni.moments(pair.own) for pair in pairs]
    followed = [
        system if pair.followed is pair.own else pair.followed for system, pair in zip(systems, pairs, strict=True)
    ]
    # All seeds train in one program, so at one rate: half of the least.
    rate = float(min(ni.max_learning_rate(each, c=task.y.shape[1]) for each in followed)) / 2
    residuals = [np.asarray(one(own, x), np.float64) - task.y for one, own in each]
    modes = [modes_of(*pair) for pair in zip(followed, residuals, strict=True)]
    targets = [float(psnr(np.var(task.y), task.data_range)) + gain for gain in GAINS]
    left = [[task.data_range**2 / 10 ** (t / 10) / (r**2).mean() for r in residuals] for t in targets]
    options = {"steps": settings.steps, "loss": "mse", "data_range": task.data_range}
    runs = {
        method: ni.fit_seeds(observed, params, x, task.y, optimizer=optimizer, **options)
        for method, optimizer in (("gd", optax.sgd(rate)), ("adam", optax.adam(RATE)))
    }
    return {
        "variant": name, "rate": rate, "targets": targets,
        "figures": {
            "cv": [float(m.cv) for m in moments], "variance": [float(m.variance) for m in moments],
            "condition number": [float(ni.condition_number(system).value) for system in systems],
            "effective rank": [float(m.effective_rank) for m in moments],
        },
        "steps": {
            "predicted": [[predicted_steps(modes[s], rate / task.y.size, share[s]) for s in seeds] for share in left],
            **{method: [[run.steps_to(target) for run in own] for target in targets] for method, own in runs.items()},
            "seconds": [[run.seconds_to(target) for run in runs["adam"]] for target in targets],
        },
        "psnr at the end": {method: [float(run.psnr[-1]) for run in own] for method, own in runs.items()},
        "status": {method: [run.status for run in own] for method, own in runs.items()},
    }  # fmt: skip


def rows_of(profile: Profile, settings: Settings, jobs: int) -> list[dict[str, Any]]:
    """Measure every variant on every task."""
    computes = {}
    for source, (kind, options) in settings.tasks.items():
        task = ni.load_task(kind, source, **options)
        for name in settings.variants:
            computes[f"{source} {name}"] = functools.partial(measure, task, name, settings)

    def said(key: str, row: dict[str, Any]) -> str:
        return f"{key}: {row.get('failed') or row['psnr at the end']}"

    found = collect(NAME, profile, settings, computes, said, jobs)
    return [{"task": key.partition(" ")[0], **row} for key, row in found.items()]


def medians(rows: list[dict[str, Any]], settings: Settings) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the variants that every task has, and by task their medians over seeds, signed so that less is better."""
    failed = {row["variant"] for row in rows if "failed" in row}
    names, tables = [name for name in settings.variants if name not in failed], {}
    for task in settings.tasks:
        own = {row["variant"]: row for row in rows if row["task"] == task}
        steps = {m: np.array([[middle(at) for at in own[name]["steps"][m]] for name in names]).T for m in METHODS}
        level = {m: np.flatnonzero(np.isfinite(steps[m]).mean(axis=1) >= 0.5).max(initial=0) for m in MEASURED}
        tables[task] = {
            "figures": {
                figure: sign * np.array([middle(own[name]["figures"][figure]) for name in names])
                for figure, sign in FIGURES.items()
                if figure != "predicted steps"
            },
            "steps": steps,
            # The prediction is judged at the target of what it predicts, so that the two compare.
            "level": level | {"predicted": level["gd"], "seconds": level["adam"]},
            "targets": own[names[0]]["targets"],
        }
    return names, tables


def middle(values: list[Any]) -> float:
    """Return the median, None being infinite; of an even number the lower one."""
    return float(np.sort([np.inf if value is None else value for value in values])[(len(values) - 1) // 2])


def spearman(tables: Iterable[dict[str, Any]], figure: str, method: str, level: int | None = None) -> list[float]:
    """Return [rho, low, high] averaged over tasks, each at its own target or all at one; 0 where all are equal."""
    found = []
    for table in tables:
        at = table["level"][method] if level is None else level
        speed = table["steps"][method][at]
        values = table["steps"]["predicted"][at] if figure == "predicted steps" else table["figures"][figure]
        rows = np.random.default_rng(0).integers(len(speed), size=(BOOTSTRAP, len(speed)))
        rows[0] = np.arange(len(speed))
        a, b = (scipy.stats.rankdata(each[rows], axis=1) - (len(speed) + 1) / 2 for each in (values, speed))
        size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
        found.append(np.divide((a * b).sum(axis=1), size, out=np.zeros(BOOTSTRAP), where=size > 0))
    rho = np.mean(found, axis=0)
    return [float(rho[0]), *map(float, np.quantile(rho[1:], [0.025, 0.975]))]


def summarize(names: list[str], tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return by method: correlations of each figure by task and over all, of cv by target, and what departs from it."""
    found: dict[str, Any] = {}
    for method in METHODS:
        speeds = {task: table["steps"][method][table["level"][method]] for task, table in tables.items()}
        cvs = [table["figures"]["cv"] for table in tables.values()]
        cv, speed = (np.mean(scipy.stats.rankdata(each, axis=1), axis=0) for each in (cvs, list(speeds.values())))
        far = np.argsort(-np.abs(cv - speed))[:3]
        found[method] = {
            "target": {task: table["targets"][table["level"][method]] for task, table in tables.items()},
            "never": {task: int(np.isinf(each).sum()) for task, each in speeds.items()},
            "correlation": {
                figure: {task: spearman([table], figure, method) for task, table in tables.items()}
                | {"all": spearman(tables.values(), figure, method)}
                for figure in FIGURES
            },
            "cv by target": [spearman(tables.values(), "cv", method, level) for level in range(len(GAINS))],
            "departures": {names[i]: [float(cv[i]), float(speed[i])] for i in far},
        }
        found[method]["best"] = max(FIGURES, key=lambda figure: found[method]["correlation"][figure]["all"][0])
    return found


def interval(rho: list[float]) -> str:
    """Return a correlation with its interval."""
    return f"{rho[0]:+.2f} [{rho[1]:+.2f}, {rho[2]:+.2f}]"


def claim_of(figure: str, method: str, statement: str, why: str, summary: dict[str, Any], tasks: list[str]) -> Claim:
    """Return that a figure ranks a method's speed: it does on a task where the interval lies above 0."""
    found, own = summary[method], summary[method]["correlation"][figure]
    number = f"mean {interval(own['all'])}; " + "; ".join(
        f"{task} {interval(own[task])} to {found['target'][task]:.0f} dB, never reached by {found['never'][task]}"
        for task in tasks
    )
    if figure == "cv":
        rhos = ", ".join(f"{rho[0]:+.2f}" for rho in found["cv by target"])
        number += f"; mean at {'/'.join(map(str, GAINS))} dB above a constant {rhos}"
        far = [f"{name} ({cv:.0f} by cv, {speed:.0f} by speed)" for name, (cv, speed) in found["departures"].items()]
        why += f" Furthest apart in their mean places: {', '.join(far)}."
    if method == "adam":
        number += f"; with seconds in place of steps {interval(summary['seconds']['correlation'][figure]['all'])}"
    return Claim(statement, verdict([own[task][1] > 0 for task in tasks]), number, why)


def claims_of(summary: dict[str, Any], tasks: list[str]) -> list[Claim]:
    """Return what the correlations say."""
    lower = "Lower eigenvalue variance (cv) means faster convergence of "
    correlations = {method: summary[method]["correlation"] for method in MEASURED}
    wins = [
        own["cv"][task][0] > 0 and own["cv"][task][0] >= max(rival[task][0] for rival in own.values())
        for own in correlations.values()
        for task in tasks
    ]
    number = f"highest on {sum(wins)} of {len(wins)} pairs of task and method; " + "; ".join(
        f"mean with {METHODS[method]}: cv {interval(own['cv']['all'])}, "
        f"best {summary[method]['best']} {interval(own[summary[method]['best']]['all'])}"
        for method, own in correlations.items()
    )
    return [
        claim_of(
            "cv", "predicted", lower + METHODS["predicted"],
            "cv bounds the time from below for targets spread evenly over the eigenmodes (10.3); signals lie in the "
            "top ones, and the condition number may be anything above its bound (1.6).", summary, tasks,
        ),
        claim_of(
            "cv", "gd", lower + METHODS["gd"],
            "The bounds are those of the prediction, and the kernel moves besides.", summary, tasks,
        ),
        claim_of(
            "cv", "adam", lower + METHODS["adam"],
            "Adam rescales each parameter's gradient, and the kernel turns towards the signal; cv at the start knows "
            "of neither.", summary, tasks,
        ),
        claim_of(
            "predicted steps", "gd",
            "Fewer steps predicted by the kernel at initialisation mean faster convergence of gradient descent",
            "The prediction knows the signal, too, and is right as long as the kernel stays put.", summary, tasks,
        ),
        Claim(
            "Of what the kernel tells before training, cv ranks networks by convergence best", verdict(wins), number,
            "The effective rank n / (1 + cv²) ranks the networks of one task as cv does (1.2); the predicted steps "
            "also know in which eigenmodes the signal lies.",
        ),
    ]  # fmt: skip


def plot_convergence(names: list[str], tables: dict[str, dict[str, Any]], summary: dict[str, Any]) -> Any:
    """Draw cv against steps to the target, a row a method and a column a task."""
    with style.figure_style():
        figure, axes = style.pyplot().subplots(2, len(tables), figsize=(3.5 * len(tables) + 1, 6.4), squeeze=False)
        for (method, (task, table)), axis in zip(itertools.product(MEASURED, tables.items()), axes.flat, strict=True):
            cv, steps = table["figures"]["cv"], np.maximum(table["steps"][method][table["level"][method]], 1)
            never = 2 * np.max(steps, initial=1, where=np.isfinite(steps))
            for (family, members), color, marker in zip(FAMILIES.items(), style.PALETTE, style.MARKERS, strict=False):
                for reached, fill in ((True, color), (False, "none")):
                    rows = np.isin(names, members) & (np.isfinite(steps) == reached)
                    label = family if reached else None
                    axis.plot(
                        cv[rows], np.minimum(steps[rows], never), marker, color=color, mfc=fill, ms=5, label=label
                    )
            for name in summary[method]["departures"]:
                place = cv[names.index(name)], steps[names.index(name)]
                left = place[0] ** 2 < cv.min() * cv.max()
                if np.isfinite(place[1]):
                    axis.annotate(name, place, fontsize=7, ha="left" if left else "right", va="bottom")
            if np.isinf(steps).any():
                axis.axhline(never / 1.4, color=style.NEUTRAL, lw=0.8, ls=":")
                axis.text(0.01, never / 1.35, "never", color=style.NEUTRAL, transform=axis.get_yaxis_transform())
            rho = interval(summary[method]["correlation"]["cv"][task])
            axis.set(xscale="log", yscale="log", xlabel="cv of the kernel at initialisation", xticks=TICKS)
            axis.set_xlim(cv.min() / 1.2, 1.2 * cv.max())
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("")
            axis.yaxis.set_major_formatter(Plain())
            axis.yaxis.set_minor_formatter(Plain(minor_thresholds=(2, 0.5)))
            axis.set_title(f"{task}, {METHODS[method]}\nρ = {rho}")
            axis.set_ylabel(f"steps to {summary[method]['target'][task]:.1f} dB")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(FAMILIES))
    return figure


def plot_ranking(tasks: list[str], summary: dict[str, Any]) -> Any:
    """Draw the correlation of each figure with speed, by task and averaged."""
    with style.figure_style():
        figure, axes = style.pyplot().subplots(1, 2, figsize=(9.5, 3.4), sharey=True, sharex=True)
        for axis, method in zip(axes, MEASURED, strict=True):
            rhos, places = summary[method]["correlation"].values(), np.arange(len(FIGURES))
            mean, low, high = np.transpose([own["all"] for own in rhos])
            axis.hlines(places, low, high, color=style.FAST, lw=2.5)
            axis.plot(mean, places, "o", color=style.FAST, ms=7, label="mean, 95 % interval")
            for task, marker in zip(tasks, "^vsD", strict=False):
                axis.plot([own[task][0] for own in rhos], places + 0.25, marker, color=style.NEUTRAL, ms=4, label=task)
            axis.axvline(0, color=style.MEASURED, lw=0.8)
            axis.set_title(f"{METHODS[method]}: best is {summary[method]['best']}")
            axis.set(xlabel="Spearman correlation with speed", yticks=places, yticklabels=FIGURES)
        axes[0].invert_yaxis()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tasks) + 1)
    return figure


def main() -> None:
    """Measure, judge and keep."""
    profile, jobs = profile_and_jobs(__doc__)
    settings = PROFILES[profile]
    rows, tasks = rows_of(profile, settings, jobs), list(settings.tasks)
    names, tables = medians(rows, settings)
    summary = summarize(names, tables)
    clear = {m: sum(summary[m]["correlation"]["cv"][task][1] > 0 for task in tasks) for m in MEASURED}
    pictures = {
        "convergence": Picture(
            plot_convergence(names, tables, summary),
            "The correlation of cv with steps to the target is clearly above 0 on "
            + " and ".join(f"{count} of {len(tasks)} tasks with {METHODS[m]}" for m, count in clear.items()) + ".",
        ),
        "ranking": Picture(
            plot_ranking(tasks, summary),
            "What ranks networks best before training is "
            + " and ".join(f"{summary[m]['best']} for {METHODS[m]}" for m in MEASURED) + ".",
        ),
    }  # fmt: skip
    publish(
        NAME, profile, settings=dataclasses.asdict(settings) | {"jobs": jobs},
        measured={"rows": rows, "summary": summary}, claims=claims_of(summary, tasks), pictures=pictures,
    )  # fmt: skip


if __name__ == "__main__":
    main()
