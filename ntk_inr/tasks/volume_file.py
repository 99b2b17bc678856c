"""Videos and volumes read slab by slab, so that they need not fit in memory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_inr import _checks
from ntk_inr._optional import require
from ntk_inr.kernels.memory import describe
from ntk_inr.tasks.files import bundled_name, existing_file, load_npy, reading
from ntk_inr.tasks.image_file import PICTURES, count_frames, is_picture, load_frame, stored_values, to_unit, white_level

BUNDLED = ("orbits",)
_SLAB_BYTES = 2**24
_MOST_IN_MEMORY = 2**28
_MANY_FRAMES = (".tif", ".tiff", ".gif")


class Frames:
    """Frames that are stored somewhere, of which ``array`` (t, h, w, c) has all."""

    array: Any

    def __call__(self, first: int, last: int) -> np.ndarray:
        """Return frames as they are stored, in the machine's byte order."""
        return _checks.native(self.array[first:last])

    def __getstate__(self) -> dict[str, Any]:
        # Without the array of those that have it cached: it is found again where they are stored.
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Stack:
    """Frames (t, h, w, c) that are read when they are asked for.

    Attributes:
        name: what to call it.
        shape: (t, h, w, c).
        read: ``read(first, last)`` gives frames (last - first, h, w, c) as they are stored; ``read.array`` has all,
            in memory or mapped into it from a file.
        unit: (offset, scale) that take stored values to [0, 1]: ``(stored - offset) / scale``.
        digest: a fingerprint of all values.
    """

    name: str
    shape: tuple[int, int, int, int]
    read: Frames
    unit: tuple[float, float] = (0.0, 1.0)
    digest: str = ""

    def slab(self, first: int, last: int) -> np.ndarray:
        """Return frames in [0, 1], float32."""
        return self.scaled(self.read(first, last))

    def scaled(self, stored: np.ndarray) -> np.ndarray:
        """Return stored values in [0, 1], float32."""
        values = stored.astype(np.float64)
        values -= self.unit[0]
        values /= self.unit[1]
        return np.clip(values, 0, 1, out=values).astype(np.float32)

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Return (first, last) of slabs of a bounded size."""
        frames = max(1, _SLAB_BYTES // (8 * int(np.prod(self.shape[1:]))))
        return ((first, min(first + frames, self.shape[0])) for first in range(0, self.shape[0], frames))

    def at(self, places: Any) -> np.ndarray:
        """Return values (k, c) in [0, 1] at places (k,) of the raster order of (t, h, w), in any order."""
        return self.scaled(_checks.native(self.read.array[np.unravel_index(places, self.shape[:3])]))


@dataclasses.dataclass(frozen=True)
class ArrayFrames(Frames):
    """Frames of an array (t, h, w, c)."""

    array: np.ndarray


@dataclasses.dataclass(frozen=True)
class FileFrames(Frames):
    """Frames of a memory-mapped ``.npy`` file: pickled as its path, since its array would be read as a whole."""

    path: Path

    @functools.cached_property
    def array(self) -> np.ndarray:
        """The file's array (t, h, w, c), on disk until a part of it is computed with."""
        return _with_channels(load_npy(self.path, memory_map=True), self.path.name)


@dataclasses.dataclass(frozen=True)
class PictureFrames(Frames):
    """Frames of image files, given as (file, frame in it), all of the shape and the dtype of the first.

    They are decoded once: into memory, or where they are many into a temporary file that is mapped into it, since
    training asks for voxels of all of them in each step.
    """

    frames: list[tuple[Path, int]]
    shape: tuple[int, ...]
    dtype: np.dtype

    @functools.cached_property
    def array(self) -> np.ndarray:
        """All frames (t, h, w, c), decoded: as bytes where all are stored so."""
        if (stored := self._as_stored()) is not None:
            return stored
        array = room_for((len(self.frames), *self.shape), self.dtype)
        for position, frame in enumerate(self.frames):
            array[position] = self._read(*frame)
        return array

    def _as_stored(self) -> np.ndarray | None:
        """Return all frames in the dtype that they are stored in; None unless they share one, and have no alpha."""
        array = None
        for position, frame in enumerate(self.frames):
            stored = load_frame(*frame)
            stored = stored[:, :, None] if stored.ndim == 2 else stored
            if array is None:
                array = room_for((len(self.frames), *self.shape), stored.dtype)
            if stored.shape != self.shape or stored.dtype != array.dtype or stored.dtype.kind != "u":
                return None
            array[position] = stored
        return array

    def _read(self, path: Path, frame: int) -> np.ndarray:
        image, first = _frame(path, frame), self.frames[0][0].name
        if image.shape != self.shape:
            raise ValueError(
                f"{path.name} (frame {frame}) has shape {image.shape} but {first} has {self.shape}; all frames must "
                "have the same size and number of channels."
            )
        if image.dtype != self.dtype:
            raise ValueError(
                f"{path.name} (frame {frame}) and {first} differ in the kind of their numbers, such as one of 8 or 16 "
                "bits, the other of 32; save all frames alike."
            )
        return image


