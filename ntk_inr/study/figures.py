"""The figures of a study: four panels a variant, and conditioning against convergence."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from ntk_inr import style
from ntk_inr.study.record import Study, VariantResult, write_atomically
from ntk_inr.study.summary import Summary
from ntk_inr.tasks.metrics import EXACT, EXACT_DB, counted_psnr, decibels
from ntk_inr.tasks.pictures import in_two_lines

_PICTURE_DPI = 200


def variant_figure(study: Study, result: VariantResult, summary: Summary) -> Any:
    """Return the four panels of one variant: kernel, spectrum, training, reconstruction with its error.

    Args:
        study: the study that ``result`` is part of.
        result: the variant.
        summary: of the study.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    plt = style.pyplot()
    with style.figure_style():
        if study.image is not None:
            figure = plt.figure(figsize=(15.5, 3.3))
            axes = figure.subplots(1, 5, width_ratios=[1.15, 1.15, 1.35, 1, 1])
            _reconstruction(figure, axes[3], axes[4], study, result)
        else:
            figure = plt.figure(figsize=(15.5, 7))
            top, bottom = figure.subfigures(2, 1)
            axes = top.subplots(1, 3, width_ratios=[1, 1.2, 1.5])
            whole = bottom.subplots()
            whole.imshow(result.arrays["picture"])
            whole.set_axis_off()
        _kernel(axes[0].figure, axes[0], result)
        _spectrum(axes[1], result, summary)
        _training(axes[2], study, result)
    return figure


def save_figure(figure: Any, stem: Path, *suffixes: str) -> None:
    """Write a figure as ``stem.<suffix>``, by default as PNG and SVG, the same bytes each time, and close it."""
    with style.figure_style():
        for suffix in suffixes or ("png", "svg"):
            path = stem.with_name(f"{stem.name}.{suffix}")
            undated = {"Date": None} if suffix == "svg" else None
            write_atomically(path, functools.partial(figure.savefig, format=suffix, dpi="figure", metadata=undated))
    style.pyplot().close(figure)


def picture(figure: Any) -> np.ndarray:
    """Return a figure as the pixels (h, w, 3) that it is drawn in, and close it."""
    figure.set_dpi(_PICTURE_DPI)
    figure.canvas.draw()
    pixels = np.array(figure.canvas.buffer_rgba())[:, :, :3]
    style.pyplot().close(figure)
    return pixels


def end_at_exact(axis: Any) -> None:
    """Let an axis of PSNR of 8-bit data, which is drawn as it counts, say where it ends, if anything gets there."""
    low, high = axis.get_ylim()
    if high >= EXACT_DB:
        axis.axhline(EXACT_DB, color=style.NEUTRAL, linestyle=":", linewidth=1)
        axis.text(
            0.99, EXACT_DB, EXACT, transform=axis.get_yaxis_transform(), ha="right", va="bottom", fontsize=7,
            color=style.NEUTRAL,
        )  # fmt: skip
        axis.set_ylim(low, EXACT_DB + 0.07 * (EXACT_DB - low))


