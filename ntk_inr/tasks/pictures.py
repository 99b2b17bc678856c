"""Draw the rows of images of every task's figure, and write images to files."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ntk_inr import style
from ntk_inr._optional import require
from ntk_inr.tasks.cost import Cost
from ntk_inr.tasks.files import new_file
from ntk_inr.tasks.grid import GridPoints, Progress, in_batches
from ntk_inr.tasks.metrics import EXACT, decibels, psnr

SUFFIXES = (".png", ".tif", ".tiff", ".npy")
"""What images are written as."""
_SHOWN = 1024
_STRIP = 2**22


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

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    smaller: ClassVar[str] = "a smaller size="

    name: Any
    image: Any
    eight_bit: bool
    source_size: Any = None

    @property
    def summary(self) -> str:
        """What is fitted, in a few words: "photo.png 1200 × 800, fitted at 512 × 341"."""
        size, whole = self.image.shape[:2], self.source_size
        if whole is None or tuple(whole) == size:
            return f"{self.name} {_width_by_height(size)}"
        return f"{self.name} {_width_by_height(whole)}, fitted at {_width_by_height(size)}"

    def describe(self) -> dict[str, Any]:
        """Return, for JSON, what is fitted: kind, name, rows and values trained on, and what rendering needs."""
        known: dict[str, Any] = super().describe()  # type: ignore[misc]
        return known | {"shape": list(self.image.shape)}

    def cost(self, out: str | Path | None = None) -> Cost:
        """Return what a reconstruction, its scores and its figure take of memory, and its file of disk."""
        return picture_cost(self.image.shape, out)

    def signal_of(self, predict: Callable[[Any], Any], progress: Progress | None = None) -> np.ndarray:
        """Return the image (h, w, c), clipped to [0, 1]."""
        return picture_of(predict, self.image.shape, progress)

    def psnr(self, reconstruction: np.ndarray) -> float:
        """Return the PSNR of a reconstruction in dB, as :meth:`Task.scores` has it."""
        return psnr(reconstruction, self.image)

    def comparison(self, reconstruction: np.ndarray | None, word: str = "reconstruction") -> list[Panel]:
        """Return the panels of a reconstruction, titled with its PSNR, and of its error; none where there is none."""
        if reconstruction is None:
            return []
        psnr = decibels(self.psnr(reconstruction), eight_bit=self.eight_bit)
        return [Panel(f"{word}, {psnr}", reconstruction), error_panel(reconstruction, self.image)]

    def save(self, reconstruction: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a reconstruction in [0, 1] as 8-bit PNG or TIFF, or its exact values as ``.npy``; return the path."""
        return save_picture(reconstruction, path, overwrite=overwrite)


def picture_of(
    predict: Callable[[Any], Any], shape: Sequence[int], progress: Progress | None = None, *, clipped: bool = True
) -> np.ndarray:
    """Return ``predict`` at the pixel centres of an image of ``shape`` (h, w, c), clipped to [0, 1] if asked for."""
    finish = functools.partial(np.clip, a_min=0, a_max=1) if clipped else None
    return in_batches(predict, GridPoints(shape[:2]), shape[2], finish=finish, progress=progress).reshape(shape)


def picture_cost(shape: Sequence[int], out: str | Path | None) -> Cost:
    """Return what an image of a shape (h, w, c) takes, made, scored, drawn and written."""
    values, suffix = math.prod(shape), None if out is None else Path(out).suffix.lower()
    modules = [("matplotlib", "report"), ("skimage.metrics", "report")]
    modules += [("PIL.Image", "report")] if suffix not in (None, ".npy") else []
    disk = 0 if out is None else (4 if suffix == ".npy" else 1) * values
    # Values in float32, bytes to be written, and strips and microbatches beside them.
    return Cost(6 * values + 2**28, disk, tuple(modules))


def save_picture(picture: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an image (h, w, c) in [0, 1] as 8-bit PNG or TIFF, or its exact values as ``.npy``; return the path."""
    with new_file(path, SUFFIXES, overwrite=overwrite) as written:
        if written.suffix.lower() == ".npy":
            np.save(written, picture)
        else:
            require("PIL.Image").fromarray(eight_bit_pixels(picture)).save(written)
    return Path(path)


def eight_bit_pixels(picture: np.ndarray) -> np.ndarray:
    """Return an image (h, w, c) in [0, 1] as bytes, (h, w) where c is 1; NaN is black."""
    pixels = np.empty(picture.shape, np.uint8)
    for place in strips(picture.shape):
        pixels[place] = np.round(255 * np.clip(np.nan_to_num(picture[place]), 0, 1))
    return pixels[:, :, 0] if picture.shape[-1] == 1 else pixels


def strips(shape: Sequence[int]) -> list[slice]:
    """Return rows of an image of a shape (h, w, ...) in parts of a bounded number of values."""
    height = max(1, _STRIP // math.prod(shape[1:]))
    return [slice(start, min(start + height, shape[0])) for start in range(0, shape[0], height)]


def _width_by_height(size: Sequence[int]) -> str:
    return f"{size[1]} × {size[0]}"


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
    values = viewable_size(values)
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
    error = np.empty(estimate.shape[:2], np.float32)
    for place in strips(estimate.shape):
        error[place] = np.abs(estimate[place] - target[place]).mean(axis=2)
    return Panel("|error|", error, "error")


def viewable_size(values: np.ndarray) -> np.ndarray:
    """Return an image (h, w, ...) with blocks of pixels averaged where it has more than a panel shows."""
    block = max(values.shape[:2]) // _SHOWN
    if block < 2:
        return values
    rows = [values[start : start + block] for start in range(0, len(values) - block + 1, block)]
    width = values.shape[1] // block * block
    if not rows or not width:
        return values[::block, ::block]
    means = [row[:, :width].mean(axis=0).reshape(width // block, block, *values.shape[2:]).mean(axis=1) for row in rows]
    return np.stack(means).astype(np.float32)
