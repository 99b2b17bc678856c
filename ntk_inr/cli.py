"""The commands of ``ntk-inr``: compare, fit, tune, variants, tasks, report."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ntk_inr import terminal
from ntk_inr.networks.settings import with_settings
from ntk_inr.networks.variants import variant, variants
from ntk_inr.study import compare as study_compare
from ntk_inr.study.figures import save_figure
from ntk_inr.study.record import RESULTS, load
from ntk_inr.study.report import write_report
from ntk_inr.study.single import fit_task
from ntk_inr.study.space import parse_values
from ntk_inr.study.summary import check_target, summarize
from ntk_inr.study.tune import tune
from ntk_inr.study.tuning import Objective
from ntk_inr.study.tuning import read as load_tuning
from ntk_inr.tasks.interface import Task
from ntk_inr.tasks.registry import TASKS, kind_of, load_task

_USER_MISTAKES = (ValueError, TypeError, FileNotFoundError, FileExistsError, PermissionError, ImportError)


@dataclasses.dataclass
class _OnATask:
    """What the commands share that take a task."""

    prefix: ClassVar[str] = ""
    source: tyro.conf.Positional[tuple[str, ...]]
    """[TASK] FILE: a file, or something bundled. The task is told by that or by the file's suffix, else it is an image.
    `ntk-inr tasks` lists both."""
    set: tuple[str, ...] = ()
    """Settings of the task, such as size=128 holdout=0.5 or angles=90; `ntk-inr tasks` lists them."""
    size: int | None = None
    """Longer side of an image in pixels, after reduction; by default the task's own, 64 for images."""
    features: int = 128
    """Width of the hidden layers."""
    depth: int = 3
    """Number of hidden layers."""
    seed: int = 0
    """First random seed."""
    out: Path | None = None
    """Folder for the results; by default runs/NAME, or runs/TASK-NAME where NAME does not tell the task."""
    overwrite: bool = False
    """Replace results in the folder."""
    resume: bool = False
    """Go on from results in the folder."""

    def task(self, **settings: object) -> Task:
        """Return the task; ``settings`` are options of their own, left out where they are None."""
        if not 1 <= len(self.source) <= 2:
            raise ValueError(f"expected [TASK] FILE, got {' '.join(self.source) or 'nothing'}.")
        source = self.source[-1]
        kind = self.source[0] if len(self.source) == 2 else kind_of(source)
        given = {name: value for name, value in settings.items() if value is not None}
        given |= _named(self.set, "--set", "size=128")
        if kind in TASKS and "seed" in TASKS[kind].settings:
            given.setdefault("seed", self.seed)
        task, name = load_task(kind, source, **given), Path(source).stem
        self.out = self.out or Path("runs") / (self.prefix + (name if kind == kind_of(source) else f"{kind}-{name}"))
        return task


def _named(texts: Sequence[str], option: str, example: str) -> dict[str, Any]:
    """Return what texts such as "name=value" say; what is no Python value is a text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{option} {text!r} is no setting; write name=value, such as {example}.")
        try:
            found[name.replace("-", "_")] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name.replace("-", "_")] = value
    return found


@dataclasses.dataclass
class Compare(_OnATask):
    """Compare networks on a task: conditioning, predicted and measured training, reconstruction.

    Example: ntk-inr compare photo.png --variants relu pe siren --size 64 --out runs/photo

    Example: ntk-inr compare shape torus --variants relu siren --set points=4000
    """

    variants: tuple[str, ...] = ("relu", "pe", "pe+sphere", "pe+hadamard", "pe+sphere+hadamard", "siren")
    """Networks to compare; `ntk-inr variants` lists them."""
    steps: int = 500
    """Training steps, of Adam and of gradient descent each."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    seeds: int = 2
    """Independent initialisations a network."""
    target: float | None = None
    """PSNR in dB to count steps to; by default the highest that every network reached."""
    holdout: float | None = None
    """Share of the values held out for testing."""
    grey: bool = False
    """Turn a colour image into grey."""
    kernel_points: int = 4096
    """Most values that a kernel is taken on; more are sampled."""

    def run(self, console: Console) -> int:
        """Do it; return the exit status."""
        check_target(self.target)
        task = self.task(size=self.size, holdout=self.holdout, grey=self.grey or None)
        assert self.out is not None
        with terminal.progress(console) as progress:
            study = study_compare.compare(
                task, self.variants, features=self.features, depth=self.depth, steps=self.steps, seeds=self.seeds,
                learning_rate=self.learning_rate, seed=self.seed, kernel_points=self.kernel_points, out=self.out,
                overwrite=self.overwrite, resume=self.resume, progress=progress,
            )  # fmt: skip
            page = write_report(study, self.out, target_psnr=self.target, progress=progress)
        terminal.print_study(console, study, summarize(study, self.target))
        console.print(f"\nReport: [bold]{escape(str(page))}[/]", soft_wrap=True)
        if all(result.diverged for result in study.variants):
            raise ValueError(
                f"every network diverged at learning rate {self.learning_rate:g}; pass a smaller --learning-rate."
            )
        return 0

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        if self.out is None or not (self.out / RESULTS).exists():
            return "No network was finished, so nothing was kept."
        done = len(load(self.out).variants)
        return (
            f"{done} of {len(self.variants)} networks are finished and kept in {self.out}; "
            "the same command with --resume goes on from there."
        )


