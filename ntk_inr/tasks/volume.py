"""Videos and volumes as a task: voxels drawn for training, reconstructions written slab by slab."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ntk_inr import _checks
from ntk_inr._optional import require
from ntk_inr.tasks import metrics
from ntk_inr.tasks.files import new_file
from ntk_inr.tasks.grid import axis_centres, in_batches
from ntk_inr.tasks.image_file import has_eight_bits
from ntk_inr.tasks.interface import PointwiseTask, fingerprint
from ntk_inr.tasks.pictures import Panel, error_panel, picture_rows
from ntk_inr.tasks.volume_file import Stack, open_stack
from ntk_inr.training import curves

_MOST_HELDOUT = 2**16
_MOST_IN_MEMORY = 2**31
_FRAMES_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class VolumeTask(PointwiseTask):
    """A video or a volume (t, h, w, c), of which some voxels are trained on.

    Attributes:
        name: what to call it in a report.
        stack: its frames, read when they are asked for; scaled to [0, 1] as a whole.
        rows: sorted places of the voxels trained on, in the raster order of (t, h, w).
        tested: sorted places of voxels held out for testing; may be empty.
        x: voxel centres (n, 3) as (t, row, column), each axis in (-1, 1).
        y: values there (n, c) in [0, 1].
        eight_bit: whether the values came as integers of 8 bits.
    """

    kind: ClassVar[str] = "volume"

    name: str
    stack: Stack
    rows: np.ndarray
    tested: np.ndarray
    x: np.ndarray
    y: np.ndarray
    eight_bit: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(t, h, w, c)."""
        return self.stack.shape

    @property
    def heldout(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Coordinates and values of further voxels, at most 65536 of them; None where all are trained on."""
        if not len(self.tested):
            return None
        return _coordinates(self.tested, self.shape), self.stack.rows(self.tested)

    @property
    def digest(self) -> str:
        """A fingerprint of all values and of the choice of training voxels."""
        return fingerprint(self.stack.digest, self.rows)

    def reconstruct(self, predict: Callable[[Any], Any], *, out: str | Path | None = None) -> np.ndarray:
        """Return the whole volume (t, h, w, c), clipped to [0, 1], computed slab by slab.

        Args:
            predict: coordinates (n, 3) as (t, row, column) -> (n, c).
            out: a new ``.npy`` file to write to, for what is larger than memory; None keeps it in memory.

        Returns:
            float32; memory-mapped from ``out`` if given.

        Raises:
            ValueError: above 2 GiB, and no ``out``.
            FileExistsError: ``out`` exists.
        """
        if out is not None:
            with new_file(out, (".npy",), overwrite=False) as written:
                mapped = np.lib.format.open_memmap(written, "w+", np.float32, self.shape)
                self._fill(predict, mapped)
                mapped.flush()
            return np.load(out, mmap_mode="r")
        needed = 4 * math.prod(self.shape)
        if needed > _MOST_IN_MEMORY:
            raise ValueError(
                f"the reconstruction of {self.name} takes {needed / 2**30:.3g} GiB; pass out=, a .npy file to write "
                "it to part by part."
            )
        volume = np.empty(self.shape, np.float32)
        self._fill(predict, volume)
        return volume

    def scores(self, reconstruction: np.ndarray) -> dict[str, float]:
        """Return "psnr" in dB over all voxels, and "ssim", the mean over frames (of at least 7 by 7 pixels)."""
        squares, similarity = 0.0, 0.0
        large = min(self.shape[1:3]) >= metrics.SSIM_WINDOW
        for first, last in self.stack.slabs():
            target, estimate = self.stack.slab(first, last), reconstruction[first:last]
            squares += float(((estimate.astype(np.float64) - target) ** 2).sum())
            if large:
                similarity += sum(metrics.ssim(a, b) for a, b in zip(estimate, target, strict=True))
        scores = {"psnr": float(curves.psnr(squares / math.prod(self.shape)))}
        return scores | ({"ssim": similarity / self.shape[0]} if large else {})

    def figure(self, reconstruction: np.ndarray | None = None) -> Any:
        """Return a few frames, and below them a reconstruction and its error."""
        frames = np.unique(np.linspace(0, self.shape[0] - 1, _FRAMES_SHOWN).astype(int)).tolist()
        seen = [self.stack.slab(frame, frame + 1)[0] for frame in frames]
        rows = [[Panel(f"frame {frame}", _viewable(image)) for frame, image in zip(frames, seen, strict=True)]]
        if reconstruction is not None:
            estimates = [reconstruction[frame] for frame in frames]
            rows.append([Panel("reconstruction", _viewable(image)) for image in estimates])
            rows.append([error_panel(a, b) for a, b in zip(estimates, seen, strict=True)])
        return picture_rows(rows)

    def save(self, reconstruction: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a reconstruction as ``.npy``, as an 8-bit ``.tif`` of as many frames, or as a ``.gif``.

        A frame of a GIF lasts a tenth of a second; equal neighbours become one that lasts as long as they do.
        """
        with new_file(path, (".npy", ".gif", ".tif", ".tiff"), overwrite=overwrite) as written:
            if written.suffix.lower() == ".npy":
                np.save(written, reconstruction)
            else:
                seen = np.stack([_viewable(frame) for frame in reconstruction])
                pixels = np.round(255 * np.clip(seen, 0, 1)).astype(np.uint8)
                image = require("PIL.Image")
                frames = [image.fromarray(frame if self.shape[3] == 3 else frame[:, :, 0]) for frame in pixels]
                frames[0].save(written, save_all=True, append_images=frames[1:], duration=100)
        return Path(path)

    def _fill(self, predict: Callable[[Any], Any], volume: np.ndarray) -> None:
        frame = math.prod(self.shape[1:3])
        for first, last in self.stack.slabs():
            x = _coordinates(np.arange(first * frame, last * frame), self.shape)
            values = in_batches(predict, x, self.shape[3])
            volume[first:last] = np.clip(values, 0, 1).reshape(last - first, *self.shape[1:])


def volume_task(source: Any, *, rows: int = 2**20, seed: int = 0) -> VolumeTask:
    """Make a task of a video or a volume, which need not fit in memory.

    Unsigned integers of 8 and 16 bits are divided by their type's range, other integers from 0 to 255 by 255 (by 1
    where all are 0 or 1), floats in [0, 1] are kept, anything else is scaled from its smallest and largest value. Only
    the voxels trained on are held in memory.

    Args:
        source: a ``.npy`` file of (t, h, w) or (t, h, w, c), which is memory-mapped; a ``.tif`` or ``.gif`` of
            several frames; a folder of images of one size, in the order of the numbers in their names; an array
            of NumPy, JAX or lists; images of Pillow; or "orbits", a bundled video of 24 frames (a folder: "./orbits").
        rows: train on at most so many voxels, drawn at random without repetition.
        seed: of that draw.

    Returns:
        :class:`VolumeTask`.

    Raises:
        FileNotFoundError: no such file or folder, and no bundled video of that name.
        ValueError: NaN or infinite values, a wrong rank, images of different sizes, fewer than two voxels.

    Example:
        >>> task = volume_task("orbits", rows=1000)
        >>> task.shape, task.x.shape, task.y.shape, task.heldout[0].shape
        ((24, 32, 32, 3), (1000, 3), (1000, 3), (23576, 3))
    """
    _checks.check_positive(rows, "rows", integer=True, least=2)
    _checks.check_positive(seed, "seed", integer=True, least=0)
    stack = open_stack(source)
    voxels = math.prod(stack.shape[:3])
    if voxels < 2:
        raise ValueError(f"{stack.name} has {voxels} voxel; expected at least 2 to fit anything.")
    if voxels <= rows:
        train, tested = np.arange(voxels), np.arange(0)
    else:
        wanted = rows + min(_MOST_HELDOUT, voxels - rows)
        drawn = np.random.default_rng(seed).choice(voxels, wanted, replace=False)
        train, tested = np.sort(drawn[:rows]), np.sort(drawn[rows:])
    x, y = _coordinates(train, stack.shape), stack.rows(train)
    return VolumeTask(stack.name, stack, train, tested, x, y, has_eight_bits(source))


def _coordinates(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return voxel centres (n, 3) as (t, row, column), each axis in (-1, 1)."""
    places = np.unravel_index(rows, shape[:3])
    columns = [axis_centres(size)[place] for size, place in zip(shape[:3], places, strict=True)]
    return np.stack(columns, axis=-1).astype(np.float32)


def _viewable(frame: np.ndarray) -> np.ndarray:
    return frame if frame.shape[2] in (1, 3) else frame.mean(axis=2, keepdims=True)
