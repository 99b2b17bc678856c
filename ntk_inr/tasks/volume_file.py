"""Videos and volumes read slab by slab, so that they need not fit in memory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ntk_inr.tasks.files import existing_file, load_npy, nan_message
from ntk_inr.tasks.image_file import PICTURES, count_frames, load_frame

BUNDLED = ("orbits",)
_SLAB_BYTES = 2**24
_MANY_FRAMES = (".tif", ".tiff", ".gif")


@dataclasses.dataclass(frozen=True)
class Stack:
    """Frames (t, h, w, c) that are read when they are asked for.

    Attributes:
        name: what to call it.
        shape: (t, h, w, c).
        read: ``read(first, last)`` gives frames (last - first, h, w, c) as they are stored.
        unit: (offset, scale) that take stored values to [0, 1]: ``(stored - offset) / scale``.
        digest: a fingerprint of all values.
    """

    name: str
    shape: tuple[int, int, int, int]
    read: Callable[[int, int], np.ndarray]
    unit: tuple[float, float] = (0.0, 1.0)
    digest: str = ""

    def slab(self, first: int, last: int) -> np.ndarray:
        """Return frames in [0, 1], float32."""
        return self.scaled(self.read(first, last))

    def scaled(self, stored: np.ndarray) -> np.ndarray:
        """Return stored values in [0, 1], float32."""
        return ((stored.astype(np.float64) - self.unit[0]) / self.unit[1]).astype(np.float32)

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Return (first, last) of slabs of a bounded size."""
        frames = max(1, _SLAB_BYTES // (8 * int(np.prod(self.shape[1:]))))
        return ((first, min(first + frames, self.shape[0])) for first in range(0, self.shape[0], frames))

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Return values (len(rows), c) in [0, 1] at sorted places of the raster order of (t, h, w)."""
        _, h, w, c = self.shape
        found = np.empty((len(rows), c), np.float32)
        for first, last in self.slabs():
            begin, end = np.searchsorted(rows, (first * h * w, last * h * w))
            if end > begin:
                place = np.unravel_index(rows[begin:end] - first * h * w, (last - first, h, w))
                found[begin:end] = self.scaled(self.read(first, last)[place])
        return found


def open_stack(source: Any) -> Stack:
    """Return the frames of an array, an ``.npy`` file, a folder of images or a bundled video, checked once through."""
    if isinstance(source, np.ndarray):
        stack = _of_array("array", source)
    elif str(source) in BUNDLED and not Path(source).exists():
        stack = _of_array(str(source), _orbits())
    elif Path(source).is_dir():
        stack = _of_folder(Path(source))
    else:
        path = existing_file(source, "volume", BUNDLED)
        if path.suffix.lower() in _MANY_FRAMES:
            pages = [(path, frame) for frame in range(count_frames(path))]
            stack = _of_images(path.name, pages)
        elif path.suffix.lower() == ".npy":
            stack = _of_array(path.name, load_npy(path, memory_map=True))
        else:
            raise ValueError(
                f"{str(path)!r} is no volume; expected .npy (np.save of (t, h, w) or (t, h, w, c), which is read in "
                "parts), .tif or .gif of several frames, or a folder of images, such as: "
                "ffmpeg -i FILE frames/%05d.png"
            )
    return _checked(stack)


def _of_array(name: str, array: np.ndarray) -> Stack:
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}; expected (t, h, w) or (t, h, w, c), none of them 0.")
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating) or array.dtype == bool):
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers or floating point values.")
    t, h, w = array.shape[:3]
    c = array.shape[3] if array.ndim == 4 else 1
    # A memory-mapped file stays on disk until a slab of it is computed with.
    return Stack(name, (t, h, w, c), lambda first, last: array[first:last].reshape(last - first, h, w, c))


def _of_folder(folder: Path) -> Stack:
    files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
    if not files:
        raise ValueError(f"{str(folder)!r} holds no images ({', '.join(PICTURES)}); expected one a frame.")
    files.sort(key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)])
    return _of_images(folder.name, [(path, 0) for path in files])


def _of_images(name: str, frames: list[tuple[Path, int]]) -> Stack:
    """Return a stack of (file, frame in it), which must have one shape."""
    first_frame = load_frame(*frames[0], scale=False)
    shape, dtype = first_frame.shape, first_frame.dtype

    @functools.lru_cache(maxsize=1)
    def read(first: int, last: int) -> np.ndarray:
        images = [load_frame(*frame, scale=False) for frame in frames[first:last]]
        for (path, frame), image in zip(frames[first:last], images, strict=True):
            if image.shape != shape:
                raise ValueError(
                    f"{path.name} (frame {frame}) has shape {image.shape} but {frames[0][0].name} has {shape}; all "
                    "frames must have the same size and number of channels."
                )
            if image.dtype != dtype:
                raise ValueError(
                    f"{path.name} (frame {frame}) and {frames[0][0].name} differ in the kind of their numbers, one of "
                    "8 or 16 bits, the other of 32; save all frames alike."
                )
        return np.stack(images)

    return Stack(name, (len(frames), *shape), read)


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
        raise ValueError(nan_message(stack.name, bad, int(np.prod(stack.shape))))
    if dtype.kind == "b" or (np.issubdtype(dtype, np.floating) and low >= 0 and high <= 1):
        unit = (0.0, 1.0)
    elif dtype in (np.uint8, np.uint16):
        unit = (0.0, 2.0 ** (8 * dtype.itemsize) - 1)
    else:
        unit = (low, high - low or 1.0)
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
