"""From raw results to what a reader wants: a table, a rank correlation, a conclusion."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ntk_inr.study.record import Study, VariantResult

_CLOSE_DB = 1.0

_SCORES = {
    "ssim": ("SSIM", "max", "structural similarity of the whole image at the end"),
    "psnr": ("PSNR at the end", "max", "PSNR in dB of the reconstruction"),
    "heldout_psnr": ("held-out PSNR", "max", "PSNR in dB on the rows held out"),
    "snr": ("SNR", "max", "signal to noise ratio in dB of the reconstruction"),
    "iou": ("IoU", "max", "volume of the intersection over that of the union"),
    "relative_l2": ("relative error", "min", "distance to the solution over its size"),
    "chamfer": ("Chamfer", "min", "mean distance between the surfaces, squared or not as the task says"),
}

GROUPS = {
    "conditioning": "Conditioning at initialisation",
    "descent": "Gradient descent: PSNR predicted from that kernel, and measured",
    "adam": "Adam",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        key: name in the CSV file.
        title: heading to read.
        best: "min", "max", or None where neither end is better.
        group: one of GROUPS, the parts that the table is shown in.
        help: what it is, a line.
    """

    key: str
    title: str
    best: str | None
    group: str
    help: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """Mean and spread (standard deviation) over seeds of one figure of one variant.

    Attributes:
        mean: mean over seeds; infinity where a target was never reached by some seed.
        spread: sample standard deviation over seeds, NaN for one seed.
        text: both, to read.
        best: whether it is the best of its column.
    """

    mean: float
    spread: float
    text: str
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation over variants between a figure and a speed.

    Attributes:
        figure: column key of the figure, such as "cv".
        speed: column key of the speed.
        rho: +1 where a lower figure always goes with a faster variant.
        text: both, to read.
    """

    figure: str
    speed: str
    rho: float
    text: str


@dataclasses.dataclass(frozen=True)
class Summary:
    """The table of a study and what follows from it.

    Attributes:
        target_psnr: the PSNR in dB that steps and seconds count up to.
        target_source: how it was chosen.
        columns: the columns.
        rows: ``{variant: {column key: Cell}}``.
        correlations: rank correlations over variants, empty below three of them.
        conclusion: sentences; the first is the shortest answer.
    """

    target_psnr: float
    target_source: str
    columns: list[Column]
    rows: dict[str, dict[str, Cell]]
    correlations: list[Correlation]
    conclusion: list[str]

    @property
    def groups(self) -> dict[str, str]:
        """The parts of the table that have columns, with their titles."""
        used = {column.group for column in self.columns}
        return {group: title for group, title in GROUPS.items() if group in used}


def summarize(study: Study, target_psnr: float | None = None) -> Summary:
    """Return the table, the rank correlations and the conclusion of a study.

    Args:
        study: with at least one variant.
        target_psnr: in dB; None is the highest that every variant's every seed reached with Adam
            (rounded down to 0.5 dB; variants that diverged left out).

    Raises:
        ValueError: the study has no variants, or the target is not finite.

    Example:
        >>> import numpy as np, ntk_inr as ni
        >>> study = ni.compare(ni.image_task(np.eye(6), size=None), ["relu"], features=8, depth=1, steps=3, seeds=1)
        >>> ni.summarize(study).rows["relu"]["parameters"].text
        '33'
    """
    check_target(target_psnr)
    if not study.variants:
        raise ValueError("this study has no finished variant yet; run it again with --resume.")
    if target_psnr is None:
        target, source = _common_target(study), "the highest that every variant reached, rounded down to 0.5 dB"
    else:
        target, source = float(target_psnr), "as asked for"
    columns = _columns(study, target)
    shown = {column.key for column in columns}
    values = {result.name: _values(study, result, target) for result in study.variants}
    rows = _mark_best({name: {key: _cell(key, v) for key, v in row.items()} for name, row in values.items()}, columns)
    last = study.settings["steps"]
    pairs = [
        ("cv", "steps_to_target", "cv and Adam's steps to the target", 1),
        ("ntk_variance", "steps_to_target", "variance and Adam's steps to the target", 1),
        ("cv", f"predicted_{last}", "cv and predicted gradient descent", -1),
        ("cv", f"gd_{last}", "cv and measured gradient descent", -1),
        (f"predicted_{last}", f"gd_{last}", "predicted and measured gradient descent", 1),
    ]
    names = [result.name for result in study.variants if not result.diverged]
    pairs = [pair for pair in pairs if {pair[0], pair[1]} <= shown]
    correlations = [c for pair in pairs if (c := _spearman(rows, names, *pair)) is not None]
    partial = Summary(target, source, columns, rows, correlations, [])
    return dataclasses.replace(partial, conclusion=_conclude(study, partial))


def check_target(target_psnr: float | None) -> None:
    """Raise ``ValueError`` where a target is given and is not a finite number of dB."""
    if target_psnr is not None and not math.isfinite(target_psnr):
        raise ValueError(f"the target PSNR is {target_psnr}; expected a finite number of dB, such as 25.")


def report_steps(study: Study) -> list[int]:
    """Return the few step counts that the table shows: a tenth, a third, all."""
    steps = study.settings["steps"]
    return sorted({max(1, round(steps / 10)), max(1, round(steps / 3)), steps})


def _common_target(study: Study) -> float:
    curves = [result.arrays["adam_psnr"] for result in study.variants if not result.diverged]
    best = [np.fmax.reduce(curve, axis=1).min() for curve in curves]
    finite = [value for value in best if np.isfinite(value)]
    return math.floor(2 * min(finite)) / 2 if finite else math.nan


def _columns(study: Study, target: float) -> list[Column]:
    table = [
        Column("parameters", "params", None, "conditioning", "trained parameters"),
        Column("ntk_mean", "NTK mean", None, "conditioning", "mean eigenvalue of the NTK at initialisation"),
        Column("ntk_variance", "NTK variance", None, "conditioning", "variance of the eigenvalues; depends on scale"),
        Column("cv", "cv", "min", "conditioning", "sqrt(variance) / mean, free of scale"),
        Column("effective_rank", "eff. rank", "max", "conditioning", "n / (1 + cv^2)"),
        Column("condition_number", "condition", "min", "conditioning", "largest over smallest eigenvalue, float64"),
    ]
    kinds = [("predicted", "predicted", "descent"), ("gd", "measured", "descent")] if study.task["descends"] else []
    if any(np.isfinite(result.arrays["adam_psnr"]).any() for result in study.variants):
        kinds.append(("adam", "PSNR", "adam"))
    for kind, title, group in kinds:
        table += [
            Column(f"{kind}_{step}", f"{title} @{step}", "max", group, f"PSNR in dB after {step} steps, {title}")
            for step in report_steps(study)
        ]
    if math.isfinite(target):
        table += [
            Column("steps_to_target", f"steps to {target:g} dB", "min", "adam", "steps to the target PSNR"),
            Column("seconds_to_target", f"seconds to {target:g} dB", "min", "adam", "seconds of training a seed to it"),
        ]
    # The curves have the PSNR of an image's training pixels.
    known = "score_psnr" if study.task["kind"] == "image" else None
    return table + [score_column(key) for key in _scores(study) if key != known]


def _scores(study: Study) -> list[str]:
    """Return the keys of the scores of reconstructions."""
    return list(
        {key: 0 for result in study.variants for seed in result.seeds for key in seed if key.startswith("score_")}
    )


def score_column(key: str) -> Column:
    """Return the column of a score."""
    name = key.removeprefix("score_")
    title, best, text = _SCORES.get(name, (name.replace("_", " "), "max", "score of the reconstruction at the end"))
    return Column(key, title, best, "adam", text)


def _values(study: Study, result: VariantResult, target: float) -> dict[str, np.ndarray]:
    """Return each figure of one variant, (seeds,)."""
    keys = ["ntk_mean", "ntk_variance", "cv", "effective_rank", "condition_number", *_scores(study)]
    values = {key: result.over_seeds(key) for key in keys}
    values["parameters"] = np.array([result.parameters], float)
    for kind in ("predicted", "gd", "adam"):
        curves = result.arrays.get(f"{kind}_psnr")
        if curves is not None:
            values |= {f"{kind}_{step}": curves[:, step].astype(float) for step in report_steps(study)}
    values["steps_to_target"] = result.steps_to(target)
    values["seconds_to_target"] = result.seconds_to(target)
    if not all(seed["condition_resolved"] for seed in result.seeds):
        # What rounding lets one assert is a bound, so a spread would be misleading.
        values["condition_number"] = np.array([values["condition_number"].min()])
    values["condition_bound"] = np.array([float(not all(seed["condition_resolved"] for seed in result.seeds))])
    return values


def _cell(key: str, values: np.ndarray) -> Cell:
    if np.isinf(values).any():
        return Cell(math.inf, math.nan, "not reached" if key.endswith("_to_target") else "∞")
    if np.isnan(values).all():
        return Cell(math.nan, math.nan, "–")
    mean = float(np.nanmean(values))
    spread = float(np.nanstd(values, ddof=1)) if np.isfinite(values).sum() > 1 else math.nan
    if key == "parameters":
        return Cell(mean, spread, f"{int(mean):,}")
    text = _number(mean)
    return Cell(mean, spread, text if math.isnan(spread) else f"{text} ± {_number(spread, 2, 'e' in text)}")


def _number(value: float, digits: int = 3, scientific: bool | None = None) -> str:
    """Return a number with so many significant digits; far from 1, or as told, in powers of ten."""
    if scientific is None:
        scientific = value != 0 and not 1e-3 <= abs(value) < 1e5
    if scientific:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(decimals, 4)}f}"


def _mark_best(rows: dict[str, dict[str, Cell]], columns: list[Column]) -> dict[str, dict[str, Cell]]:
    for name, row in rows.items():
        if row["condition_bound"].mean:
            rows[name]["condition_number"] = dataclasses.replace(
                row["condition_number"], text=f"> {_number(row['condition_number'].mean)}"
            )
    for column in columns:
        if column.best is None or len(rows) < 2:
            continue
        means = {name: row[column.key].mean for name, row in rows.items() if math.isfinite(row[column.key].mean)}
        if means:
            best = (min if column.best == "min" else max)(means.values())
            for name, mean in means.items():
                if mean == best:
                    rows[name][column.key] = dataclasses.replace(rows[name][column.key], best=True)
    return rows


def _spearman(
    rows: dict[str, dict[str, Cell]], names: list[str], figure: str, speed: str, text: str, sign: int
) -> Correlation | None:
    """Return the rank correlation, ``sign`` times; a target never reached ranks last."""
    if len(names) < 3:
        return None
    columns = [np.nan_to_num([rows[name][key].mean for name in names], nan=np.inf) for key in (figure, speed)]
    if any(len(np.unique(column)) == 1 for column in columns):
        return None
    import scipy.stats  # slow to import, and needed here alone

    rho = sign * float(scipy.stats.spearmanr(*columns).statistic)
    return Correlation(figure, speed, rho, f"{text} {rho:+.2f}")


def _conclude(study: Study, summary: Summary) -> list[str]:
    """Return sentences on what the study shows, each from its own numbers."""
    rows = summary.rows
    alive = [result.name for result in study.variants if not result.diverged]
    dead = [result.name for result in study.variants if result.diverged]
    said = []
    if alive and len(alive) > 1:
        lowest = min(alive, key=lambda name: rows[name]["cv"].mean)
        fastest, how = _winner(study, summary, alive)
        same = "the same variant is both" if lowest == fastest else "these are two different variants"
        said.append(f"Best conditioned is {lowest} (cv {rows[lowest]['cv'].text}); {how}: {same}.")
    elif alive:
        row = rows[alive[0]]
        said.append(f"{alive[0]} has cv {row['cv'].text} and effective rank {row['effective_rank'].text}.")
    if dead:
        rate = study.settings["learning_rate"]
        said.append(f"Diverged with Adam at learning rate {rate:g} in every seed: {', '.join(dead)}. Lower it.")
    if summary.correlations:
        listed = "; ".join(correlation.text for correlation in summary.correlations)
        said.append(
            f"Spearman's rank correlations over {len(alive)} variants (+1: the lower figure, or the higher predicted "
            f"PSNR, is always faster): {listed}."
        )
    if alive and study.task["descends"]:
        said += _prediction_gaps(study, summary, alive)
    return said + _component_effects(rows, alive)


def _winner(study: Study, summary: Summary, names: list[str]) -> tuple[str, str]:
    """Return the variant that did best with Adam, and the words for it."""
    rows = summary.rows
    none = ""
    if math.isfinite(summary.target_psnr):
        best = min(names, key=lambda name: rows[name]["steps_to_target"].mean)
        if math.isfinite(rows[best]["steps_to_target"].mean):
            steps = rows[best]["steps_to_target"].text
            return best, f"fastest with Adam to {summary.target_psnr:g} dB is {best} ({steps} steps)"
        none = f"no variant reached {summary.target_psnr:g} dB with Adam in every seed; "
    column = score_column(f"score_{study.task['metric']}")
    best = (min if column.best == "min" else max)(names, key=lambda name: rows[name][column.key].mean)
    return best, f"{none}best {column.title} with Adam has {best} ({rows[best][column.key].text})"


def _prediction_gaps(study: Study, summary: Summary, names: list[str]) -> list[str]:
    """Say where gradient descent stayed with its linearisation and where it left it."""
    last = study.settings["steps"]
    close, far = [], []
    for name in names:
        gap = summary.rows[name][f"gd_{last}"].mean - summary.rows[name][f"predicted_{last}"].mean
        drift, after = (study[name].over_seeds(key).mean() for key in ("gd_kernel_drift", "gd_cv_after"))
        if abs(gap) <= _CLOSE_DB:
            close.append(name)
        else:
            cv = f"cv {_number(summary.rows[name]['cv'].mean)} to {_number(after)}"
            far.append(f"{name} ended {gap:+.1f} dB from it (kernel moved by {100 * drift:.0f} %, {cv})")
    said = []
    if close:
        said.append(
            f"The kernel at initialisation predicts gradient descent within {_CLOSE_DB:g} dB after {last} steps for "
            f"{', '.join(close)}."
        )
    if far:
        said.append(f"The kernel changes during gradient descent, so the linear prediction fails: {'; '.join(far)}.")
    return said


def _component_effects(rows: dict[str, dict[str, Cell]], names: list[str]) -> list[str]:
    """Compare each variant with the one that lacks one of its components, a sentence a component."""
    effects: dict[str, list[tuple[str, float, float]]] = {}
    for name in names:
        parts = name.split("+")
        for part in parts[1:]:
            base = "+".join(p for p in parts if p != part)
            if base in names:
                cv, variance = (rows[name][key].mean / rows[base][key].mean for key in ("cv", "ntk_variance"))
                effects.setdefault(part, []).append((base, cv, variance))
    said = []
    for part, found in effects.items():
        listed = "; ".join(f"{base}: cv × {cv:.2f}, variance × {variance:.3g}" for base, cv, variance in found)
        said.append(f"Adding {part} to {listed}.{_reason(part, [cv for _, cv, _ in found])}")
    return said


def _reason(part: str, ratios: list[float]) -> str:
    """Say what the theory knows of such a change of cv."""
    if part == "sphere":
        if all(abs(ratio - 1) <= 0.15 for ratio in ratios):
            return (
                " With a zero-mean readout spherical normalization is close to a change of scale (T5): "
                "the variance follows the gain and cv stays."
            )
        return " Biases and unequal norms let spherical normalization change the angles too (T5)."
    if part == "hadamard":
        if all(ratio < 1 for ratio in ratios):
            return " Fixed unit-energy factors multiply the kernel by similarities below one (T6.4)."
        return " At this width the 1/m floor of (6.3) outweighs the similarities below one."
    return ""
