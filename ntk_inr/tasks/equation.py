"""What tasks have in common that look for a field from an equation: its picture on a grid, scores and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ntk_inr.tasks import metrics
from ntk_inr.tasks.cost import Cost
from ntk_inr.tasks.files import new_file
from ntk_inr.tasks.grid import Progress, grid_coordinates
from ntk_inr.tasks.interface import IndirectTask
from ntk_inr.tasks.pictures import picture_cost, picture_of


class FieldTask(IndirectTask):
    """A field u on the square, known by its equation; a class has ``name``, ``resolution`` and ``solution``."""

    kind: ClassVar[str] = "pde"
    noun: ClassVar[str] = "points"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)
    smaller: ClassVar[str] = "a smaller resolution="

    name: str
    resolution: int

    def solution(self, x: np.ndarray) -> np.ndarray:
        """Return u (n, 1) at points (n, 2)."""
        raise NotImplementedError

    @property
    def differentiates(self) -> bool:
        """Whether derivatives of the network by x are a part of it."""
        return True

    @property
    def span(self) -> float:
        """Largest less smallest value of the solution, for PSNR."""
        return float(np.ptp(self._truth))

    def describe(self) -> dict[str, Any]:
        """Return, for JSON, what is fitted: kind, name, rows and values trained on, and what rendering needs."""
        return super().describe() | {"shape": [self.resolution, self.resolution, 1], "equation": self.name}

    def cost(self, out: str | Path | None = None) -> Cost:
        """Return what a reconstruction, its scores and its figure take of memory, and its file of disk."""
        return picture_cost((self.resolution, self.resolution, 1), out)

    def signal_of(self, predict: Callable[[Any], Any], progress: Progress | None = None) -> np.ndarray:
        """Return u (r, r, 1) on the grid; ``predict`` is the network itself."""
        return picture_of(predict, (self.resolution, self.resolution, 1), progress, clipped=False)

    def scores(self, reconstruction: np.ndarray) -> dict[str, float]:
        """Return "psnr" in dB against the span of the solution, and "relative_l2" (smaller is better)."""
        return {
            "psnr": metrics.psnr(reconstruction, self._truth, data_range=self.span),
            "relative_l2": metrics.relative_l2(reconstruction, self._truth),
        }

    def save(self, reconstruction: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a reconstruction as ``.npy``."""
        with new_file(path, (".npy",), overwrite=overwrite) as written:
            np.save(written, reconstruction)
        return Path(path)

    @property
    def _truth(self) -> np.ndarray:
        shape = (self.resolution, self.resolution)
        return self.solution(grid_coordinates(shape).astype(np.float64)).reshape(*shape, 1)
