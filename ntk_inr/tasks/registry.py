"""The tasks by name, for the command line and for studies that are described by text."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ntk_inr import _checks
from ntk_inr.tasks import audio, image_file, signal, tomography, volume_file
from ntk_inr.tasks.audio import audio_task
from ntk_inr.tasks.files import bundled_name
from ntk_inr.tasks.image import image_task
from ntk_inr.tasks.interface import Task
from ntk_inr.tasks.pde import Equation, pde_task
from ntk_inr.tasks.restored import denoising_task, inpainting_task, super_resolution_task
from ntk_inr.tasks.shape import shape_task
from ntk_inr.tasks.signal import signal_task
from ntk_inr.tasks.solids import SOLIDS
from ntk_inr.tasks.tomography import tomography_task
from ntk_inr.tasks.volume import volume_task


@dataclasses.dataclass(frozen=True)
class TaskKind:
    """A family of tasks.

    Attributes:
        summary: what it is, and what it takes as a source.
        build: from a source, and settings, to a task.
        suffixes: of files that are taken for this kind where none is named.
        bundled: sources that come with the package, and are taken for this kind where none is named.
        writes: suffix of the file that a reconstruction is written to.
        sample: settings of a small sample of a signal, which ``compare`` and ``tune`` take where none are asked for.
    """

    summary: str
    build: Callable[..., Task]
    suffixes: tuple[str, ...] = ()
    bundled: tuple[str, ...] = ()
    writes: str = ".png"
    sample: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of :attr:`build` and their defaults."""
        parameters = list(inspect.signature(self.build).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}


_IMAGE = f"an image file, or {', '.join(image_file.BUNDLED)}"
TASKS: dict[str, TaskKind] = {
    "image": TaskKind(f"fit {_IMAGE}", image_task, bundled=image_file.BUNDLED, sample={"size": 64}),
    "super-resolution": TaskKind(f"enlarge {_IMAGE}", super_resolution_task),
    "denoising": TaskKind(f"add noise to, and restore, {_IMAGE}", denoising_task),
    "inpainting": TaskKind(f"fill in the missing pixels of {_IMAGE}", inpainting_task),
    "signal": TaskKind(
        "fit sines, chirp, steps, or a wav file as numbers", signal_task, bundled=signal.BUNDLED, writes=".npy"
    ),
    "audio": TaskKind("fit a wav file, or chord, sweep", audio_task, (".wav",), audio.BUNDLED, ".wav"),
    "volume": TaskKind(
        "fit a .npy array (t, h, w[, c]), a folder of images, or orbits",
        volume_task,
        (".npy",),
        volume_file.BUNDLED,
        ".npy",
        {"rows": 2**20},
    ),
    "shape": TaskKind(
        f"fit a mesh file, or {', '.join(SOLIDS)}",
        shape_task,
        (".obj", ".ply", ".stl", ".off", ".glb", ".gltf"),
        tuple(SOLIDS),
        ".ply",
    ),
    "tomography": TaskKind(
        "reconstruct an image file, or shepp-logan, from projections", tomography_task, bundled=tomography.BUNDLED
    ),
    "pde": TaskKind(f"solve {', '.join(get_args(Equation))}", pde_task, bundled=get_args(Equation), writes=".npy"),
}


def load_task(kind: str, source: str | Path, /, **settings: Any) -> Task:
    """Build a task by the name of its kind.

    Args:
        kind: "image", "super-resolution", "denoising", "inpainting", "signal", "audio", "volume", "shape",
            "tomography" or "pde"; ``ntk-inr tasks`` lists their settings.
        source: a file, or the name of something bundled, which comes before a folder of that name ("./orbits" is the
            folder); see the constructor of that kind.
        **settings: of that constructor.

    Returns:
        The :class:`Task`.

    Raises:
        ValueError: an unknown kind, or a setting that this kind does not have; both with the nearest.

    Example:
        >>> import ntk_inr as ni
        >>> ni.load_task("signal", "chirp", samples=64).x.shape
        (64, 1)
    """
    _checks.check_choice(kind, TASKS, "task")
    for name in settings:
        _checks.check_choice(name, TASKS[kind].settings, f"setting of {kind}")
    return TASKS[kind].build(source, **settings)


def kind_of(source: str | Path) -> str:
    """Return the kind of task for a source that names none: by the bundled name, by the suffix, else "image"."""
    suffix = Path(source).suffix.lower()
    for kind, entry in TASKS.items():
        if suffix in entry.suffixes or bundled_name(source, entry.bundled):
            return kind
    return "image"
