"""The commands of ``ntk-inr``: compare, fit, variants, tasks, report."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import rich.box
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ntk_inr.networks.variants import variants
from ntk_inr.study import compare as study_compare
from ntk_inr.study.record import RESULTS, Study, load
from ntk_inr.study.report import write_report
from ntk_inr.study.single import fit_task
from ntk_inr.study.summary import Summary, check_target, summarize
from ntk_inr.tasks.interface import Task
from ntk_inr.tasks.registry import TASKS, kind_of, load_task

_WIDE = 110
_USER_MISTAKES = (ValueError, TypeError, FileNotFoundError, FileExistsError, PermissionError, ImportError)


@dataclasses.dataclass
class _OnATask:
    """What the commands share that take a task."""

    source: tyro.conf.Positional[tuple[str, ...]]
    """[TASK] FILE: a file, or something bundled. The task is told by that or by the file's suffix, else it is an image.
    `ntk-inr tasks` lists both."""
    set: tuple[str, ...] = ()
    """Settings of the task, such as size=128 holdout=0.5 or angles=90; `ntk-inr tasks` lists them."""
    features: int = 128
    """Width of the hidden layers."""
    depth: int = 3
    """Number of hidden layers."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
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
        for text in self.set:
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"--set {text!r} is no setting; write name=value, such as size=128.")
            try:
                given[name.replace("-", "_")] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                given[name.replace("-", "_")] = value
        if kind in TASKS and "seed" in TASKS[kind].settings:
            given.setdefault("seed", self.seed)
        task, name = load_task(kind, source, **given), Path(source).stem
        self.out = self.out or Path("runs") / (name if kind == kind_of(source) else f"{kind}-{name}")
        return task


@dataclasses.dataclass
class Compare(_OnATask):
    """Compare networks on a task: conditioning, predicted and measured training, reconstruction.

    Example: ntk-inr compare photo.png --variants relu pe siren --size 64 --out runs/photo

    Example: ntk-inr compare shape torus --variants relu siren --set points=4000
    """

    variants: tuple[str, ...] = ("relu", "pe", "pe+sphere", "pe+hadamard", "pe+sphere+hadamard", "siren")
    """Networks to compare; `ntk-inr variants` lists them."""
    size: int | None = None
    """Longer side of an image in pixels, after reduction; by default the task's own, 64 for images."""
    steps: int = 500
    """Training steps, of Adam and of gradient descent each."""
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
        with _progress(console) as progress:
            study = study_compare.compare(
                task, self.variants, features=self.features, depth=self.depth, steps=self.steps, seeds=self.seeds,
                learning_rate=self.learning_rate, seed=self.seed, kernel_points=self.kernel_points, out=self.out,
                overwrite=self.overwrite, resume=self.resume, progress=progress,
            )  # fmt: skip
            page = write_report(study, self.out, target_psnr=self.target, progress=progress)
        _print_study(console, study, summarize(study, self.target))
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

    Example: ntk-inr fit shape bunny.obj --set kind=occupancy
    """

    variant: str = "siren"
    """Network; `ntk-inr variants` lists them."""
    steps: int = 1000
    """Training steps."""
    optimizer: str = "adam"
    """Any of optax's, by name."""
    schedule: Literal["constant", "cosine", "exponential", "linear"] = "constant"
    """How the learning rate falls over the steps."""

    def run(self, console: Console) -> int:
        """Do it; return the exit status."""
        task = self.task()
        assert self.out is not None
        with _progress(console) as progress:
            found = fit_task(
                task, self.variant, features=self.features, depth=self.depth, steps=self.steps,
                optimizer=self.optimizer, learning_rate=self.learning_rate, schedule=self.schedule, seed=self.seed,
                out=self.out, overwrite=self.overwrite, resume=self.resume,
                progress=lambda done, total: progress("steps", done, total),
            )  # fmt: skip
        if found.run.status == "interrupted":
            raise KeyboardInterrupt
        for name, value in found.scores.items():
            console.print(f"{name.replace('_', ' ')}: [bold]{value:.4g}[/]")
        for name, path in found.files.items():
            console.print(f"{name}: {escape(str(path))}", soft_wrap=True)
        if found.run.status == "diverged":
            raise ValueError(
                f"{self.variant} diverged after {found.run.steps} steps at learning rate {self.learning_rate:g}; the "
                "reconstruction is of the last good one. Pass a smaller --learning-rate."
            )
        return 0

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        if self.out is None or not (self.out / "checkpoints").exists():
            return "Nothing was trained yet, so nothing was kept."
        return f"The last step is kept in {self.out}; the same command with --resume goes on from there."


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
        with _progress(console) as progress:
            page = write_report(study, self.folder, target_psnr=self.target, progress=progress)
        _print_study(console, study, summarize(study, self.target))
        console.print(f"\nReport: [bold]{escape(str(page))}[/]", soft_wrap=True)
        return 0

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        return "The results are untouched."


_Command = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Fit, tyro.conf.subcommand("fit")]
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
        return command.run(_console())
    except _USER_MISTAKES as error:
        errors.print(f"[bold red]ntk-inr: error:[/] {escape(str(error))}")
        return 2
    except KeyboardInterrupt:
        errors.print(f"[bold]ntk-inr: stopped.[/] {escape(command.interrupted())}")
        return 130


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE + 30)


class _Bars:
    """Turns calls (what, done, total) into progress bars."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._bars:
            self._bars[what] = self._progress.add_task(escape(what), total=total)
        bar = self._bars[what]
        self._progress.update(bar, completed=done, visible=what == "variants" or done < total)


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[_Bars]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress)


def _print_study(console: Console, study: Study, summary: Summary) -> None:
    # A narrow terminal gets the spread on a line of its own rather than broken words.
    joint = " ± " if console.width >= _WIDE else "\n± "
    for group, title in summary.groups.items():
        table = Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        table.add_column("variant", no_wrap=True)
        columns = [column for column in summary.columns if column.group == group]
        for column in columns:
            table.add_column(column.title, justify="right", min_width=8)
        for name, row in summary.rows.items():
            cells = [(row[column.key].text.replace(" ± ", joint), row[column.key].best) for column in columns]
            table.add_row(escape(name), *[f"[bold green]{text} ★[/]" if best else text for text, best in cells])
        console.print(table)
    seeds = study.settings["seeds"]
    console.print(f"Mean ± standard deviation over seeds ({seeds}); ★ best of its column; PSNR in dB.\n")
    for sentence in summary.conclusion:
        console.print(f"• {escape(sentence)}")
