"""Draw the rows of images of every task's figure, and write images to files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ntk_inr import style
from ntk_inr._optional import require
from ntk_inr.tasks.files import new_file
from ntk_inr.tasks.metrics import EXACT, decibels


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    Attributes:
        title: above it.
        values: (h, w), (h, w, 1) or (h, w, 3).
        look: "image" is grey or colour in [0, 1]; "field" any range, with a colour bar; "error" from 0 on, with one.
        span: (lowest, highest) value of a "field"; None takes them from the values.
    """

    title: str
    values: np.ndarray
    look: Literal["image", "field", "error"] = "image"
    span: tuple[float, float] | None = None


class PictureTask:
    """Share what tasks have in common whose reconstructions are images (h, w, c) in [0, 1]."""

    image: Any
    eight_bit: bool
    scores: Callable[..., dict[str, float]]

    def comparison(self, reconstruction: np.ndarray | None, word: str = "reconstruction") -> list[Panel]:
        """Return the panels of a reconstruction, titled with its PSNR, and of its error; none where there is none."""
        if reconstruction is None:
            return []
        psnr = decibels(self.scores(reconstruction)["psnr"], eight_bit=self.eight_bit)
        return [Panel(f"{word}, {psnr}", reconstruction), error_panel(reconstruction, self.image)]

    def save(self, reconstruction: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a reconstruction in [0, 1] as 8-bit PNG or TIFF, or its exact values as ``.npy``; return the path."""
        with new_file(path, (".png", ".tif", ".tiff", ".npy"), overwrite=overwrite) as written:
            if written.suffix.lower() == ".npy":
                np.save(written, reconstruction)
            else:
                pixels = np.round(255 * np.clip(reconstruction, 0, 1)).astype(np.uint8)
                require("PIL.Image").fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(written)
        return Path(path)


def picture_rows(rows: Sequence[Sequence[Panel]]) -> Any:
    """Return a figure of rows of panels."""
    height, width = rows[0][0].values.shape[:2]
    across = max(len(row) for row in rows)
    side = 2.9 if across < 5 else 2.4
    aspect = min(max(height / width, 0.3), 2.0)
    with style.figure_style():
        figure, axes = style.pyplot().subplots(
            len(rows), across, figsize=(side * across + 0.5, (side * aspect + 0.35) * len(rows)), squeeze=False
        )
        for row, line in zip(rows, axes, strict=True):
            for axis in line[len(row) :]:
                axis.remove()
            for panel, axis in zip(row, line[: len(row)], strict=True):
                draw_panel(figure, axis, panel)
    return figure


def draw_panel(figure: Any, axis: Any, panel: Panel) -> None:
    """Draw one panel into an axis."""
    values = panel.values[:, :, 0] if panel.values.ndim == 3 and panel.values.shape[2] == 1 else panel.values
    if panel.look == "image":
        axis.imshow(np.clip(values, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        cmap = style.ERROR if panel.look == "error" else style.SEQUENTIAL
        finite = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)  # a run may have diverged
        low, high = panel.span or (float(finite.min()), float(finite.max()))
        if panel.look == "error":
            low, high = 0.0, max(float(np.quantile(finite, 0.99)), 1e-6)
        drawn = axis.imshow(values, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
        figure.colorbar(drawn, ax=axis, shrink=0.8)
    axis.set_title(in_two_lines(panel.title))
    axis.set(xticks=[], yticks=[])
    axis.grid(False)


def in_two_lines(title: str) -> str:
    """Return a title that ends with a PSNR beyond 8 bits, which is wider than its picture, in two lines."""
    return title.replace(f", {EXACT}", f",\n{EXACT}")


def error_panel(estimate: np.ndarray, target: np.ndarray) -> Panel:
    """Return a panel of the absolute error (h, w) of images (h, w, c), averaged over channels."""
    return Panel("|error|", np.abs(estimate - target).mean(axis=2), "error")
