"""The commands of ``ntk-inr``: compare, fit, tune, variants, tasks, report."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ntk_inr import terminal
from ntk_inr._claims import claimed
from ntk_inr.arguments import Command, OnATask, named, named_ranges
from ntk_inr.messages import in_options, output, print_error, shown
from ntk_inr.networks.catalogue import variant, variants
from ntk_inr.networks.settings import with_settings
from ntk_inr.study.comparison import compare
from ntk_inr.study.figures import save_figure
from ntk_inr.study.record import RESULTS, load_study
from ntk_inr.study.report import write_report
from ntk_inr.study.search import tune
from ntk_inr.study.single import fit_task
from ntk_inr.study.summary import check_target, summarize
from ntk_inr.study.tuning import Objective, load_tuning
from ntk_inr.tasks.registry import TASKS

_SAID = (ValueError, TypeError, OSError, ImportError, MemoryError, jax.errors.JaxRuntimeError)
"""Errors whose message is for the user: mistakes, and what the machine lacks."""


@dataclasses.dataclass
class Compare(OnATask):
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
            study = compare(
                task, self.variants, features=self.features, depth=self.depth, steps=self.steps, seeds=self.seeds,
                learning_rate=self.learning_rate, seed=self.seed, kernel_points=self.kernel_points, out=self.out,
                overwrite=self.overwrite, resume=self.resume, progress=progress,
            )  # fmt: skip
            with claimed(self.out):
                page = write_report(study, self.out, target_psnr=self.target, progress=progress)
        terminal.print_study(console, study, summarize(study, self.target))
        console.print(f"\nReport: [bold]{shown(page)}[/]", soft_wrap=True)
        if all(result.diverged for result in study.variants):
            raise ValueError(
                f"every network diverged at learning rate {self.learning_rate:g}; pass a smaller --learning-rate."
            )
        return 0

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        if self.out is None or not (self.out / RESULTS).exists():
            return "No network was finished, so nothing was kept."
        done = len(load_study(self.out).variants)
        return (
            f"{done} of {len(self.variants)} networks are finished and kept in {self.out}; "
            "the same command with --resume goes on from there."
        )


@dataclasses.dataclass
class Fit(OnATask):
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
        net = with_settings(net, named(self.network, "--network", "omega=20"))
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
            console.print(f"{name}: {shown(path)}", soft_wrap=True)
        if found.run.status == "ended above the start":
            first, last = found.run.history["loss"][[0, -1]]
            console.print(
                f"{self.variant} did not learn: its loss ended above the start, {last:.3g} after {first:.3g}. "
                "Pass a smaller --learning-rate, or more --steps.",
                soft_wrap=True,
            )
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
class Tune(OnATask):
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
        given = named_ranges(self.over)
        with terminal.progress(console) as progress:
            found = tune(
                task, self.variant, given or None, objective=self.objective, steps=self.steps, target_psnr=self.target,
                features=self.features, depth=self.depth, optimizer=self.optimizer, learning_rate=self.learning_rate,
                points=self.points, refine=self.refine, sample=self.sample, repeats=self.repeats, pilot=self.pilot,
                infinite=self.infinite, seed=self.seed, out=self.out, overwrite=self.overwrite, resume=self.resume,
                progress=progress,
            )  # fmt: skip
        with claimed(self.out):
            save_figure(found.plot(), self.out / "tune", "png")
        terminal.print_tuning(console, found)
        settings = [f"size={self.size}"] * (self.size is not None) + list(self.set)
        words = [*self.source, *(["--set", *settings] if settings else [])]
        command = found.command(*words, *(["--seed", str(self.seed)] if self.seed else []))
        console.print(f"\nTrain it: [bold]{escape(command)}[/]", soft_wrap=True)
        console.print(f"In Python:\n{escape(found.snippet(self._expression(settings)))}", soft_wrap=True)
        console.print(f"\nPicture: [bold]{shown(self.out / 'tune.png')}[/]", soft_wrap=True)
        return 0

    def _expression(self, settings: Sequence[str]) -> str:
        """Return the Python that loads the task."""
        given = named(settings, "--set", "size=128")
        if self.seed and "seed" in TASKS[self.kind].settings:
            given.setdefault("seed", self.seed)
        written = "".join(f", {name}={value!r}" for name, value in given.items())
        return f'ni.load_task("{self.kind}", {self.source[-1]!r}{written})'

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        if self.out is None or not (self.out / RESULTS).exists():
            return "No candidate was finished, so nothing was kept."
        done = len(load_tuning(self.out).candidates)
        return (
            f"{done} candidates are finished and kept in {self.out}; the same command with --resume goes on from there."
        )


@dataclasses.dataclass
class Tasks(Command):
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


@dataclasses.dataclass
class Variants(Command):
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


@dataclasses.dataclass
class Report(Command):
    """Rebuild the page, the table and the figures from results.json.

    Example: ntk-inr report runs/photo --target 25
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `ntk-inr compare --out` wrote."""
    target: float | None = None
    """PSNR in dB to count steps to; by default the highest that every network reached."""

    def run(self, console: Console) -> int:
        """Do it; return the exit status."""
        study = load_study(self.folder)
        with terminal.progress(console) as progress, claimed(self.folder):
            page = write_report(study, self.folder, target_psnr=self.target, progress=progress)
        terminal.print_study(console, study, summarize(study, self.target))
        console.print(f"\nReport: [bold]{shown(page)}[/]", soft_wrap=True)
        return 0

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        return "The results are untouched."


_Commands = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Fit, tyro.conf.subcommand("fit")]
    | Annotated[Tune, tyro.conf.subcommand("tune")]
    | Annotated[Variants, tyro.conf.subcommand("variants")]
    | Annotated[Tasks, tyro.conf.subcommand("tasks")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    It is 0, 1 where what the command printed could not be written, 2 for what a user or the machine must mend (one line
    on stderr), or 130 after Ctrl-C. A reader of the output that stops reading changes nothing.
    """
    with output() as printed:
        status = _run(arguments)
        printed.flush()
        if printed.failure is None or isinstance(printed.failure, BrokenPipeError):
            return status
        print_error(f"could not print all ({printed.failure.strerror}); results in folders are whole.")
        return status or 1


def _run(arguments: Sequence[str] | None) -> int:
    try:
        command = tyro.cli(
            _Commands,
            prog="ntk-inr",
            description="Which coordinate network will learn this signal, how fast, and why.",
            args=arguments,
        )
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print_error(str(message), "note:")
            return command.run(terminal.make_console())
    except _SAID as error:
        print_error(in_options(str(error) or type(error).__name__, command.options()))
        return 2
    except KeyboardInterrupt:
        print_error(command.interrupted(), "stopped.")
        return 130
