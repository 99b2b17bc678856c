"""What follows from a study: its table ranked by the task's own metric, rank correlations, a conclusion."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterable

import numpy as np

from ntk_inr._results import Record, Scalar, result, static, text_table
from ntk_inr.study.record import Study
from ntk_inr.study.table import (
    ERRORS,
    GROUPS,
    Cell,
    Column,
    baseline_row,
    cell,
    columns_of,
    counted_values,
    goal_of,
    leaders,
    number,
    ranked,
    stderr,
    values_of,
)
from ntk_inr.tasks.metrics import EXACT, EXACT_DB

_CLOSE_DB = 1.0
# A rank correlation over fewer networks says nothing.
_LEAST_CORRELATED = 6
_MOST_LISTED = 6
_MOST_ROWS = 16

STAR = "★ best of its column, and what two standard errors can't tell from it; no mark where all are alike"
EXACT_NOTE = (
    f"{EXACT}: the error is below that of rounding to 8 bits itself (58.9 dB), so that what lies above "
    f"{EXACT_DB:g} dB is no property of the data; it counts as {EXACT_DB:g} in means, ranks and curves"
)

# column key: {variant: its figures (seeds,) as they count, NaN where there is nothing to rank}
Counted = dict[str, dict[str, np.ndarray]]


@result
class Correlation:
    """Spearman's rank correlation over variants between a figure and a speed.

    Attributes:
        figure: column key of the figure, such as "cv".
        speed: column key of the speed.
        rho: +1 where a lower figure always goes with a faster variant.
        text: both, and the number of variants, to read.
    """

    figure: str = static()
    speed: str = static()
    rho: Scalar
    text: str = static()


@result
class Summary:
    """The table of a study and what follows from it.

    Attributes:
        target_psnr: the PSNR in dB that steps and seconds count up to.
        target_source: how it was chosen.
        goal: the column that variants are ranked by: the task's own metric, where nothing was trained on if it can be.
        columns: the columns.
        rows: ``{variant: {column key: Cell}}``, best first; those with seeds that diverged are last.
        baselines: the same of simpler methods, which are not ranked.
        leaders: ``{column key: variants}``: the best, and those that can't be told from it.
        correlations: rank correlations over variants, empty below six of them.
        conclusion: sentences; the first is the shortest answer.
    """

    target_psnr: Scalar
    target_source: str = static()
    goal: Column = static()
    columns: tuple[Column, ...] = static()
    rows: Record
    baselines: Record
    leaders: Record = static()
    correlations: list[Correlation]
    conclusion: tuple[str, ...] = static()

    def __str__(self) -> str:
        """Return the goal and cv of each variant, best first, and the shortest answer."""
        shown = list(self.rows.items())[:_MOST_ROWS]
        lines = [(name[:40], _with_unit(row, self.goal), row["cv"].text) for name, row in shown]
        more = [f"... {len(self.rows) - len(shown)} more"] * (len(self.rows) > len(shown))
        table = text_table([("variant", self.goal.title, "cv"), *lines])
        return "\n".join([table, *more, *textwrap.wrap(" ".join(self.conclusion[:1]), 100)[:4]])

    @property
    def groups(self) -> dict[str, str]:
        """The parts of the table that have columns, with their titles."""
        used = {column.group for column in self.columns}
        return {group: title for group, title in GROUPS.items() if group in used}

    def lines(self, group: str) -> dict[str, list[Cell]]:
        """Return the lines of one part of the table: variants, best first, then baselines that have cells in it."""
        keys = [column.key for column in self.columns if column.group == group]
        empty = Cell(math.nan, math.nan, "")
        lines = {name: [row[key] for key in keys] for name, row in self.rows.items()}
        return lines | {
            f"{name} (baseline)": [row.get(key, empty) for key in keys]
            for name, row in self.baselines.items()
            if set(row) & set(keys)
        }

    @property
    def notes(self) -> list[str]:
        """What has to be known to read the table."""
        cells = [cell for row in [*self.rows.values(), *self.baselines.values()] for cell in row.values()]
        return [STAR, *[EXACT_NOTE] * any(cell.text == EXACT for cell in cells)]


def summarize(study: Study, target_psnr: float | None = None) -> Summary:
    """Return the table, the rank correlations and the conclusion of a study.

    Args:
        study: with at least one variant.
        target_psnr: in dB; None is the highest that every variant's every seed reached
            (rounded down to 0.5 dB; variants that diverged left out; of 8-bit data at most 60).

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
    goal, columns = goal_of(study), columns_of(study, target)
    values = {result.name: values_of(study, result, target) for result in study.variants}
    counted = {
        column.key: {r.name: counted_values(r, column, values[r.name][column.key]) for r in study.variants}
        for column in columns
    }
    names = ranked(study, counted[goal.key], goal.best)
    best = {column.key: leaders(counted[column.key], column.best) for column in columns}
    best[goal.key].sort(key=names.index)
    rows = {
        name: {column.key: cell(study[name], column, values[name][column.key]) for column in columns} for name in names
    }
    for key, winners in best.items():
        # A mark on all of them would tell nothing.
        for name in winners if len(winners) < len(rows) else []:
            rows[name][key] = dataclasses.replace(rows[name][key], best=True)
    baselines = {entry["name"]: baseline_row(entry["scores"], columns) for entry in study.baselines}
    correlations = _correlations(study, counted)
    summary = Summary(
        target, source, goal, tuple(columns), Record(rows), Record(baselines), Record(best), correlations, ()
    )
    return dataclasses.replace(summary, conclusion=tuple(_conclude(study, summary, counted)))


