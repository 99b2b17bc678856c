"""A variance budget as a table and as a figure."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ntk_inr import style
from ntk_inr._results import Scalar, text_table

# Above this many terms the numbers in the cells of the figure would run into each other.
_MOST_CELLS = 12
# Characters of a name beside an axis.
_LONGEST = 24
# Characters of a name in a table that is printed.
_PRINTED = 16


def table(budget: Any, most: int | None = None) -> str:
    """Return a :class:`VarianceBudget` as text, a row a term; of ``most`` terms, those with the largest shares."""
    sampled = budget.submatrices > 1
    heads = ["term", "mean %", "variance %", *["±"] * sampled, "own %", "shared %", "diagonal %"]
    heads += ["R_F^2", "R_B^2", "tau_F", "tau_B", "Omega"]
    names = budget.names if most is None else clipped(budget.names)
    kept, rest = largest(np.abs(budget.shares), most)

    def figure(name: str) -> str:
        error = f" ± {getattr(budget, f'{name}_stderr'):.2g}" if sampled else ""
        return f"{name} {getattr(budget, name):.4g}{error}"

    of = f", from {budget.submatrices} submatrices of {budget.size}" if sampled else ""
    lines = [f"{'; '.join(map(figure, ('variance', 'cv', 'mean')))}; n = {budget.n}{of}"]
    lines.append(aligned(heads, [[names[row], *_cells(budget, row)] for row in kept]))
    if rest:
        lines.append(f"… {rest} more; .table() has all")
    if not budget.factored.all():
        lines.append("–: the term is not one product of F and B")
    return "\n".join(lines)


def aligned(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table with names on the left and numbers on the right; heads have their last word in a second line."""
    above, below = ([head.rpartition(" ")[part] for head in heads] for part in (0, 2))
    return text_table([above, below, *rows], right=range(1, len(heads)), header=2)


def clipped(names: tuple[str, ...], most: int = _PRINTED) -> list[str]:
    """Return the short names of terms, cut on the left to ``most`` characters."""
    return [name if len(name) <= most else f"…{name[1 - most :]}" for name in _short(names)]


def largest(sizes: Any, most: int | None) -> tuple[list[int], int]:
    """Return the positions of the ``most`` largest sizes, in their order, and how many others there are."""
    sizes = np.nan_to_num(sizes)
    most = len(sizes) if most is None else min(most, len(sizes))
    return sorted(np.argsort(-sizes, kind="stable")[:most].tolist()), len(sizes) - most


def _cells(budget: Any, row: int) -> list[str]:
    """Return the numbers of one term's row."""
    total, mean = (value or np.nan for value in (budget.variance, budget.mean))
    own, entries = budget.matrix[row, row], budget.matrix[row].sum()
    percent = [budget.means[row] / mean, entries / total, own / total, (entries - own) / total]
    cells = [cell(100 * value, "z.1f") for value in [*percent, budget.diagonal[row].sum() / total]]
    if budget.submatrices > 1:
        cells.insert(2, cell(100 * budget.shares_stderr[row], ".2g"))
    figures = (budget.forward_scale, budget.backward_scale, budget.forward_tau, budget.backward_tau, budget.overlap)
    return [*cells, *(cell(values[row], ".3g") for values in figures)]


def cell(value: Scalar, spec: str) -> str:
    """Return a number as text, and a dash where there is none."""
    return "–" if np.isnan(value) else format(value, spec)


def plot(budget: Any, path: str | os.PathLike[str] | None) -> Any:
    """Return the figure of a :class:`VarianceBudget`, and save it to ``path`` if there is one."""
    plt = style.pyplot()
    names = _short(budget.names)
    labels = clipped(budget.names, _LONGEST)
    with style.figure_style():
        figure = plt.figure(figsize=(10.5, 2.2 + 0.36 * max(len(labels), 3)))
        left, right = figure.subplots(1, 2, width_ratios=[1.3, 1], sharey=True)
        _shares(left, budget, labels)
        _correlations(figure, right, budget, labels)
        figure.suptitle(_finding(budget, names), x=0.01, ha="left", fontsize=11, fontweight="bold")
        if path is not None:
            figure.savefig(path)
    return figure


def _short(names: tuple[str, ...]) -> list[str]:
    """Return the names of terms without their biases, and without the matrix's where it is alone in its layer."""
    names = tuple(name.partition(" (+")[0] for name in names)
    layers = [name.rpartition("/")[0] or name for name in names]
    return [layer if layers.count(layer) == 1 else name for layer, name in zip(layers, names, strict=True)]


def _finding(budget: Any, names: list[str]) -> str:
    if not budget.variance:
        return "The kernel's eigenvalues have no variance"
    most = int(np.argmax(budget.shares))
    return f"{names[most]} makes {100 * budget.shares[most]:.0f} % of the variance (cv {budget.cv:.3g})"


def _shares(axis: Any, budget: Any, labels: list[str]) -> None:
    """Draw each term's share as a bar of parts; parts below zero go to the left."""
    scale = 100 / budget.variance if budget.variance else np.nan
    off = budget.off_diagonal
    parts = (
        ("own, pairs of coordinates", np.diagonal(off), {"color": style.FAST}),
        ("shared with other layers", off.sum(1) - np.diagonal(off), {"color": style.PALETTE[5]}),
        ("diagonal of the kernel", budget.diagonal.sum(1), {"color": "white", "hatch": "////"}),
    )
    place = np.arange(len(labels))
    ends = {True: np.zeros(len(labels)), False: np.zeros(len(labels))}
    for name, values, look in parts:
        width = values * scale
        start = np.where(width > 0, ends[True], ends[False])
        axis.barh(place, width, left=start, height=0.7, edgecolor="black", linewidth=0.6, label=name, **look)
        ends[True] += np.maximum(width, 0)
        ends[False] += np.minimum(width, 0)
    errors = 100 * budget.shares_stderr if budget.submatrices > 1 else None
    axis.errorbar(
        100 * budget.shares, place, xerr=errors, fmt="D", color="black", markersize=4, capsize=2, label="share"
    )
    axis.set(title="Parts of the variance, by layer", xlabel="part of the variance [%]")
    axis.set_yticks(place, labels)
    axis.grid(False, axis="y")
    axis.set_axisbelow(True)
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower left", ncols=4)


def _correlations(figure: Any, axis: Any, budget: Any, labels: list[str]) -> None:
    values = budget.correlations
    place = np.arange(len(labels))
    low = min(0.0, float(np.nanmin(values))) if np.isfinite(values).any() else 0.0
    picture = axis.imshow(values, cmap=style.SEQUENTIAL, vmin=low, vmax=1, interpolation="nearest", aspect="auto")
    if len(labels) <= _MOST_CELLS:
        for i, j in np.ndindex(values.shape):
            color = "black" if values[i, j] > (1 + low) / 2 else "white"
            axis.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=color, fontsize=7)
    axis.set_title("Correlation between layers")
    axis.set_xticks(place, labels, rotation=40, ha="right", rotation_mode="anchor")
    axis.grid(False)
    figure.colorbar(picture, ax=axis, shrink=0.9, label="correlation")
