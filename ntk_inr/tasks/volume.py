"""Videos and volumes as a task: voxels drawn for training, reconstructions written slab by slab."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ntk_inr import _checks
from ntk_inr._optional import require
from ntk_inr.kernels.memory import describe
from ntk_inr.tasks import metrics
from ntk_inr.tasks.cost import Cost
from ntk_inr.tasks.files import new_file
from ntk_inr.tasks.grid import GridPoints, Progress, in_batches
from ntk_inr.tasks.image_file import has_eight_bits
from ntk_inr.tasks.interface import MOST_HELDOUT, OnDemandTask, fingerprint
from ntk_inr.tasks.origin import with_origin
from ntk_inr.tasks.pictures import Panel, eight_bit_pixels, error_panel, picture_rows
from ntk_inr.tasks.volume_file import BUNDLED, Stack, open_stack
from ntk_inr.training import curves

SUFFIXES = (".npy", ".gif", ".tif", ".tiff")
"""What volumes are written as."""
_MOST_IN_MEMORY = 2**31
_FRAMES_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class VolumeTask(OnDemandTask):
    """A video or a volume (t, h, w, c), all of whose voxels are trained on, or some of them.

    Attributes:
        name: what to call it in a report.
        stack: its frames, read when they are asked for; scaled to [0, 1] as a whole.
        places: sorted places of the voxels trained on, in the raster order of (t, h, w); None where all are.
        tested: sorted places of voxels held out for testing; may be empty.
        eight_bit: whether the values came as integers of 8 bits.
        origin: how :func:`ntk_inr.load_task` builds it again; None for arrays.
    """

    kind: ClassVar[str] = "volume"
    noun: ClassVar[str] = "voxels"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    smaller: ClassVar[str] = "fewer rows="

    name: str
    stack: Stack
    places: np.ndarray | None
    tested: np.ndarray
    eight_bit: bool = False
    origin: Any = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(t, h, w, c)."""
        return self.stack.shape

    @property
    def n(self) -> int:
        """How many voxels are trained on."""
        return math.prod(self.shape[:3]) if self.places is None else len(self.places)

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return voxel centres (k, 3) as (t, row, column), each axis in (-1, 1), and values (k, c) in [0, 1]."""
        return self._at(np.asarray(indices) if self.places is None else self.places[indices])

    def _at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return GridPoints(self.shape[:3])[places], self.stack.at(places)

    @property
    def summary(self) -> str:
        """What is fitted, in a few words."""
        size = " × ".join(map(str, self.shape[:3]))
        part = "" if self.places is None else f", fitted at {self.n:,} of {math.prod(self.shape[:3]):,} voxels"
        return f"{self.name} {size}{part}"

    def describe(self) -> dict[str, Any]:
        """Return, for JSON, what is fitted: kind, name, rows and values trained on, and what rendering needs."""
        return super().describe() | {"shape": list(self.shape)}

    def cost(self, out: str | Path | None = None) -> Cost:
        """Return what a reconstruction, its scores and its figure take of memory, and its file of disk."""
        return volume_cost(self.shape, out)

    @property
    def heldout(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Coordinates and values of further voxels, at most 65536 of them; None where all are trained on."""
        if not len(self.tested):
            return None
        return self._at(self.tested)

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of all values and of the choice of training voxels."""
        return fingerprint(self.stack.digest, self.places)

    def reconstruct(
        self,
        predict: Callable[[Any], Any],
        *,
        out: str | Path | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Return the whole volume (t, h, w, c), clipped to [0, 1], computed slab by slab.

        Args:
            predict: the network itself, coordinates (rows, 3) as (t, row, column) -> (rows, c); compiled where JAX
                can trace it.
            out: a file to write to as well, as :meth:`save` does. A ``.npy`` file is written as it is computed, for
                what is larger than memory; None keeps the volume in memory.
            overwrite: replace the file if it exists.
            progress: called with the voxels that are done, and all of them.

        Returns:
            float32; memory-mapped from ``out`` if that is a ``.npy`` file.

        Raises:
            ValueError: above 2 GiB, and no ``out``.
            FileExistsError: ``out`` exists.
        """
        self.check(out=out, overwrite=overwrite)
        return volume_of(predict, self.shape, out=out, overwrite=overwrite, progress=progress)

    def check(self, *, out: str | Path | None = None, overwrite: bool = False) -> None:
        """Refuse what a reconstruction would fail over, also one above 2 GiB that is written to no ``.npy`` file."""
        check_kept(self.shape, out, f"the reconstruction of {self.name}")
        super().check(out=out, overwrite=overwrite)

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
        rows = [[Panel(f"frame {frame}", viewable(image)) for frame, image in zip(frames, seen, strict=True)]]
        if reconstruction is not None:
            estimates = [reconstruction[frame] for frame in frames]
            rows.append([Panel("reconstruction", viewable(image)) for image in estimates])
            rows.append([error_panel(a, b) for a, b in zip(estimates, seen, strict=True)])
        return picture_rows(rows)

    def save(self, reconstruction: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a reconstruction as ``.npy``, as an 8-bit ``.tif`` of as many frames, or as a ``.gif``.

        A frame of a GIF lasts a tenth of a second; equal neighbours become one that lasts as long as they do.
        """
        return save_volume(reconstruction, path, overwrite=overwrite)


def volume_of(
    predict: Callable[[Any], Any],
    shape: Sequence[int],
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return a volume of ``shape`` (t, h, w, c), clipped to [0, 1]; see :meth:`VolumeTask.reconstruct`."""
    points, clipped = GridPoints(shape[:3]), functools.partial(np.clip, a_min=0, a_max=1)

    def fill(volume: np.ndarray) -> None:
        values = volume.reshape(-1, shape[3])
        in_batches(predict, points, shape[3], out=values, finish=clipped, progress=progress)

    if out is not None and Path(out).suffix.lower() == ".npy":
        with new_file(out, (".npy",), overwrite=overwrite) as written:
            mapped = np.lib.format.open_memmap(written, "w+", np.float32, tuple(shape))
            fill(mapped)
            mapped.flush()
            del mapped
        return np.load(out, mmap_mode="r")
    volume = np.empty(shape, np.float32)
    fill(volume)
    if out is not None:
        save_volume(volume, out, overwrite=overwrite)
    return volume


def check_kept(shape: Sequence[int], out: str | Path | None, what: str) -> None:
    """Refuse a volume above 2 GiB that is written to no file as it is computed."""
    needed = 4 * math.prod(shape)
    if needed > _MOST_IN_MEMORY and (out is None or Path(out).suffix.lower() != ".npy"):
        raise ValueError(f"{what} takes {describe(needed)}; pass out=, a .npy file to write it to part by part.")


def volume_cost(shape: Sequence[int], out: str | Path | None) -> Cost:
    """Return what a volume of a shape (t, h, w, c) takes, made, scored, drawn and written."""
    values, suffix = math.prod(shape), None if out is None else Path(out).suffix.lower()
    modules = [("matplotlib", "report"), ("skimage.metrics", "report")]
    modules += [("PIL.Image", "report")] if suffix not in (None, ".npy") else []
    memory = 0 if suffix == ".npy" else 4 * values if suffix is None else 6 * values
    return Cost(memory + 2**28, 0 if out is None else (4 if suffix == ".npy" else 1) * values, tuple(modules))


def save_volume(volume: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a volume (t, h, w, c) in [0, 1] as ``.npy``, as an 8-bit ``.tif`` of as many frames, or as a ``.gif``."""
    with new_file(path, SUFFIXES, overwrite=overwrite) as written:
        if written.suffix.lower() == ".npy":
            np.save(written, volume)
        else:
            image = require("PIL.Image")
            frames = [image.fromarray(eight_bit_pixels(viewable(frame))) for frame in volume]
            frames[0].save(written, save_all=True, append_images=frames[1:], duration=100)
    return Path(path)


@with_origin("volume", BUNDLED)
def volume_task(source: Any, *, rows: int | None = None, seed: int = 0) -> VolumeTask:
    """Make a task of a video or a volume, which need not fit in memory.

    Unsigned integers of 8 and 16 bits are divided by their type's range, other integers from 0 to 255 by 255 (by 1
    where all are 0 or 1), floats in [0, 1] are kept, anything else is scaled from its smallest and largest value.
    Voxels are read as they are asked for: from the file, or from a temporary one where frames have to be decoded.

    Args:
        source: a ``.npy`` file of (t, h, w) or (t, h, w, c), which is memory-mapped; a ``.tif`` or ``.gif`` of
            several frames; a folder of images of one size, in the order of the numbers in their names; an array
            of NumPy, JAX or lists; images of Pillow; or "orbits", a bundled video of 24 frames (a folder: "./orbits").
        rows: train on at most so many voxels, drawn at random without repetition; None trains on all.
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
    if rows is not None:
        _checks.check_positive(rows, "rows", integer=True, least=2)
    _checks.check_positive(seed, "seed", integer=True, least=0)
    stack = open_stack(source)
    voxels = math.prod(stack.shape[:3])
    if voxels < 2:
        raise ValueError(f"{stack.name} has {voxels} voxel; expected at least 2 to fit anything.")
    places, tested = None, np.arange(0)
    if rows is not None and rows < voxels:
        wanted = rows + min(MOST_HELDOUT, voxels - rows)
        drawn = np.random.default_rng(seed).choice(voxels, wanted, replace=False)
        places, tested = np.sort(drawn[:rows]), np.sort(drawn[rows:])
    return VolumeTask(stack.name, stack, places, tested, has_eight_bits(source))


def viewable(frame: np.ndarray) -> np.ndarray:
    """Return a frame (h, w, c) as a picture: one of neither 1 nor 3 channels as their mean."""
    return frame if frame.shape[2] in (1, 3) else frame.mean(axis=2, keepdims=True)
