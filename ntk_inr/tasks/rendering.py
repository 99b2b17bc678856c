"""What a trained network gives at another resolution, written to a file, from a task's description alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_inr import _checks
from ntk_inr.tasks.audio import sound_cost, sound_of
from ntk_inr.tasks.cost import Cost, check_cost
from ntk_inr.tasks.files import check_new
from ntk_inr.tasks.grid import GridPoints, Progress, in_batches
from ntk_inr.tasks.image_gradients import shifted_picture
from ntk_inr.tasks.mesh_file import SUFFIXES as MESHES
from ntk_inr.tasks.mesh_file import save_mesh
from ntk_inr.tasks.pictures import SUFFIXES as PICTURES
from ntk_inr.tasks.pictures import picture_cost, picture_of, save_picture
from ntk_inr.tasks.shape import surface_cost, surface_of
from ntk_inr.tasks.signal import SUFFIXES as SIGNALS
from ntk_inr.tasks.signal import save_signal, signal_cost, signal_of
from ntk_inr.tasks.tomography import disc_picture
from ntk_inr.tasks.volume import SUFFIXES as VOLUMES
from ntk_inr.tasks.volume import check_kept, viewable, volume_cost, volume_of
from ntk_inr.tasks.wav import write_wav

Predict = Callable[[Any], Any]
_AXES = ("t", "row", "column")


@dataclasses.dataclass(frozen=True)
class Rendering:
    """What is to be written.

    Attributes:
        suffixes: names of files that it can be written to.
        cost: of a file.
        write: ``write(predict, path, overwrite, progress)``.
    """

    suffixes: tuple[str, ...]
    cost: Callable[[Path], Cost]
    write: Callable[[Predict, Path, bool, Progress | None], Any]


def render(
    description: Mapping[str, Any],
    predict: Predict,
    path: str | Path,
    *,
    size: int | None = None,
    slice: int | float | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write what a trained network gives, at any resolution, without the data that it was trained on.

    ======================  ============================================  ==================================
    kind                    ``size``                                      files
    ======================  ============================================  ==================================
    image, restored image,  pixels of the longer side                     .png, .tif, .npy
    tomography
    pde                     points of a side                              .npy; of an image also .png, .tif
    signal                  samples over the interval                     .npy, .csv
    audio                   samples over the same time: the rate grows    .wav
                            with them, so that the sound lasts as long
    volume                  voxels of the longest of its three sides      .npy, .tif, .gif
    a slice of a volume     pixels of the longer side                     .png, .tif, .npy
    shape                   cells of a side for marching cubes            .obj, .ply, .stl, .off, .glb
    ======================  ============================================  ==================================

    Args:
        description: ``task.describe()``, as it is kept in a folder of results.
        predict: the network itself, coordinates (rows, d) -> (rows, channels); compiled where JAX can trace it.
        path: the file; its suffix says what it will be.
        size: see the table; None is the size that was fitted.
        slice: of a volume, a single picture: the number of a frame, as fitted, which may lie between two, as 2.5; or
            "row=40" or "column=40", across the other axes.
        overwrite: replace the file if it exists.
        progress: called with the rows that are done, and all of them.

    Returns:
        The path. The file stands there when it is whole.

    Raises:
        ValueError: a suffix that the kind does not have, a size below 2, ``slice`` of what is no volume or outside of
            it, more memory or disk than there is.
        FileExistsError: the file exists.
        ImportError: a package that writes the file is missing.

    Example:
        >>> import tempfile, numpy as np, ntk_inr as ni
        >>> task = ni.image_task(np.eye(8), size=None)
        >>> def wave(x):
        ...     return 0.5 + 0.5 * np.sin(3 * x[:, :1] + x[:, 1:])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.load(ni.tasks.render(task.describe(), wave, f"{folder}/fine.npy", size=32)).shape
        (32, 32, 1)
    """
    kind = str(description.get("kind"))
    if size is not None:
        _checks.check_positive(size, "size", integer=True, least=2)
    if slice is not None and kind != "volume":
        raise ValueError(f"slice is {slice!r}, but the {kind} {description.get('name')} is no volume; leave it out.")
    rendering = _of(kind, description, size, slice)
    path = check_new(path, rendering.suffixes, overwrite=overwrite)
    what = f"{path.name} at that size" if size is not None else path.name
    check_cost(rendering.cost(path), path, what=what, smaller="a smaller size=")
    rendering.write(predict, path, overwrite, progress)
    return path


def _of(kind: str, description: Mapping[str, Any], size: int | None, slice: int | float | str | None) -> Rendering:
    """Return how a kind of task is rendered."""
    if kind == "shape":
        return _surface(description, size or int(description["resolution"]))
    shape = tuple(int(side) for side in description.get("shape", ()))
    if kind == "volume" and slice is not None:
        return _slice(shape, size, *_place(slice, shape))
    if kind == "volume":
        return _volume(resized(shape[:3], size) + shape[3:])
    if kind == "audio":
        return _sound(description, shape[0], size or shape[0])
    if kind == "signal":
        return _signal(description, (size or shape[0], shape[1]))
    if len(shape) == 3:
        return _picture(description, resized(shape[:2], size) + shape[2:])
    raise ValueError(f"tasks of kind {kind!r} have no rendering; evaluate the network at coordinates of your own.")