def convergence_figure(study: Study, summary: Summary) -> Any:
    """Return, over cv: the task's own metric, the steps to the target, and PSNR of gradient descent.

    Args:
        study: the study.
        summary: of the study.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    plt = style.pyplot()
    last, goal = study.settings["steps"], summary.goal
    panels = [goal.key]
    panels += ["steps_to_target"] * bool(np.isfinite(summary.target_psnr)) + ["gd"] * study.task["descends"]
    with style.figure_style():
        figure, row = plt.subplots(1, len(panels), figsize=(4.3 * len(panels) + 2.2, 4.1), squeeze=False)
        axes = dict(zip(panels, row[0], strict=True))
        _label(
            axes[goal.key], f"{goal.title} after {last} steps of {study.optimizer}", "cv of the NTK", _axis_title(goal)
        )
        if "steps_to_target" in axes:
            title = f"{study.optimizer}: steps to target{_rho(summary, 'steps_to_target')}"
            _label(axes["steps_to_target"], title, "cv of the NTK", f"steps to {summary.target_psnr:g} dB")
            axes["steps_to_target"].set_yscale("log")
        if "gd" in axes:
            title = f"Gradient descent{_rho(summary, f'gd_{last}')}"
            _label(
                axes["gd"], title, "cv of the NTK", f"PSNR after {last} steps [dB]\n(marker measured, bar predicted)"
            )
        for position, result in enumerate(study.variants):
            _place(axes, study, result, summary, position)
        for name, cells in summary.baselines.items():
            if goal.key in cells:
                level, _ = _counted(np.array([cells[goal.key].mean]), eight_bit=goal.eight_bit)
                axes[goal.key].axhline(level, color=style.NEUTRAL, linestyle="--", label=f"{name}\n(baseline)")
        if goal.eight_bit:
            end_at_exact(axes[goal.key])
        if "gd" in axes and study.task["eight_bit_curves"]:
            end_at_exact(axes["gd"])
        for axis in axes.values():
            _cv_axis(axis, [row["cv"].mean for row in summary.rows.values()])
        figure.legend(*axes[goal.key].get_legend_handles_labels(), loc="outside right center")
    return figure


def _place(axes: dict[str, Any], study: Study, result: VariantResult, summary: Summary, position: int) -> None:
    """Draw one variant into every panel; hollow where seeds diverged or never reached the target."""
    cells, last = summary.rows[result.name], study.settings["steps"]
    color = style.PALETTE[position % len(style.PALETTE)]
    cv = cells["cv"]

    def point(axis: Any, value: float, spread: float, *, whole: bool = True) -> None:
        axis.errorbar(
            [cv.mean], [value], xerr=_bar(cv.spread), yerr=_bar(spread), color=color, linestyle="none", capsize=3,
            marker=style.MARKERS[position % len(style.MARKERS)], markersize=7, label=result.name,
            markerfacecolor=color if whole else "white",
        )  # fmt: skip

    goal = summary.goal
    reached = _counted(result.over_seeds(goal.key), eight_bit=goal.eight_bit)
    point(axes[goal.key], *reached, whole=not result.diverged_seeds)
    if "steps_to_target" in axes:
        steps = cells["steps_to_target"]
        ended = np.isfinite(steps.mean)
        point(axes["steps_to_target"], max(steps.mean, 0.5) if ended else last, steps.spread, whole=ended)
    if "gd" in axes:
        curves = study.task["eight_bit_curves"]
        ends = [_counted(result.arrays[f"{kind}_psnr"][:, last], eight_bit=curves)[0] for kind in ("gd", "predicted")]
        point(axes["gd"], ends[0], np.nan)
        axes["gd"].plot([cv.mean], ends[1:], color=color, marker="_", markersize=14)
        axes["gd"].plot([cv.mean] * 2, ends, color=color, linewidth=0.7)


def _counted(values: np.ndarray, *, eight_bit: bool) -> tuple[float, float]:
    """Return mean and standard deviation over seeds of values as they count; the latter is NaN for one seed."""
    values = counted_psnr(values, eight_bit=eight_bit)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else np.nan


def _axis_title(column: Any) -> str:
    return f"{column.title} [{column.unit}]" if column.unit else column.title


def _cv_axis(axis: Any, values: list[float]) -> None:
    low, high = min(values) / 1.2, max(values) * 1.2
    axis.set(xscale="log", xlim=(low, high))
    axis.xaxis.set_minor_formatter("")
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200) if low <= tick <= high]
    axis.set_xticks(ticks if len(ticks) > 1 else np.linspace(low, high, 5)[1:-1].round(1))
    axis.xaxis.set_major_formatter("{x:g}")


def _kernel(figure: Any, axis: Any, result: VariantResult) -> None:
    kernel = result.arrays["kernel"]
    picture = axis.imshow(kernel, cmap=style.SEQUENTIAL, interpolation="nearest", vmin=min(0.0, float(kernel.min())))
    axis.set(title="Kernel at start", xlabel="row of x", ylabel="row of x", xticks=[], yticks=[])
    axis.grid(False)
    figure.colorbar(picture, ax=axis, shrink=0.85, label="K / mean diagonal")


def _spectrum(axis: Any, result: VariantResult, summary: Summary) -> None:
    spectra = result.arrays["eigenvalues"]
    ranks = np.arange(1, spectra.shape[1] + 1)
    floor = np.finfo(float).eps * spectra.shape[1] * spectra.max()
    for values in spectra:
        axis.loglog(ranks, np.maximum(values, floor), color=style.FAST, linewidth=1, alpha=0.8)
    axis.axhline(spectra.mean(), color=style.PREDICTED, linestyle="--", linewidth=1, label="mean eigenvalue")
    if (spectra <= floor).any():
        axis.axhline(floor, color=style.NEUTRAL, linestyle=":", linewidth=1, label="rounding floor")
    _label(axis, f"Spectrum, cv {summary.rows[result.name]['cv'].text}", "rank", "eigenvalue")
    axis.legend(loc="lower left")


def _training(axis: Any, study: Study, result: VariantResult) -> None:
    steps = np.arange(study.settings["steps"] + 1)
    curves = (
        ("adam_psnr", f"{result.optimizer}, {result.rate}", style.FAST, "-"),
        ("gd_psnr", "gradient descent", style.MEASURED, "-"),
        ("predicted_psnr", "predicted for it", style.PREDICTED, "--"),
    )
    for key, label, color, line in curves:
        if key not in result.arrays or np.isnan(result.arrays[key]).all():
            continue
        # Step 0 has no place on a logarithmic axis, so it is drawn at 1/2.
        for position, curve in enumerate(counted_psnr(result.arrays[key], eight_bit=study.task["eight_bit_curves"])):
            name = None if position else label
            axis.plot(np.maximum(steps, 0.5), curve, color=color, linestyle=line, linewidth=1.2, label=name)
    axis.set_xscale("log")
    if axis.lines:
        _label(axis, "Training", "step", "PSNR [dB]")
        axis.legend(loc="lower right")
        if study.task["eight_bit_curves"]:
            end_at_exact(axis)
        return
    for losses in result.arrays["adam_loss"]:
        axis.plot(np.arange(1, len(losses) + 1), losses, color=style.FAST, linewidth=1.2)
    if np.nanmin(result.arrays["adam_loss"]) > 0:
        axis.set_yscale("log")
    _label(axis, f"Training with {result.optimizer}", "step", f"loss ({study.task['loss']})")


def _reconstruction(figure: Any, left: Any, right: Any, study: Study, result: VariantResult) -> None:
    image = result.arrays["reconstruction"]
    left.imshow(image if image.shape[2] == 3 else image[:, :, 0], cmap="gray", vmin=0, vmax=1)
    error = np.abs(image - study.image).mean(axis=2)
    picture = right.imshow(error, cmap=style.ERROR, vmin=0, vmax=max(float(np.quantile(error, 0.99)), 1e-6))
    figure.colorbar(picture, ax=[left, right], shrink=0.75, label="error")
    psnr = result.seeds[0]["score_psnr"]
    level = "" if psnr is None else f", {decibels(psnr, eight_bit=study.task['eight_bit'])}"
    left.set_title(in_two_lines(f"{result.optimizer}'s image{level}"))
    right.set_title("|error|")
    for axis in (left, right):
        axis.set(xticks=[], yticks=[])
        axis.grid(False)


def _label(axis: Any, title: str, xlabel: str, ylabel: str) -> None:
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)


def _rho(summary: Summary, speed: str) -> str:
    rho = [c.rho for c in summary.correlations if (c.figure, c.speed) == ("cv", speed)]
    return f" (Spearman {rho[0]:+.2f})" if rho else ""


def _bar(spread: float) -> list[float] | None:
    return [spread] if np.isfinite(spread) else None
