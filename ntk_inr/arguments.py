"""What a user of ``ntk-inr`` may write: the commands and their options, read before JAX is imported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias

import tyro

from ntk_inr.study.plan import TrainingOptions

_VARIANT = tyro.conf.arg(aliases=["--variants"], metavar="NAME ...")
_SETTINGS = tyro.conf.arg(metavar="NAME=VALUE ...", help_behavior_hint="")
_SOURCE = tyro.conf.arg(metavar="[TASK] FILE", help_behavior_hint="")


@dataclasses.dataclass
class Data:
    """What is fitted."""

    source: tyro.conf.Positional[Annotated[tuple[str, ...], _SOURCE]]
    """A file, or something bundled, which also tells the task, else it is an image; `ntk-inr tasks` lists both."""
    size: int | None = None
    """Longer side of an image in pixels, after reduction; by default the task's own: of images
    up to 512, and 64 to compare or tune."""
    set: Annotated[tuple[str, ...], _SETTINGS] = ()
    """Settings of the task, such as size=128 holdout=0.5 or angles=90; `ntk-inr tasks` lists them."""


@dataclasses.dataclass
class ComparedData(Data):
    """What is fitted."""

    holdout: float | None = None
    """Share of the values held out for testing."""
    grey: bool = False
    """Turn a colour image into grey."""


@dataclasses.dataclass
class Network:
    """What fits it."""

    variant: Annotated[tuple[str, ...], _VARIANT]
    """One or several, with settings where wanted: siren:omega=10 or rff:scale=4,depth=3. See `ntk-inr variants`."""
    features: int = 256
    """Width of the hidden layers."""
    depth: int = 4
    """Number of hidden layers."""


@dataclasses.dataclass
class Output:
    """Where the results go."""

    out: Path | None = None
    """Folder for the results; by default runs/NAME, or runs/TASK-NAME where NAME does not tell the task."""
    overwrite: bool = False
    """Replace results in the folder."""
    resume: bool = False
    """Go on from results in the folder."""


@dataclasses.dataclass(frozen=True)
class Trained(TrainingOptions):
    """How networks are trained; what is not given is as the recipe of each network says."""

    optimizer_set: Annotated[tuple[str, ...], _SETTINGS] = ()
    """Settings of the optimizer, such as b1=0.95 eps=1e-15."""
    seed: int = 0
    """First random seed."""


@dataclasses.dataclass(frozen=True)
class ComparedTraining(Trained):
    """How the networks are trained, and held beside what their kernels predict."""

    steps: int = 500
    """Training steps, by the recipe and of gradient descent each."""
    seeds: int = 3
    """Independent initialisations a network."""
    target: float | None = None
    """PSNR in dB to count steps to; by default the highest that every network reached."""
    kernel_points: int = 4096
    """Most values that a kernel is taken on; more are sampled."""


@dataclasses.dataclass(frozen=True)
class Training(Trained):
    """How the network is trained."""

    steps: int = 1000
    """Training steps."""


@dataclasses.dataclass
class GoingOn:
    """What it goes on from, and what is recorded."""

    further: Literal["constant", "cosine", "exponential", "linear"] | None = None
    """With --resume and more --steps: how the learning rate goes over the further steps, from --learning-rate on. A run
    at a constant rate needs none."""
    start: Path | None = None
    """Folder of another run, whose trained network is the start."""
    record: bool = False
    """Record the kernel at steps 0, 1, 2, 4, ...; what one costs is printed first."""


@dataclasses.dataclass(frozen=True)
class PlannedTraining(Trained):
    """The training that is planned; the rate of sgd is predicted."""

    steps: int = 500
    """Training steps that are planned."""


@dataclasses.dataclass
class Search:
    """What is chosen from, and for what."""

    over: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=LOW:HIGH ...", help_behavior_hint="")] = ()
    """Settings to choose, with a range or a list: scale=0.25:32 or bands=2,4,8; by default what matters most."""
    objective: Annotated[Literal["heldout", "fit", "speed"], tyro.conf.arg(name="for")] = "heldout"
    """heldout: best PSNR on values that are held out. fit: PSNR after --steps. speed: steps to --target."""
    target: float | None = None
    """PSNR in dB, of --for speed."""
    points: int = 8
    """Values of a range that are tried first."""
    refine: int = 4
    """Further candidates around the best."""
    sample: int | None = None
    """Rows that a kernel is taken on; by default 512, or all."""
    repeats: int = 3
    """Samples and initialisations a candidate."""
    pilot: int = 0
    """Steps of a short training of each candidate, after which its kernel is taken."""
    infinite: bool = False
    """Take the kernel of infinite width."""


@dataclasses.dataclass
class Compare:
    """Compare networks on a task: conditioning, predicted and measured training, reconstruction.

    Example: ntk-inr compare photo.png --variant relu pe siren --size 64 --out runs/photo

    Example: ntk-inr compare shape torus --variant relu siren siren:omega=10 --set points=4000

    Example: ntk-inr compare photo.png --variant siren wire --recipe published
    """

    prefix: ClassVar[str] = ""
    data: ComparedData
    network: Network = dataclasses.field(
        default_factory=lambda: Network(("relu", "pe", "pe+sphere", "pe+hadamard", "pe+sphere+hadamard", "siren"))
    )
    training: ComparedTraining = dataclasses.field(default_factory=ComparedTraining)
    output: Output = dataclasses.field(default_factory=Output)


@dataclasses.dataclass
class Fit:
    """Train a network on a task; keep it, the reconstruction, its scores, the curve and checkpoints.

    Several networks are trained one after the other, each in a folder of its own.

    Example: ntk-inr fit audio song.wav --variant siren --steps 2000 --out runs/song

    Example: ntk-inr fit photo.png --size 128 --variant rff:scale=4 --learning-rate 3e-3 --schedule cosine

    Example: ntk-inr fit shape bunny.obj --set kind=occupancy
    """

    prefix: ClassVar[str] = "fit-"
    data: Data
    network: Network = dataclasses.field(default_factory=lambda: Network(("siren",)))
    training: Training = dataclasses.field(default_factory=Training)
    going_on: GoingOn = dataclasses.field(default_factory=GoingOn)
    output: Output = dataclasses.field(default_factory=Output)


@dataclasses.dataclass
class Tune:
    """Choose settings before training, by what the kernel at initialisation predicts.

    Example: ntk-inr tune photo.png --variant rff --over scale=0.25:32 --for heldout

    Example: ntk-inr tune photo.png --variant siren rff pe --pilot 50 --out runs/choice
    """

    prefix: ClassVar[str] = "tune-"
    data: Data
    network: Network = dataclasses.field(default_factory=lambda: Network(("rff",)))
    search: Search = dataclasses.field(default_factory=Search)
    training: PlannedTraining = dataclasses.field(default_factory=PlannedTraining)
    output: Output = dataclasses.field(default_factory=Output)


@dataclasses.dataclass
class Variants:
    """List the networks that can be compared.

    Example: ntk-inr variants
    """


@dataclasses.dataclass
class Tasks:
    """List the tasks, what they take and their settings.

    Example: ntk-inr tasks
    """


@dataclasses.dataclass
class Report:
    """Rebuild the page, the table and the figures from results.json.

    Example: ntk-inr report runs/photo --target 25
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `ntk-inr compare --out` wrote."""
    target: float | None = None
    """PSNR in dB to count steps to; by default the highest that every network reached."""


@dataclasses.dataclass
class Render:
    """Write what a trained network gives at another resolution: a finer picture or mesh, a longer sound, one slice.

    Example: ntk-inr render runs/fit-photo --size 2048

    Example: ntk-inr render runs/photo --variant siren --seed 1 --out large.png
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `ntk-inr fit` or `ntk-inr compare` wrote."""
    variant: str | None = None
    """Which network of a comparison."""
    seed: int = 0
    """Which of its seeds, from 0."""
    size: int | None = None
    """Longer side in pixels or voxels, samples of a sound, cells a side of a mesh; by default as trained."""
    slice: int | float | str | None = None
    """One picture of a volume: the number of a frame, which may lie between two, 2.5 say, or row=40, column=40."""
    out: Path | None = None
    """File to write; by default render.* in the folder."""
    overwrite: bool = False
    """Replace the file if it exists."""


@dataclasses.dataclass
class Export:
    """Write a trained network as a program of StableHLO, which JAX calls without this package.

    Example: ntk-inr export runs/fit-photo photo.stablehlo
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `ntk-inr fit` or `ntk-inr compare` wrote."""
    file: tyro.conf.Positional[Path]
    """File to write."""
    variant: str | None = None
    """Which network of a comparison."""
    seed: int = 0
    """Which of its seeds, from 0."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """What it shall run on."""
    overwrite: bool = False
    """Replace the file if it exists."""


OnATask: TypeAlias = Compare | Fit | Tune
Command: TypeAlias = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Fit, tyro.conf.subcommand("fit")]
    | Annotated[Tune, tyro.conf.subcommand("tune")]
    | Annotated[Variants, tyro.conf.subcommand("variants")]
    | Annotated[Tasks, tyro.conf.subcommand("tasks")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Render, tyro.conf.subcommand("render")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def values_of(command: object) -> dict[str, object]:
    """Return the options of a command by their names, whatever group they are in."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(command):  # type: ignore[arg-type]
        value = getattr(command, field.name)
        values |= values_of(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return values
