"""The table of a study: its columns, its cells, and what is best in each column."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ntk_inr._results import Scalar, result, static
from ntk_inr.study.record import Study, VariantResult
from ntk_inr.tasks.metrics import EXACT, EXACT_DB, HELD_OUT, counted_psnr, metric_of

# Differences count from so many standard errors on.
ERRORS = 2.0

GROUPS = {
    "quality": "Reconstruction, best first",
    "adam": "Training, each by its recipe",
    "conditioning": "Conditioning at initialisation",
    "descent": "Gradient descent: PSNR predicted from that kernel, and measured",
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
        unit: of its numbers; empty for pure numbers.
        eight_bit: whether it is PSNR of 8-bit data.
    """

    key: str
    title: str
    best: str | None
    group: str
    help: str
    unit: str = ""
    eight_bit: bool = False


@result
class Cell:
    """Mean and spread (standard deviation) over seeds of one figure of one variant.

    Attributes:
        mean: mean over seeds; infinity where a target was never reached by some seed.
        spread: sample standard deviation over seeds, NaN for one seed.
        text: both, to read; PSNR of 8-bit data as it counts, though ``mean`` and ``spread`` are as measured.
        best: whether it is the best of its column, or can't be told from it.
    """

    mean: Scalar
    spread: Scalar
    text: str = static()
    best: bool = static(default=False)


def report_steps(study: Study) -> list[int]:
    """Return the few step counts that the table shows: a tenth, a third, all."""
    steps = study.settings["steps"]
    return sorted({max(1, round(steps / 10)), max(1, round(steps / 3)), steps})


def goal_of(study: Study) -> Column:
    """Return the column that variants are ranked by: the task's own metric, where nothing was trained on if it can be.

    A metric whose better way is not known counts as better where it is higher, as tasks promise.
    """
    metric = study.task["metric"]
    known = _scores(study)
    key = next((key for key in (f"score_{start}{metric}" for start in HELD_OUT) if key in known), f"score_{metric}")
    column = _score_column(study, key)
    return dataclasses.replace(column, best=column.best or "max")


def columns_of(study: Study, target: float) -> list[Column]:
    """Return the columns of a study's table; ``target`` is the PSNR that steps are counted to, NaN for none."""
    goal, curves = goal_of(study), study.task["eight_bit_curves"]
    table = [goal, *[_score_column(study, key) for key in _scores(study) if key != goal.key]]
    kinds = [("predicted", "predicted", "descent"), ("gd", "measured", "descent")] if study.task["descends"] else []
    if any(np.isfinite(result.arrays["adam_psnr"]).any() for result in study.variants):
        kinds.append(("adam", "PSNR", "adam"))
    for kind, title, group in kinds:
        table += [
            Column(f"{kind}_{step}", f"{title} @{step}", "max", group, f"PSNR after {step} steps", "dB", curves)
            for step in report_steps(study)
        ]
    if any(result.training for result in study.variants):
        about = "largest learning rate, and how it falls over the steps"
        table.append(Column("learning_rate", "rate", None, "adam", about))
    if math.isfinite(target):
        table += [
            Column("steps_to_target", f"steps to {target:g} dB", "min", "adam", "steps to the target PSNR", "steps"),
            Column("seconds_to_target", f"seconds to {target:g} dB", "min", "adam", "seconds of training a seed", "s"),
        ]
    return [
        *table,
        Column("parameters", "params", None, "conditioning", "trained parameters"),
        Column("ntk_mean", "NTK mean", None, "conditioning", "mean eigenvalue of the NTK at initialisation"),
        Column("ntk_variance", "NTK variance", None, "conditioning", "variance of the eigenvalues; depends on scale"),
        Column("cv", "cv", "min", "conditioning", "sqrt(variance) / mean, free of scale"),
        Column("effective_rank", "eff. rank", "max", "conditioning", "n / (1 + cv^2)"),
        Column("condition_number", "condition", "min", "conditioning", "largest over smallest eigenvalue, float64"),
    ]


def values_of(study: Study, result: VariantResult, target: float) -> dict[str, np.ndarray]:
    """Return each figure of one variant as measured, (seeds,)."""
    keys = ["ntk_mean", "ntk_variance", "cv", "effective_rank", "condition_number", goal_of(study).key, *_scores(study)]
    values = {key: result.over_seeds(key) for key in keys}
    values["parameters"] = np.array([result.parameters], float)
    rate = result.training.get("learning_rate")
    values["learning_rate"] = np.array([math.nan if rate is None else rate])
    for kind in ("predicted", "gd", "adam"):
        curves = result.arrays.get(f"{kind}_psnr")
        if curves is not None:
            values |= {f"{kind}_{step}": curves[:, step].astype(float) for step in report_steps(study)}
    values["steps_to_target"] = result.steps_to(target)
    values["seconds_to_target"] = result.seconds_to(target)
    if not _condition_resolved(result):
        # What rounding lets one assert is a bound, so a spread would be misleading.
        values["condition_number"] = np.array([values["condition_number"].min()])
    return values