def room_for(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array to be written to, in memory, or where it is large in a temporary file mapped into it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= _MOST_IN_MEMORY:
        return np.empty(shape, dtype)
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:
        raise ValueError(
            f"the frames take {describe(size)} decoded, and the folder of temporary files, {tempfile.gettempdir()!r}, "
            f"has {describe(free)} left; set TMPDIR to one with more, or save them as one .npy file, which needs none."
        )
    # Without a name of its own, where the system allows it, so that nothing is left however the process ends.
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return np.memmap(file, dtype, "r+", shape=shape)


def open_stack(source: Any) -> Stack:
    """Return the frames of an array, a file, a folder of images or a bundled video, checked once through."""
    return _checked(_found(source))


def _found(source: Any) -> Stack:
    several = source if isinstance(source, list | tuple) else [source]
    if several and all(map(is_picture, several)):
        return _of_array("array", _of_pillow(several))
    array = _checks.as_numpy(source, "volume")
    if array is not None:
        return _of_array("array", array)
    if name := bundled_name(source, BUNDLED):
        return _of_array(name, _orbits())
    path = Path(os.fsdecode(source)).absolute()  # it is read later too, where the working directory may be another
    if path.is_dir():
        return _of_folder(path)
    existing_file(source, "volume", BUNDLED)
    if path.suffix.lower() in _MANY_FRAMES:
        return _of_files(path.name, [(path, frame) for frame in range(count_frames(path))])
    if path.suffix.lower() == ".npy":
        frames = FileFrames(path)
        return Stack(path.name, frames.array.shape, frames)
    raise ValueError(
        f"{str(path)!r} is no volume; expected .npy (np.save of (t, h, w) or (t, h, w, c), which is read in "
        "parts), .tif or .gif of several frames, or a folder of images, such as: "
        "ffmpeg -i FILE frames/%05d.png"
    )


def _of_array(name: str, array: np.ndarray) -> Stack:
    array = _with_channels(array, name)
    return Stack(name, array.shape, ArrayFrames(array))


def _with_channels(array: np.ndarray, name: str) -> np.ndarray:
    """Return numbers (t, h, w) or (t, h, w, c) as (t, h, w, c)."""
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}; expected (t, h, w) or (t, h, w, c), none of them 0.")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers or floating point values.")
    return array if array.ndim == 4 else array[..., None]


def _of_pillow(pictures: Sequence[Any]) -> np.ndarray:
    """Return images of Pillow, or all frames of a single one, as (t, h, w, c)."""
    with reading("volume", "frames of one size"):
        pages = require("PIL.ImageSequence").all_frames(pictures[0]) if len(pictures) == 1 else pictures
        return np.stack([_unscaled(stored_values(page), "volume") for page in pages])


def _of_folder(folder: Path) -> Stack:
    files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
    if not files:
        raise ValueError(f"{str(folder)!r} holds no images ({', '.join(PICTURES)}); expected one a frame.")
    files.sort(key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)])
    return _of_files(folder.name, [(path, 0) for path in files])


def _of_files(name: str, frames: list[tuple[Path, int]]) -> Stack:
    first = _frame(*frames[0])
    h, w, c = first.shape
    return Stack(name, (len(frames), h, w, c), PictureFrames(frames, first.shape, first.dtype))


def _frame(path: Path, frame: int) -> np.ndarray:
    return _unscaled(load_frame(path, frame), str(path))


def _unscaled(stored: np.ndarray, name: str) -> np.ndarray:
    """Return a frame (h, w, c) of 8 or 16 bits in [0, 1], one of 32 as it is, since all frames tell its range."""
    if stored.dtype.kind not in "if":
        return to_unit(stored, name)
    return stored[:, :, None].astype(np.float64 if stored.dtype.kind == "f" else stored.dtype)


def _checked(stack: Stack) -> Stack:
    """Read everything once: refuse NaN, find the range that [0, 1] stands for, take the fingerprint."""
    sha = hashlib.sha256(repr(stack.shape).encode())
    low, high, bad = np.inf, -np.inf, 0
    dtype = np.dtype(float)
    for first, last in stack.slabs():
        values = stack.read(first, last)
        dtype = values.dtype
        bad += int((~np.isfinite(values)).sum())
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        sha.update(np.ascontiguousarray(values).tobytes())
    if bad:
        size = int(np.prod(stack.shape))
        raise ValueError(f"{stack.name} holds {bad} NaN or infinite values of {size}; remove or replace them.")
    white = white_level(dtype, low, high)
    unit = (low, high - low or 1.0) if white is None else (0.0, white)
    sha.update(f"{dtype.str}{unit}".encode())
    return dataclasses.replace(stack, unit=unit, digest=sha.hexdigest()[:16])


def _orbits(frames: int = 24, side: int = 32) -> np.ndarray:
    """Return a video of three soft discs that circle at different speeds, in colour."""
    t = np.arange(frames)[:, None, None] / frames
    row, column = np.meshgrid(*[(2 * np.arange(side) + 1) / side - 1] * 2, indexing="ij")
    video = np.zeros((frames, side, side, 3), np.float32)
    for channel, (turns, radius, width) in enumerate(((1, 0.55, 0.08), (-2, 0.4, 0.05), (3, 0.25, 0.03))):
        angle = 2 * np.pi * (turns * t + channel / 3)
        distance = (row - radius * np.sin(angle)) ** 2 + (column - radius * np.cos(angle)) ** 2
        video[..., channel] = np.exp(-distance / width)
    return video