@dataclasses.dataclass
class Fit(_OnATask):
    """Train one network on a task; keep the reconstruction, its scores, the curve and checkpoints.

    Example: ntk-inr fit audio song.wav --variant siren --steps 2000 --out runs/song

    Example: ntk-inr fit photo.png --size 128 --variant rff --network scale=4 --schedule cosine

    Example: ntk-inr fit shape bunny.obj --set kind=occupancy
    """

    prefix = "fit-"

    variant: str = "siren"
    """Network; `ntk-inr variants` lists them."""
    network: tuple[str, ...] = ()
    """Settings of the network, such as omega=20 or encoding.scale=4."""
    steps: int = 1000
    """Training steps."""
    optimizer: str = "adam"
    """Any of optax's, by name."""
    learning_rate: float | None = None
    """Its largest learning rate; by default 1e-3, and for lbfgs its line search."""
    schedule: Literal["constant", "cosine", "exponential", "linear"] = "constant"
    """How the learning rate falls over the steps."""

    def run(self, console: Console) -> int:
        """Do it; return the exit status."""
        task = self.task(size=self.size)
        assert self.out is not None
        net = variant(self.variant, features=self.features, depth=self.depth, out=task.channels)
        net = with_settings(net, _named(self.network, "--network", "omega=20"))
        with terminal.progress(console) as progress:
            found = fit_task(
                task, net, steps=self.steps, optimizer=self.optimizer, learning_rate=self.learning_rate,
                schedule=self.schedule, seed=self.seed,
                out=self.out, overwrite=self.overwrite, resume=self.resume,
                progress=lambda done, total: progress("steps", done, total),
            )  # fmt: skip
        if found.run.status == "interrupted":
            raise KeyboardInterrupt
        for label, text in found.score_lines(task):
            console.print(f"{label}: [bold]{text}[/]")
        for name, path in found.files.items():
            console.print(f"{name}: {escape(str(path))}", soft_wrap=True)
        if found.run.status == "diverged":
            raise ValueError(
                f"{self.variant} diverged after {found.run.steps} steps; the reconstruction is of the last good one. "
                "Pass a smaller --learning-rate."
            )
        return 0

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        if self.out is None or not (self.out / "checkpoints").exists():
            return "Nothing was trained yet, so nothing was kept."
        return f"The last step is kept in {self.out}; the same command with --resume goes on from there."


