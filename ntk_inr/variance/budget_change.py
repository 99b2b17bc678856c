"""What changed the variance between two budgets: exact contributions of each factor of each term."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ntk_inr import _checks
from ntk_inr._results import result, static
from ntk_inr.variance.budget_report import aligned, cell, clipped, largest
from ntk_inr.variance.sums import Figures

FACTORS = (
    "coordinates",
    "forward scale",
    "backward scale",
    "scale",
    "unequal norms",
    "forward similarity",
    "backward similarity",
    "joint similarity",
    "similarity",
    "other layers",
    "diagonal",
    "on or off",
)
_COLUMN = {name: position for position, name in enumerate(FACTORS)}
_DECIBELS = 10 / math.log(10)
# Contributions that cancel to this, of their own size, have changed nothing.
_NOTHING = 1e-12
# Terms and columns that ``print`` shows.
_ROWS, _COLUMNS = 16, 5

Figure = Literal["cv", "variance", "mean"]


@result
class BudgetChange:
    r"""The change from one variance budget to another, as contributions of each factor of each term.

    An entry x of the budget is a product of factors f_k, and the change of its logarithm their sum. The entries are
    weighted so that the sum over all of them is exact:

    .. math:: \ln \frac{v'}{v} = \sum_x w_x \sum_k \ln \frac{f_k'}{f_k}, \qquad
        w_x = \frac{L(x/v,\; x'/v')}{\sum_y L(y/v,\; y'/v')}, \qquad L(a, b) = \frac{b - a}{\ln(b/a)}

    This does not depend on an order of the factors. The mean is split likewise, and a contribution to cv^2 is the one
    to the variance less twice the one to the mean; those of a scale that all terms share cancel. The factors:

    - "coordinates": n - 1, where the budgets are at different numbers of coordinates.
    - "forward scale", "backward scale": R_F^4 and R_B^4 (in the mean R_F^2 and R_B^2).
    - "forward similarity", "backward similarity": the means of tau_F and tau_B.
    - "joint similarity": Omega / (tau_F tau_B), large where similar inputs also have similar sensitivities.
    - "unequal norms": what unequal F_ii and B_ii add.
    - "scale", "similarity": mean^2 and Omega, of a term that is not one product of F and B.
    - "other layers": correlations with other terms. An entry that is not positive in both budgets has no
      logarithm; the change of its share of v, over the sum of L, stands here whole.
    - "diagonal": covariances of the kernel's diagonal, beyond its scales.
    - "on or off": whatever involves a term that one of the budgets has not, or has at zero.

    Attributes:
        variance: (R, K), contributions to ``ln(v' / v)``.
        mean: (R, K), contributions to the logarithm of the ratio of the means.
        before: "cv", "variance" and "mean" of the first budget.
        after: likewise of the second.
        names: the R rows: terms of the first budget, then those that only the second has.
        factors: the K columns.
    """

    variance: Any
    mean: Any
    before: dict[str, Any]
    after: dict[str, Any]
    names: tuple[str, ...] = static()
    factors: tuple[str, ...] = static()

    @property
    def cv(self) -> Any:
        """Contributions (R, K) to ``ln(cv'**2 / cv**2)``."""
        return self.variance - 2 * self.mean

    def percent(self, of: Figure = "cv") -> Any:
        """Return contributions (R, K) in percent of the whole change; NaN where nothing changed.

        Args:
            of: "cv", "variance" or "mean".

        Raises:
            ValueError: unknown ``of``.
        """
        contributions = self._contributions(of)
        total = contributions.sum()
        changed = abs(total) > _NOTHING * np.abs(contributions).sum()
        return contributions * (100 / total if changed else math.nan)

    def table(self, of: Figure = "cv") -> str:
        """Return contributions as text, in decibels: ``10 log10`` of the ratio of cv^2, of the variance or of the mean.

        Args:
            of: "cv", "variance" or "mean".

        Raises:
            ValueError: unknown ``of``.
        """
        return self._table(of, None, None)

    def __str__(self) -> str:
        return self._table("cv", _ROWS, _COLUMNS)

    def _table(self, of: Figure, most: int | None, columns: int | None) -> str:
        """Return the table of the ``most`` terms and of so many ``columns`` that weigh most, the others in "rest"."""
        decibels, percent = np.asarray(self._contributions(of) * _DECIBELS), np.asarray(self.percent(of))
        weights = np.abs(decibels)
        shown, _ = largest(weights.sum(0), columns)
        shown = [k for k in shown if weights[:, k].any()]
        others = [k for k in range(len(self.factors)) if k not in shown and weights[:, k].any()]
        kept, left = largest(weights.sum(1), most)
        names = self.names if most is None else clipped(self.names)

        def row(name: str, decibels: np.ndarray, percent: np.ndarray) -> list[str]:
            figures = [*decibels[shown], *[decibels[others].sum()] * bool(others), decibels.sum()]
            return [name, *(f"{value:+z.2f}" for value in figures), cell(percent.sum(), "z.1f")]

        rows = [row(names[term], decibels[term], percent[term]) for term in kept]
        rows.append(row("all", decibels.sum(0), percent.sum(0)))
        heads = ["term", *(self.factors[k] for k in shown), *["rest"] * bool(others), "all", "%"]
        changes = [f"{name} {self.before[name]:.4g} -> {self.after[name]:.4g}" for name in get_args(Figure)]
        what = {"cv": "cv squared", "variance": "the variance", "mean": "the mean"}[of]
        lines = ["; ".join(changes), f"contributions to the change of {what}, in dB:", aligned(heads, rows)]
        if left:
            lines.append(f"… {left} more; .table() has all")
        return "\n".join(lines)

    def _contributions(self, of: str) -> np.ndarray:
        _checks.check_choice(of, get_args(Figure), "of")
        return np.asarray({"cv": self.cv, "variance": self.variance, "mean": self.mean}[of])


def attributed(first: Any, second: Any) -> BudgetChange:
    """Return the change from one :class:`VarianceBudget` to another."""
    for budget in (first, second):
        if not (budget.variance > 0 and budget.mean > 0):
            raise ValueError(
                f"a budget has variance {budget.variance:g} and mean {budget.mean:g}; both must be above zero for "
                "their change to have a logarithm."
            )
    here, there = _matched(first.names, second.names)
    before, after = _rows_of(first, here), _rows_of(second, there)
    on = before.on & after.on
    if not on.any():
        raise ValueError("no term is above zero in both budgets, so none of the change is of a factor.")
    factored = before.factored & after.factored
    logarithms = zip(before.logarithms(factored), after.logarithms(factored), strict=True)
    with np.errstate(invalid="ignore"):
        pairs, diagonal, means = (new - old for old, new in logarithms)
    totals = first.variance, second.variance
    old, new = before.figures, after.figures
    contributions, weight = _of_matrix(old.off_diagonal, new.off_diagonal, totals, on, pairs, "other layers")
    more, further = _of_matrix(old.diagonal, new.diagonal, totals, on, diagonal, "diagonal")
    ends = [{name: getattr(budget, name) for name in get_args(Figure)} for budget in (first, second)]
    return BudgetChange(
        variance=(contributions + more) / (weight + further),
        mean=_of_mean(old.means / first.mean, new.means / second.mean, on, means),
        before=ends[0],
        after=ends[1],
        names=tuple(first.names[i] if i is not None else second.names[j] for i, j in zip(here, there, strict=True)),
        factors=FACTORS,
    )


def _matched(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[list[Any], list[Any]]:
    """Return the rows of a change as positions in either budget, None where a term is missing."""
    # A layer is the same one with and without a bias.
    left, right = ([name.partition(" (+")[0] for name in names] for names in (first, second))
    common = set(left) & set(right)
    if 2 * len(common) >= min(len(left), len(right)):
        added = [j for j, name in enumerate(right) if name not in common]
        there = [right.index(name) if name in common else None for name in left]
        return [*range(len(left)), *[None] * len(added)], [*there, *added]
    if len(left) == len(right):
        return [*range(len(left))], [*range(len(right))]
    raise ValueError(
        f"terms can't be matched: one budget has {len(left)} ({', '.join(left)}), the other {len(right)} "
        f"({', '.join(right)}). Compare networks of the same depth, or name their layers alike."
    )


class _Rows(NamedTuple):
    """One budget in the rows of a change, absent terms at zero."""

    n: int
    present: np.ndarray
    figures: Figures

    @property
    def on(self) -> np.ndarray:
        """Which terms are there and not zero."""
        return self.present & (self.figures.means > 0) & (np.diagonal(self.figures.off_diagonal) > 0)

    @property
    def factored(self) -> np.ndarray:
        """Which terms are a product of F and B, both with a similarity to take the logarithm of."""
        return (self.figures.forward_tau > 0) & (self.figures.backward_tau > 0)

    def logarithms(self, factored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the logarithms (R, K) of the factors of each term's entry off the diagonal, on it, and of its mean."""
        with np.errstate(divide="ignore", invalid="ignore"):
            forward, backward = np.log(self.figures.forward_scale), np.log(self.figures.backward_scale)
            overlap, mean = np.log(self.figures.overlap), np.log(self.figures.means)
            similar, sensitive = np.log(self.figures.forward_tau), np.log(self.figures.backward_tau)
            scales = np.zeros((len(factored), len(FACTORS)))
            for name, where, values in (
                ("forward scale", factored, forward),
                ("backward scale", factored, backward),
                ("scale", ~factored, mean),
            ):
                scales[:, _COLUMN[name]] = np.where(where, values, 0)
            pairs, diagonal = 2 * scales, 2 * scales
            pairs[:, _COLUMN["coordinates"]] = math.log(self.n - 1)
            for name, where, values in (
                ("forward similarity", factored, similar),
                ("backward similarity", factored, sensitive),
                ("joint similarity", factored, overlap - similar - sensitive),
                ("similarity", ~factored, overlap),
            ):
                pairs[:, _COLUMN[name]] = np.where(where, values, 0)
            # What is left makes the product of the factors the entry itself.
            pairs[:, _COLUMN["unequal norms"]] = np.log(np.diagonal(self.figures.off_diagonal)) - pairs.sum(1)
            diagonal[:, _COLUMN["diagonal"]] = np.log(np.diagonal(self.figures.diagonal)) - diagonal.sum(1)
            scales[:, _COLUMN["unequal norms"]] = mean - scales.sum(1)
        return pairs, diagonal, scales


def _rows_of(budget: Any, positions: list[Any]) -> _Rows:
    present = np.array([position is not None for position in positions])
    index = np.array([position or 0 for position in positions])
    both = present[:, None] & present[None]
    matrices = [np.where(both, matrix[np.ix_(index, index)], 0) for matrix in (budget.off_diagonal, budget.diagonal)]
    rows = [np.where(present, getattr(budget, name)[index], 0) for name in Figures._fields[2:]]
    return _Rows(budget.n, present, Figures(*matrices, *rows))


def _of_matrix(
    old: np.ndarray, new: np.ndarray, totals: tuple[float, float], on: np.ndarray, changes: np.ndarray, column: str
) -> tuple[np.ndarray, float]:
    """Return unnormalised contributions (R, K) of a matrix's entries to the change of their total, and their weight.

    ``changes`` (R, K) are those of the factors' logarithms, of the entries of each term with itself. Correlations
    between terms, and what has no logarithm, are in ``column``; what involves a term that is not ``on`` in both
    budgets is in that term's row.
    """
    old, new = old / totals[0], new / totals[1]
    live = on & (np.diagonal(old) > 0) & (np.diagonal(new) > 0)
    split = live[:, None] & live[None] & (old > 0) & (new > 0)
    before, after = np.where(split, old, 1), np.where(split, new, 1)
    weights, ratio = np.where(split, _log_mean(before, after), 0), np.log(after) - np.log(before)
    # An entry beside the matrix's diagonal is the root of its two terms' own, times their correlation.
    contributions = weights.sum(1)[:, None] * np.where(live[:, None], changes, 0)
    own = np.diagonal(ratio)
    contributions[:, _COLUMN[column]] += (weights * (ratio - (own[:, None] + own[None]) / 2)).sum(1)
    rest = np.where(split, 0, new - old)
    among = (rest * on[None]).sum(1)
    contributions[:, _COLUMN[column]] += np.where(on, among, 0)
    contributions[:, _COLUMN["on or off"]] += np.where(on, 0, rest.sum(1) + among)
    return contributions, float(weights.sum())


def _of_mean(old: np.ndarray, new: np.ndarray, on: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """Return contributions (R, K) to the change of the mean, of which the terms have shares ``old`` and ``new``."""
    weights = np.where(on, _log_mean(np.where(on, old, 1), np.where(on, new, 1)), 0)
    contributions = weights[:, None] * np.where(on[:, None], changes, 0)
    contributions[:, _COLUMN["on or off"]] += np.where(on, 0, new - old)
    return contributions / weights.sum()


def _log_mean(old: Any, new: Any) -> np.ndarray:
    """Return the logarithmic mean of two positive numbers."""
    ratio = np.log(new) - np.log(old)
    return np.where(ratio == 0, old, old * np.expm1(ratio) / np.where(ratio == 0, 1, ratio))