def check_target(target_psnr: float | None) -> None:
    """Raise ``ValueError`` where a target is given and is not a finite number of dB."""
    if target_psnr is not None and not math.isfinite(target_psnr):
        raise ValueError(f"the target PSNR is {target_psnr}; expected a finite number of dB, such as 25.")


def _common_target(study: Study) -> float:
    curves = [result.arrays["adam_psnr"] for result in study.variants if not result.diverged]
    best = [np.fmax.reduce(curve, axis=1).min() for curve in curves]
    finite = [value for value in best if np.isfinite(value)]
    lowest = math.floor(2 * min(finite)) / 2 if finite else math.nan
    return min(lowest, EXACT_DB) if study.task["eight_bit_curves"] else lowest


def _correlations(study: Study, counted: Counted) -> list[Correlation]:
    last = study.settings["steps"]
    pairs = [
        ("cv", "steps_to_target", f"cv and {study.optimizer}'s steps to the target", 1),
        ("ntk_variance", "steps_to_target", f"variance and {study.optimizer}'s steps to the target", 1),
        ("cv", f"predicted_{last}", "cv and predicted gradient descent", -1),
        ("cv", f"gd_{last}", "cv and measured gradient descent", -1),
        (f"predicted_{last}", f"gd_{last}", "predicted and measured gradient descent", 1),
    ]
    pairs = [pair for pair in pairs if {pair[0], pair[1]} <= set(counted)]
    return [correlation for pair in pairs if (correlation := _spearman(counted, *pair)) is not None]


def _spearman(counted: Counted, figure: str, speed: str, text: str, sign: int) -> Correlation | None:
    """Return the rank correlation, ``sign`` times; a target never reached ranks last."""
    means = np.array([[np.mean(values) for values in counted[key].values()] for key in (figure, speed)])
    means = means[:, ~np.isnan(means).any(axis=0)]
    if means.shape[1] < _LEAST_CORRELATED or any(len(np.unique(each)) == 1 for each in means):
        return None
    import scipy.stats  # slow to import, and needed here alone

    rho = sign * float(scipy.stats.spearmanr(*means).statistic)
    return Correlation(figure, speed, rho, f"{text} {rho:+.2f} ({means.shape[1]} variants)")


def _conclude(study: Study, summary: Summary, counted: Counted) -> list[str]:
    """Return sentences on what the study shows, each from its own numbers."""
    sentences = [_headline(study, summary), *study.warnings, *_not_learned(study), *_beside_baselines(summary, counted)]
    if len(summary.rows) > 1:
        sentences += [*_fastest(summary), *_conditioning(summary)]
        if study.settings["seeds"] == 1:
            sentences.append("One seed tells nothing of the spread over seeds: small differences may be chance.")
    else:
        row = next(iter(summary.rows.values()))
        sentences.append(f"Its kernel has cv {row['cv'].text} and effective rank {row['effective_rank'].text}.")
    if study.task["descends"]:
        sentences += _prediction_gaps(study, summary, counted)
    sentences += _additions(study, summary)
    if summary.correlations:
        listed = "; ".join(correlation.text for correlation in summary.correlations)
        sentences.append(
            "Spearman's rank correlations (+1: the lower figure, or the higher predicted PSNR, is always faster): "
            f"{listed}."
        )
    return sentences


def _headline(study: Study, summary: Summary) -> str:
    goal, rows = summary.goal, summary.rows
    when = f"after {study.settings['steps']} steps of {study.optimizer}"
    best = summary.leaders[goal.key]
    if len(rows) == 1:
        name = next(iter(rows))
        return f"{name} has {goal.title} {_with_unit(rows[name], goal)} {when}."
    if not best:
        return f"No variant has {goal.title} from every seed {when}, so none is ranked."
    listed = _listed(summary, goal, best)
    if len(best) > 1:
        return f"Best {goal.title} {when}: {listed}; they can't be told apart."
    second = next(name for name in rows if name != best[0])
    return f"Best {goal.title} {when}: {listed}; next is {second} with {_with_unit(rows[second], goal)}."


