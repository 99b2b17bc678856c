"""The figures of a study: four panels a variant, and conditioning against convergence."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from ntk_inr import style
from ntk_inr.study.record import Study, VariantResult, write_atomically
from ntk_inr.study.summary import Summary, score_column

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


def convergence_figure(study: Study, summary: Summary) -> Any:
    """Return cv against the steps to the target, and against predicted PSNR of gradient descent.

    Args:
        study: the study.
        summary: of the study.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    plt = style.pyplot()
    last, descends = study.settings["steps"], study.task["descends"]
    timed = np.isfinite(summary.target_psnr)
    goal = f"score_{study.task['metric']}"
    with style.figure_style():
        figure, axes = plt.subplots(1, 1 + descends, figsize=(10.5 if descends else 7, 4.1), squeeze=False)
        left, right = axes[0, 0], axes[0, -1]
        for position, result in enumerate(study.variants):
            row = summary.rows[result.name]
            look = {
                "color": style.PALETTE[position % len(style.PALETTE)],
                "marker": style.MARKERS[position % len(style.MARKERS)],
                "linestyle": "none", "capsize": 3, "label": result.name, "markersize": 7,
            }  # fmt: skip
            cv, steps = row["cv"], row["steps_to_target" if timed else goal]
            reached = np.isfinite(steps.mean)
            left.errorbar(
                [cv.mean], [(max(steps.mean, 0.5) if timed else steps.mean) if reached else last],
                xerr=_bar(cv.spread), yerr=_bar(steps.spread) if reached else None,
                markerfacecolor=look["color"] if reached else "white", **look,
            )  # fmt: skip
            if not descends:
                continue
            right.errorbar([cv.mean], [row[f"gd_{last}"].mean], xerr=_bar(cv.spread), **look)
            right.plot([cv.mean], [row[f"predicted_{last}"].mean], color=look["color"], marker="_", markersize=14)
            ends = [row[f"gd_{last}"].mean, row[f"predicted_{last}"].mean]
            right.plot([cv.mean] * 2, ends, color=look["color"], linewidth=0.7)
        if timed:
            title, scale = f"Adam steps to {summary.target_psnr:g} dB", "log"
            _label(left, f"Adam: steps to target{_rho(summary, 'steps_to_target')}", "cv of the NTK", title)
        else:
            title, scale = score_column(goal).title, "linear"
            _label(left, f"Adam: {title} after {last} steps", "cv of the NTK", title)
        if descends:
            _label(
                right,
                f"Gradient descent{_rho(summary, f'gd_{last}')}",
                "cv of the NTK",
                f"PSNR after {last} steps [dB]\n(marker measured, bar predicted)",
            )
        left.set(yscale=scale)
        for axis in axes[0]:
            axis.set(xscale="log")
            axis.xaxis.set_minor_formatter("")
            low, high = axis.get_xlim()
            ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200) if low <= tick <= high]
            axis.set_xticks(ticks if len(ticks) > 1 else np.linspace(low, high, 5)[1:-1].round(1))
            axis.xaxis.set_major_formatter("{x:g}")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
    return figure


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
        ("adam_psnr", "Adam", style.FAST, "-"),
        ("gd_psnr", "gradient descent", style.MEASURED, "-"),
        ("predicted_psnr", "predicted for it", style.PREDICTED, "--"),
    )
    for key, label, color, line in curves:
        if key not in result.arrays or np.isnan(result.arrays[key]).all():
            continue
        # Step 0 has no place on a logarithmic axis, so it is drawn at 1/2.
        for position, curve in enumerate(result.arrays[key]):
            name = None if position else label
            axis.plot(np.maximum(steps, 0.5), curve, color=color, linestyle=line, linewidth=1.2, label=name)
    axis.set_xscale("log")
    if axis.lines:
        _label(axis, "Training", "step", "PSNR [dB]")
        axis.legend(loc="upper left")
        return
    for losses in result.arrays["adam_loss"]:
        axis.plot(np.arange(1, len(losses) + 1), losses, color=style.FAST, linewidth=1.2)
    if np.nanmin(result.arrays["adam_loss"]) > 0:
        axis.set_yscale("log")
    _label(axis, "Training with Adam", "step", f"loss ({study.task['loss']})")


def _reconstruction(figure: Any, left: Any, right: Any, study: Study, result: VariantResult) -> None:
    image = result.arrays["reconstruction"]
    left.imshow(image if image.shape[2] == 3 else image[:, :, 0], cmap="gray", vmin=0, vmax=1)
    error = np.abs(image - study.image).mean(axis=2)
    picture = right.imshow(error, cmap=style.ERROR, vmin=0, vmax=max(float(np.quantile(error, 0.99)), 1e-6))
    figure.colorbar(picture, ax=[left, right], shrink=0.75, label="error")
    psnr = result.seeds[0]["score_psnr"]
    left.set_title("Adam's image" + ("" if psnr is None else f", {psnr:.1f} dB"))
    right.set_title("|error|")
    for axis in (left, right):
        axis.set(xticks=[], yticks=[])
        axis.grid(False)


def _label(axis: Any, title: str, xlabel: str, ylabel: str) -> None:
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)


def _rho(summary: Summary, speed: str) -> str:
    found = [c.rho for c in summary.correlations if (c.figure, c.speed) == ("cv", speed)]
    return f" (Spearman {found[0]:+.2f})" if found else ""


def _bar(spread: float) -> list[float] | None:
    return [spread] if np.isfinite(spread) else None
