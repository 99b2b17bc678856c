"""What the command prints while it works and at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import rich.box
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

from ntk_inr.study.record import Study
from ntk_inr.study.summary import Summary
from ntk_inr.study.tuning import Tuning

_WIDE = 110
_RANKED = 12
# Between lines on how a training goes, where they are no bar.
_LINE_SECONDS = 10.0


def make_console() -> Console:
    """Return where to print: wide enough for tables where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE + 30)


class Bars:
    """Turns calls (what, done, total) into progress bars."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done of ``what``."""
        if what not in self._bars:
            self._bars[what] = self._progress.add_task(escape(what), total=total)
        bar = self._bars[what]
        self._progress.update(bar, completed=done, visible=what in ("variants", "candidates") or done < total)


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Bars]:
    """Show progress bars inside; what is yielded takes calls (what, done, total)."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bars:
        yield Bars(bars)


class Lines:
    """Say now and then how a training goes, where no bar can: calls (done, steps, figures) become lines of text."""

    def __init__(self, console: Console) -> None:
        self._console, self._said = console, time.monotonic()
        self._begin: tuple[int, float] | None = None

    def __call__(self, done: int, steps: int, figures: Mapping[str, float] | None = None) -> None:
        """Print a line where the last is long ago, or this is the end."""
        now = time.monotonic()
        first, began = self._begin = self._begin or (done, now)
        trained = done == steps and "reconstructed" not in (figures or {})
        if not trained and now - self._said < _LINE_SECONDS:
            return
        self._said = now
        left = (now - began) / max(done - first, 1) * (steps - done)
        words = [f"step {done:,} of {steps:,}", *_figures(figures)]
        self._console.print(", ".join([*words, f"{left:,.0f} s left"] if done < steps else words), soft_wrap=True)


@contextlib.contextmanager
def training(console: Console) -> Iterator[Callable[..., None]]:
    """Show how a training goes; what is yielded takes calls (steps done, steps, figures)."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("steps", total=None, figures="")

        def show(done: int, steps: int, figures: Mapping[str, float] | None = None) -> None:
            bars.update(bar, completed=done, total=steps, figures=", ".join(_figures(figures)))

        yield show


def _figures(figures: Mapping[str, float] | None) -> list[str]:
    """Return the loss and the PSNR in words."""
    known = figures or {}
    words = [f"loss {known['loss']:.3g}"] if "loss" in known else []
    words += [f"reconstructed {known['reconstructed']:.0%}"] if "reconstructed" in known else []
    return words + ([f"{known['psnr']:.2f} dB"] if "psnr" in known else [])


def print_study(console: Console, study: Study, summary: Summary) -> None:
    """Print the tables of a study and what follows from them."""
    # A narrow terminal gets the spread on a line of its own rather than broken words.
    joint = " ± " if console.width >= _WIDE else "\n± "
    for group, title in summary.groups.items():
        table = Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        table.add_column("variant", no_wrap=True)
        columns = [column for column in summary.columns if column.group == group]
        for column in columns:
            table.add_column(column.title, justify="right", min_width=8)
        for name, cells in summary.lines(group).items():
            texts = [(cell.text.replace(" ± ", joint), cell.best) for cell in cells]
            table.add_row(escape(name), *[f"[bold green]{text} ★[/]" if best else text for text, best in texts])
        console.print(table)
    console.print(f"Mean ± standard deviation over seeds ({study.settings['seeds']}); PSNR in dB.")
    console.print("\n".join(f"{note}." for note in summary.notes) + "\n")
    for sentence in summary.conclusion:
        console.print(f"• {escape(sentence)}")


def print_tuning(console: Console, tuning: Tuning) -> None:
    """Print the candidates, best first, and what follows from them."""
    table = Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("candidate", no_wrap=True)
    best = tuning.best
    columns = ["predicted", "cv"] + ["kernel moved"] * bool(best.drift)
    for column in columns:
        table.add_column(column, justify="right")
    for candidate in tuning.ranked[:_RANKED]:
        cells = [tuning.describe(candidate)]
        cells += [f"{sum(values) / len(values):.3g}" for values in (candidate.cv, candidate.drift) if values]
        chosen = candidate is best
        table.add_row(
            escape(candidate.label), *[f"[bold green]{cell}[/]" if chosen else escape(cell) for cell in cells]
        )
    console.print(table)
    left = len(tuning.candidates) - _RANKED
    if left > 0:
        console.print(f"and {left} more in results.json.\n")
    for sentence in tuning.recommendation:
        console.print(f"• {escape(sentence)}")