def _not_learned(study: Study) -> list[str]:
    sentences = []
    for status, what in (
        ("diverged", "Diverged, and so not ranked"),
        ("ended above the start", "Ended with a loss above the start"),
    ):
        counts = [(result, result.seeds_that(status)) for result in study.variants]
        listed = ", ".join(
            f"{result.name} in {count} of {len(result.seeds)} seeds, with {result.optimizer} at {result.rate}"
            for result, count in counts
            if count
        )
        if listed:
            sentences.append(f"{what}: {listed}. Try a lower rate.")
    return sentences


def _beside_baselines(summary: Summary, counted: Counted) -> list[str]:
    """Say which variants are better than each baseline by two standard errors."""
    sentences, goal = [], summary.goal
    sign = 1 if goal.best == "max" else -1
    for name, row in summary.baselines.items():
        if goal.key not in row:
            continue
        better = []
        for variant, values in counted[goal.key].items():
            if sign * (np.mean(values) - row[goal.key].mean) > ERRORS * stderr(values):
                better.append(variant)
        listed = f"better is {', '.join(better)}" if better else "no variant is better"
        sentences.append(f"Baseline, {name}: {goal.title} {_with_unit(row, goal)}; {listed}.")
    return sentences


def _fastest(summary: Summary) -> list[str]:
    column = next((column for column in summary.columns if column.key == "steps_to_target"), None)
    if column is None:
        return []
    best = summary.leaders[column.key]
    if not best:
        return [f"No variant reached {summary.target_psnr:g} dB in every seed."]
    if len(best) == len(summary.rows):
        return [f"No variant is faster than the others to {summary.target_psnr:g} dB."]
    return [f"Fastest to {summary.target_psnr:g} dB: {_listed(summary, column, best)}."]


def _conditioning(summary: Summary) -> list[str]:
    column = next(column for column in summary.columns if column.key == "cv")
    best, goal = summary.leaders["cv"], summary.goal
    if not best or len(best) == len(summary.rows):
        return []
    among = "" if set(best) & set(summary.leaders[goal.key]) else "not "
    return [f"Lowest cv at initialisation: {_listed(summary, column, best)}; {among}among the best by {goal.title}."]


def _prediction_gaps(study: Study, summary: Summary, counted: Counted) -> list[str]:
    """Say where gradient descent stayed with its linearisation and where it left it."""
    last = study.settings["steps"]
    close, far, unknown = [], [], []
    for name in summary.rows:
        measured, predicted = (float(np.mean(counted[f"{kind}_{last}"][name])) for kind in ("gd", "predicted"))
        gap = measured - predicted
        if abs(gap) <= _CLOSE_DB:
            close.append(name)
        elif math.isfinite(gap):
            drift, after = (study[name].over_seeds(key).mean() for key in ("gd_kernel_drift", "gd_cv_after"))
            cv = f"cv {number(summary.rows[name]['cv'].mean)} to {number(after)}"
            far.append(f"{name} {gap:+.1f} dB (kernel moved by {100 * drift:.0f} %, {cv})")
        else:
            unknown.append(name)
    sentences = []
    if close:
        sentences.append(
            f"The kernel at initialisation predicts gradient descent within {_CLOSE_DB:g} dB after {last} steps for "
            f"{', '.join(close)}."
        )
    if far:
        sentences.append(
            f"Gradient descent ended more than {_CLOSE_DB:g} dB from what the kernel at initialisation predicts: "
            f"{'; '.join(far)}."
        )
    if unknown:
        sentences.append(f"Gradient descent has no end to hold beside what is predicted: {', '.join(unknown)}.")
    return sentences


def _additions(study: Study, summary: Summary) -> list[str]:
    """Say what came with a component more, a sentence a component: networks are compared by their modules."""
    changes_of: dict[str, list[str]] = {}
    goal = summary.goal
    for added in study.additions:
        if {added.base, added.name} <= set(summary.rows):
            base, row = summary.rows[added.base], summary.rows[added.name]
            variance = row["ntk_variance"].mean / base["ntk_variance"].mean
            changes_of.setdefault(f"{added.component} {added.module}", []).append(
                f"{added.base} to {added.name}, {goal.title} {base[goal.key].text} to {_with_unit(row, goal)}, "
                f"cv {base['cv'].text} to {row['cv'].text}, variance × {variance:.3g}"
            )
    return [f"With {what} added: {'; '.join(changes)}." for what, changes in changes_of.items()]


def _listed(summary: Summary, column: Column, names: Iterable[str]) -> str:
    names = list(names)
    shown = [f"{name} with {_with_unit(summary.rows[name], column)}" for name in names[:_MOST_LISTED]]
    left = len(names) - len(shown)
    return ", ".join(shown) + f" and {left} more" * bool(left)


def _with_unit(row: dict[str, Cell], column: Column) -> str:
    text = row[column.key].text
    return f"{text} {column.unit}" if column.unit and text[-1:].isdigit() else text
