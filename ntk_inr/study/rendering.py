"""Render a trained network of an image at another resolution; the tasks' own renderer takes its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ntk_inr._optional import require
from ntk_inr.study.description import image_of
from ntk_inr.tasks.files import new_file
from ntk_inr.tasks.image import reconstruct_image
from ntk_inr.tasks.interface import Task


def described(task: Task) -> dict[str, Any] | None:
    """Return what :func:`render` has to know of a task; None where it is no image."""
    image = image_of(task)
    return None if image is None else {"kind": "image", "shape": list(image.shape)}


def render(
    description: Mapping[str, Any], predict: Callable[[Any], Any], path: str | Path, *, size: int | None = None,
    slice: int | None = None, overwrite: bool = False, progress: Callable[[int, int], None] | None = None,
) -> Path:  # fmt: skip
    """Write an image with ``size`` pixels along its longer side."""
    if slice is not None:
        raise ValueError(f"slice={slice} is for volumes, and this is an image; leave it out.")
    height, width, c = description["shape"]
    scale = 1.0 if size is None else size / max(height, width)
    picture = reconstruct_image(predict, (max(1, round(scale * height)), max(1, round(scale * width)), c))
    with new_file(path, (".png",), overwrite=overwrite) as written:
        pixels = np.round(255 * picture).astype(np.uint8)
        require("PIL.Image").fromarray(pixels[:, :, 0] if c == 1 else pixels).save(written)
    return Path(path)
