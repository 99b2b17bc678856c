"""From raw results to what a reader wants: a table, a rank correlation, a conclusion."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.stats

from ntk_inr.study.record import Study, VariantResult


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
class Summary:
    """The table of a study and what follows from it.

    Attributes:
        target_psnr: the PSNR in dB that steps and seconds count up to.
        target_source: how it was chosen.
        columns: the columns.
        rows: ``{variant: {column key: Cell}}``.
        correlations: Spearman's rank correlation over variants between cv and each speed, None below three variants.
        conclusion: sentences, the first the shortest answer.
    """

    target_psnr: float
    target_source: str
    columns: list[Column]
    rows: dict[str, dict[str, Cell]]
    correlations: dict[str, float | None]
    conclusion: list[str]


def summarize(study: Study, target_psnr: float | None = None) -> Summary:
    """Return the table, the rank correlations and the conclusion of a study.

    Args:
        study: with at least one variant.
        target_psnr: in dB; None is the highest that every variant's every seed reached with Adam
            (rounded down to 0.5 dB; variants that diverged left out).

    Raises:
        ValueError: the study has no variants.

    Example:
        >>> import numpy as np, ntk_inr as ni
        >>> study = ni.compare(ni.image_task(np.eye(6), size=None), ["relu"], features=8, depth=1, steps=3, seeds=1)
        >>> ni.summarize(study).rows["relu"]["parameters"].text
        '33'
    """
    if not study.variants:
        raise ValueError("this study has no finished variant yet; run it again with --resume.")
    if target_psnr is None:
        target, source = _common_target(study), "the highest that every variant reached, rounded down to 0.5 dB"
    else:
        target, source = float(target_psnr), "as asked for"
    columns = _columns(study, target)
    values = {result.name: _values(study, result, target) for result in study.variants}
    rows = _mark_best({name: {key: _cell(key, v) for key, v in row.items()} for name, row in values.items()}, columns)
    correlations = {
        "steps with Adam": _spearman(study, rows, "adam_steps"),
        "final PSNR of gradient descent, predicted": _spearman(study, rows, f"predicted_{study.settings['steps']}", -1),
        "final PSNR of gradient descent, measured": _spearman(study, rows, f"gd_{study.settings['steps']}", -1),
    }
    partial = Summary(target, source, columns, rows, correlations, [])
    return dataclasses.replace(partial, conclusion=_conclude(study, partial))


def report_steps(study: Study) -> list[int]:
    """Return the few step counts that the table shows: a tenth, a third, all."""
    steps = study.settings["steps"]
    return sorted({max(1, round(steps / 10)), max(1, round(steps / 3)), steps})


def _common_target(study: Study) -> float:
    best = [np.nanmax(result.arrays["adam_psnr"], axis=1).min() for result in study.variants if not result.diverged]
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
    kinds = (("predicted", "predicted", "descent"), ("gd", "measured", "descent"), ("adam", "PSNR", "adam"))
    for kind, title, group in kinds:
        table += [
            Column(f"{kind}_{step}", f"{title} @{step}", "max", group, f"PSNR in dB after {step} steps, {title}")
            for step in report_steps(study)
        ]
    if math.isfinite(target):
        table += [
            Column("adam_steps", f"steps to {target:g} dB", "min", "adam", "steps to the target PSNR"),
            Column("adam_seconds", f"seconds to {target:g} dB", "min", "adam", "seconds of training a seed to the target PSNR"),
        ]
    table.append(Column("image_ssim", "SSIM", "max", "adam", "structural similarity of the whole image at the end"))
    if study.task["trained_pixels"] < study.task["pixels"]:
        table.append(Column("image_heldout_psnr", "held-out PSNR", "max", "adam", "PSNR in dB on the pixels held out"))
    return table


def _values(study: Study, result: VariantResult, target: float) -> dict[str, np.ndarray]:
    """Return each figure of one variant, (seeds,)."""
    keys = ("ntk_mean", "ntk_variance", "cv", "effective_rank", "condition_number", "image_ssim", "image_heldout_psnr")
    values = {key: result.over_seeds(key) for key in keys}
    values["parameters"] = np.array([result.parameters], float)
    for kind in ("predicted", "gd", "adam"):
        for step in report_steps(study):
            values[f"{kind}_{step}"] = result.arrays[f"{kind}_psnr"][:, step].astype(float)
    values["adam_steps"] = result.steps_to(target)
    values["adam_seconds"] = result.seconds_to(target)
    if not all(seed["condition_resolved"] for seed in result.seeds):
        # What rounding lets one assert is a bound, so a spread would be misleading.
        values["condition_number"] = np.array([values["condition_number"].min()])
    values["condition_bound"] = np.array([float(not all(seed["condition_resolved"] for seed in result.seeds))])
    return values


def _cell(key: str, values: np.ndarray) -> Cell:
    if np.isinf(values).any():
        return Cell(math.inf, math.nan, "not reached")
    if np.isnan(values).all():
        return Cell(math.nan, math.nan, "–")
    mean = float(np.nanmean(values))
    spread = float(np.nanstd(values, ddof=1)) if np.isfinite(values).sum() > 1 else math.nan
    if key == "parameters":
        return Cell(mean, spread, f"{int(mean):,}")
    text = _number(mean)
    return Cell(mean, spread, text if math.isnan(spread) else f"{text} ± {_number(spread, 2)}")


def _number(value: float, digits: int = 3) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
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


def _spearman(study: Study, rows: dict[str, dict[str, Cell]], key: str, sign: int = 1) -> float | None:
    """Return the rank correlation of cv with a figure in which small (times ``sign``) is fast."""
    names = [result.name for result in study.variants if not result.diverged]
    if len(names) < 3:
        return None
    speed = [sign * rows[name][key].mean for name in names]
    rho = scipy.stats.spearmanr([rows[name]["cv"].mean for name in names], np.nan_to_num(speed, nan=np.inf)).statistic
    return None if math.isnan(rho) else float(rho)


def _conclude(study: Study, summary: Summary) -> list[str]:
    """Return sentences on what the study shows, each from its own numbers."""
    rows = summary.rows
    said = []
    alive = [result.name for result in study.variants if not result.diverged]
    for result in study.variants:
        if result.diverged:
            said.append(
                f"{result.name} diverged with Adam at learning rate {study.settings['learning_rate']:g} in every seed; "
                "lower it."
            )
    if not alive:
        return said
    if len(alive) == 1:
        row = rows[alive[0]]
        return [*said, f"{alive[0]}: cv {row['cv'].text}, effective rank {row['effective_rank'].text}. Compare it with another variant to learn more."]  # fmt: skip
    lowest = min(alive, key=lambda name: rows[name]["cv"].mean)
    fastest = min(alive, key=lambda name: rows[name]["adam_steps"].mean)
    verdict = "the same variant is both" if lowest == fastest else "these are two different variants"
    said.append(
        f"Best conditioned is {lowest} (cv {rows[lowest]['cv'].text}); fastest with Adam to {summary.target_psnr:g} dB "
        f"is {fastest} ({rows[fastest]['adam_steps'].text} steps): {verdict}."
    )
    said += [_read_correlation(what, rho, len(alive)) for what, rho in summary.correlations.items() if rho is not None]
    said += _prediction_gaps(study, summary, alive)
    said += _component_effects(rows, alive)
    return said


def _read_correlation(what: str, rho: float, count: int) -> str:
    strength = "explains" if rho >= 0.8 else "partly explains" if rho >= 0.4 else "does not explain"
    return f"cv {strength} {what}: Spearman's rank correlation {rho:+.2f} over {count} variants (+1: low cv is always faster)."


def _prediction_gaps(study: Study, summary: Summary, names: list[str]) -> list[str]:
    """Say where gradient descent left its linearisation."""
    last = study.settings["steps"]
    gaps = {name: summary.rows[name][f"gd_{last}"].mean - summary.rows[name][f"predicted_{last}"].mean for name in names}
    close = [name for name, gap in gaps.items() if abs(gap) <= 1]
    said = []
    if close:
        said.append(f"The NTK at initialisation predicts gradient descent after {last} steps within 1 dB for {', '.join(close)}.")
    for name, gap in gaps.items():
        if abs(gap) > 1:
            side = "above: the kernel moved towards the image" if gap > 0 else "below: the kernel moved away from its start"
            said.append(f"For {name} gradient descent ended {abs(gap):.1f} dB {side}, so the linear prediction fails there.")
    return said


def _component_effects(rows: dict[str, dict[str, Cell]], names: list[str]) -> list[str]:
    """Compare each variant with the one that lacks its last component."""
    said = []
    for name in names:
        parts = name.split("+")
        for part in parts[1:]:
            base = "+".join(p for p in parts if p != part)
            if base not in names:
                continue
            cv = rows[name]["cv"].mean / rows[base]["cv"].mean
            variance = rows[name]["ntk_variance"].mean / rows[base]["ntk_variance"].mean
            said.append(f"Adding {part} to {base} multiplies cv by {cv:.2f} and the variance by {variance:.3g}{_reason(part, cv, variance)}")
    return said


def _reason(part: str, cv: float, variance: float) -> str:
    if part == "sphere":
        if abs(cv - 1) <= 0.15:
            return ": with zero-mean readouts spherical normalization is nearly a change of scale (T5), which moves the variance and leaves cv."
        return ": biases and unequal norms let spherical normalization change the angles too (T5)."
    if part == "hadamard":
        if cv < 1:
            return ": fixed unit-energy factors multiply the kernel by similarities below one (T6.4)."
        return ": at this width the 1/m floor of (6.3) outweighs the similarities below one."
    return "." if variance < 1 else ", a change that the scale-free cv shows better than the variance."