@dataclasses.dataclass
class Tune(_OnATask):
    """Choose settings before training, by what the kernel at initialisation predicts.

    Example: ntk-inr tune photo.png --variant rff --over scale=0.25:32 --for heldout

    Example: ntk-inr tune photo.png --variant siren rff pe --pilot 50 --out runs/choice
    """

    prefix = "tune-"

    variant: tuple[str, ...] = ("rff",)
    """Networks to choose from; `ntk-inr variants` lists them."""
    over: tuple[str, ...] = ()
    """Settings to choose, each with a range or a list: scale=0.25:32 or bands=2,4,8. By default a wide range of the
    setting that a network's spectrum hangs on most."""
    objective: Annotated[Objective, tyro.conf.arg(name="for")] = "heldout"
    """heldout: best PSNR on values that are held out. fit: PSNR after --steps. speed: steps to --target."""
    steps: int = 500
    """Training steps that are planned."""
    target: float | None = None
    """PSNR in dB, of --for speed."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """What will train the network."""
    learning_rate: float = 1e-3
    """Learning rate of Adam; that of sgd is predicted."""
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

    def run(self, console: Console) -> int:
        """Do it; return the exit status."""
        task = self.task(size=self.size)
        assert self.out is not None
        given = _named_ranges(self.over)
        with terminal.progress(console) as progress:
            found = tune(
                task, self.variant, given or None, objective=self.objective, steps=self.steps, target_psnr=self.target,
                features=self.features, depth=self.depth, optimizer=self.optimizer, learning_rate=self.learning_rate,
                points=self.points, refine=self.refine, sample=self.sample, repeats=self.repeats, pilot=self.pilot,
                infinite=self.infinite, seed=self.seed, out=self.out, overwrite=self.overwrite, resume=self.resume,
                progress=progress,
            )  # fmt: skip
        terminal.print_tuning(console, found)
        save_figure(found.plot(), self.out / "tune", "png")
        settings = [f"size={self.size}"] * (self.size is not None) + list(self.set)
        words = [*self.source, *(["--set", *settings] if settings else [])]
        command = found.command(*words, *(["--seed", str(self.seed)] if self.seed else []))
        console.print(f"\nTrain it: [bold]{escape(command)}[/]", soft_wrap=True)
        console.print(f"In Python:\n{escape(found.snippet(self._expression(settings)))}", soft_wrap=True)
        console.print(f"\nPicture: [bold]{escape(str(self.out / 'tune.png'))}[/]", soft_wrap=True)
        return 0

    def _expression(self, settings: Sequence[str]) -> str:
        """Return the Python that loads the task."""
        kind = self.source[0] if len(self.source) == 2 else kind_of(self.source[-1])
        named = _named(settings, "--set", "size=128")
        if self.seed and "seed" in TASKS[kind].settings:
            named.setdefault("seed", self.seed)
        given = "".join(f", {name}={value!r}" for name, value in named.items())
        return f'ni.load_task("{kind}", {self.source[-1]!r}{given})'

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        if self.out is None or not (self.out / RESULTS).exists():
            return "No candidate was finished, so nothing was kept."
        done = len(load_tuning(self.out).candidates)
        return (
            f"{done} candidates are finished and kept in {self.out}; the same command with --resume goes on from there."
        )


def _named_ranges(texts: Sequence[str]) -> Mapping[str, Any]:
    """Return what texts such as "scale=0.25:32" say."""
    found = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--over {text!r} is no range; write name=low:high or name=a,b,c, such as scale=0.25:32.")
        found[name] = parse_values(values)
    return found


@dataclasses.dataclass
class Tasks:
    """List the tasks, what they take and their settings.

    Example: ntk-inr tasks
    """

    def run(self, console: Console) -> int:
        """Print them; return the exit status."""
        for name, kind in TASKS.items():
            console.print(f"[bold]{name}[/]: {escape(kind.summary)}")
            settings = ", ".join(f"{key}={value!r}" for key, value in kind.settings.items())
            console.print(f"    [dim]{escape(settings)}[/]", soft_wrap=True)
        return 0

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        return ""


@dataclasses.dataclass
class Variants:
    """List the networks that can be compared.

    Example: ntk-inr variants
    """

    def run(self, console: Console) -> int:
        """Print a line each; return the exit status."""
        table = Table(box=None, show_header=False)
        for name, summary in variants().items():
            table.add_row(f"[bold]{escape(name)}[/]", escape(summary))
        console.print(table)
        return 0

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        return ""


@dataclasses.dataclass
class Report:
    """Rebuild the page, the table and the figures from results.json.

    Example: ntk-inr report runs/photo --target 25
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `ntk-inr compare --out` wrote."""
    target: float | None = None
    """PSNR in dB to count steps to; by default the highest that every network reached."""

    def run(self, console: Console) -> int:
        """Do it; return the exit status."""
        study = load(self.folder)
        with terminal.progress(console) as progress:
            page = write_report(study, self.folder, target_psnr=self.target, progress=progress)
        terminal.print_study(console, study, summarize(study, self.target))
        console.print(f"\nReport: [bold]{escape(str(page))}[/]", soft_wrap=True)
        return 0

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        return "The results are untouched."


_Command = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Fit, tyro.conf.subcommand("fit")]
    | Annotated[Tune, tyro.conf.subcommand("tune")]
    | Annotated[Variants, tyro.conf.subcommand("variants")]
    | Annotated[Tasks, tyro.conf.subcommand("tasks")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 2 for a user's mistake (one line on stderr), or 130 after Ctrl-C."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        command = tyro.cli(
            _Command,
            prog="ntk-inr",
            description="Which coordinate network will learn this signal, how fast, and why.",
            args=arguments,
        )
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        return command.run(terminal.make_console())
    except _USER_MISTAKES as error:
        errors.print(f"[bold red]ntk-inr: error:[/] {escape(str(error))}")
        return 2
    except KeyboardInterrupt:
        errors.print(f"[bold]ntk-inr: stopped.[/] {escape(command.interrupted())}")
        return 130