def counted_values(result: VariantResult, column: Column, values: np.ndarray) -> np.ndarray:
    """Return the figures of one variant as they count in a column, NaN where there is nothing to rank."""
    spoilt = column.group in ("quality", "adam") and result.diverged_seeds
    if spoilt or (column.key == "condition_number" and not _condition_resolved(result)):
        return np.full(len(values), np.nan)
    return counted_psnr(values, eight_bit=column.eight_bit)


def leaders(counted: Mapping[str, np.ndarray], best: str | None) -> list[str]:
    """Return which is best, and which can't be told from it by two standard errors; of those known in every seed.

    Example:
        >>> leaders({"a": np.array([30.0, 31.0]), "b": np.array([29.9, 30.8]), "c": np.array([20.0, 20.1])}, "max")
        ['a', 'b']
    """
    whole = {name: values for name, values in counted.items() if np.isfinite(values).all()}
    if not whole or best is None:
        return []
    first = (min if best == "min" else max)(whole.values(), key=np.mean)

    def alike(values: np.ndarray) -> bool:
        return bool(abs(values.mean() - first.mean()) <= ERRORS * math.hypot(stderr(values), stderr(first)))

    return sorted((name for name in whole if alike(whole[name])), key=lambda name: whole[name] is not first)


def stderr(values: np.ndarray) -> float:
    """Return the standard error of the mean, 0 where one value tells none."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 and np.isfinite(values).all() else 0.0


def ranked(study: Study, counted: Mapping[str, np.ndarray], best: str | None) -> list[str]:
    """Return the names of the variants, best first; those with seeds that diverged come last."""

    def place(result: VariantResult) -> tuple[int, float]:
        mean = float(np.mean(counted[result.name]))
        mean = -mean if best == "max" else mean
        return result.diverged_seeds, math.inf if math.isnan(mean) else mean

    return [result.name for result in sorted(study.variants, key=place)]


def cell(result: VariantResult, column: Column, values: np.ndarray) -> Cell:
    """Return what is shown of one figure of one variant."""
    if column.key == "learning_rate":
        other = "" if result.optimizer == "Adam" else f"{result.optimizer}, "
        return Cell(float(values[0]), math.nan, other + result.rate)
    if np.isnan(values).all():
        return Cell(math.nan, math.nan, "–")
    known = values[~np.isnan(values)]
    finite = np.isfinite(values)
    mean = float(known.mean())
    spread = float(np.std(values[finite], ddof=1)) if finite.all() and len(values) > 1 else math.nan
    if column.key.endswith("_to_target") and not finite.all():
        some = f" by {(~finite).sum()} of {len(values)}" if finite.any() else ""
        return Cell(math.inf, math.nan, f"not reached{some}")
    if column.key == "parameters":
        return Cell(mean, spread, f"{int(mean):,}")
    text = _in_words(known, column)
    if column.key == "condition_number" and not _condition_resolved(result):
        text = f"> {text}"
    return Cell(mean, spread, text + f" (of {len(known)} seeds)" * (len(known) < len(values)))


def baseline_row(scores: Mapping[str, float | None], columns: list[Column]) -> dict[str, Cell]:
    """Return the cells that a simpler method has."""
    row = {}
    for column in columns:
        value = scores.get(column.key.removeprefix("score_"))
        if column.key.startswith("score_") and value is not None:
            row[column.key] = Cell(value, math.nan, _in_words(np.array([value]), column))
    return row


def number(value: float, digits: int = 3, scientific: bool | None = None) -> str:
    """Return a number with so many significant digits; far from 1, or as told, in powers of ten."""
    if scientific is None:
        scientific = value != 0 and not 1e-3 <= abs(value) < 1e5
    if scientific:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(decimals, 4)}f}"


def _in_words(values: np.ndarray, column: Column) -> str:
    if column.eight_bit and values.min() > EXACT_DB:
        return EXACT
    values = counted_psnr(values, eight_bit=column.eight_bit)
    if np.isinf(values).any():
        return "∞" if values.max() > 0 else "-∞"
    text = number(float(values.mean()))
    if len(values) < 2:
        return text
    return f"{text} ± {number(float(np.std(values, ddof=1)), 2, 'e' in text)}"


def _scores(study: Study) -> list[str]:
    """Return the keys of the scores of reconstructions."""
    return list(
        {key: 0 for result in study.variants for seed in result.seeds for key in seed if key.startswith("score_")}
    )


def _score_column(study: Study, key: str) -> Column:
    name = key.removeprefix("score_")
    metric = metric_of(name)
    best = {"higher": "max", "lower": "min", None: None}[metric.better]
    eight_bit = name.endswith("psnr") and study.task["eight_bit"]
    return Column(key, metric.title, best, "quality", metric.help, metric.unit, eight_bit)


def _condition_resolved(result: VariantResult) -> bool:
    return all(seed["condition_resolved"] for seed in result.seeds)