def resized(sides: Sequence[int], size: int | None) -> tuple[int, ...]:
    """Return the sides of a grid, the longest of them brought to ``size``.

    Example:
        >>> resized((341, 512), 2048), resized((4, 6), None)
        ((1364, 2048), (4, 6))
    """
    longest = max(sides)
    return tuple(sides) if size is None else tuple(max(1, round(side * size / longest)) for side in sides)


def _picture(description: Mapping[str, Any], shape: tuple[int, ...]) -> Rendering:
    def write(predict: Predict, path: Path, overwrite: bool, progress: Progress | None) -> None:
        if "mean" in description:
            picture = shifted_picture(predict, shape, description["mean"], progress)
        elif description.get("disc"):
            picture = disc_picture(predict, shape[0], progress)
        else:
            picture = picture_of(predict, shape, progress, clipped="equation" not in description)
        save_picture(picture, path, overwrite=overwrite)

    suffixes = (".npy",) if "equation" in description else PICTURES
    return Rendering(suffixes, lambda path: picture_cost(shape, path), write)


def _signal(description: Mapping[str, Any], shape: tuple[int, int]) -> Rendering:
    middle, half = description["middle"], description["half_span"]

    def write(predict: Predict, path: Path, overwrite: bool, progress: Progress | None) -> None:
        save_signal(signal_of(predict, shape, middle, half, progress), path, overwrite=overwrite)

    return Rendering(SIGNALS, lambda path: signal_cost(shape, path), write)


def _sound(description: Mapping[str, Any], fitted: int, samples: int) -> Rendering:
    rate = max(1, round(description["rate"] * samples / fitted))

    def write(predict: Predict, path: Path, overwrite: bool, progress: Progress | None) -> None:
        write_wav(path, rate, sound_of(predict, samples, description["peak"], progress), overwrite=overwrite)

    return Rendering((".wav",), lambda path: sound_cost(samples, path), write)


def _volume(shape: tuple[int, ...]) -> Rendering:
    def write(predict: Predict, path: Path, overwrite: bool, progress: Progress | None) -> None:
        volume_of(predict, shape, out=path, overwrite=overwrite, progress=progress)

    def cost(path: Path) -> Cost:
        check_kept(shape, path, f"a volume of {' × '.join(map(str, shape[:3]))}")
        return volume_cost(shape, path)

    return Rendering(VOLUMES, cost, write)


def _surface(description: Mapping[str, Any], resolution: int) -> Rendering:
    def write(predict: Predict, path: Path, overwrite: bool, progress: Progress | None) -> None:
        surface = surface_of(predict, resolution, description["formulation"], progress)
        vertices = surface.vertices * description["scale"] + np.asarray(description["centre"])
        save_mesh(vertices, surface.faces, path, overwrite=overwrite)

    return Rendering(MESHES, lambda path: surface_cost(resolution, path), write)


def _slice(shape: tuple[int, ...], size: int | None, axis: int, place: float) -> Rendering:
    sides = resized([side for number, side in enumerate(shape[:3]) if number != axis], size)

    def write(predict: Predict, path: Path, overwrite: bool, progress: Progress | None) -> None:
        values = in_batches(predict, Slice(sides, axis, place), shape[3], progress=progress)
        picture = np.clip(values, 0, 1, out=values).reshape(*sides, shape[3])
        save_picture(viewable(picture), path, overwrite=overwrite)

    return Rendering(PICTURES, lambda path: picture_cost((*sides, shape[3]), path), write)


class Slice(GridPoints):
    """The points (n, 3) of a plane across an axis, in the raster order of the two others."""

    def __init__(self, sides: Sequence[int], axis: int, place: float) -> None:
        super().__init__(sides)
        self.shape = (len(self), 3)
        self.axis, self.place = axis, place

    def __getitem__(self, places: Any) -> np.ndarray:
        """Return points (k, 3) by their places (k,)."""
        return np.insert(super().__getitem__(places), self.axis, np.float32(self.place), axis=-1)


def _place(slice: int | float | str, shape: Sequence[int]) -> tuple[int, float]:
    """Return the axis that a slice lies across, and its coordinate on it in [-1, 1]."""
    name, _, number = slice.rpartition("=") if isinstance(slice, str) else ("t", "", slice)
    axis = _AXES.index(name or "t") if (name or "t") in _AXES else None
    try:
        position = float(number)
    except ValueError:
        axis = None
    if axis is None:
        raise ValueError(f'slice is {slice!r}; expected the number of a frame, such as 12, or "row=40" or "column=40".')
    if not 0 <= position <= shape[axis] - 1:
        raise ValueError(f"slice is {slice!r}; expected {_AXES[axis]} from 0 to {shape[axis] - 1}, as it was fitted.")
    return axis, (2 * position + 1) / shape[axis] - 1
