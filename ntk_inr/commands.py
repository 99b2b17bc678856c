"""What each command of ``ntk-inr`` does."""

from __future__ import annotations

import ast
import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ntk_inr import terminal
from ntk_inr._claims import claimed
from ntk_inr._text import printable
from ntk_inr.arguments import Compare, Export, Fit, OnATask, Render, Report, Tasks, Trained, Tune, Variants, values_of
from ntk_inr.messages import check_device, in_options, print_error, shown
from ntk_inr.networks.catalogue import networks_of, variants
from ntk_inr.study.comparison import compare
from ntk_inr.study.figures import save_figure
from ntk_inr.study.fitted import Fitted
from ntk_inr.study.kept import load_fit
from ntk_inr.study.plan import TrainingOptions, options_from, plans_of
from ntk_inr.study.record import RESULTS, load_study
from ntk_inr.study.report import write_report
from ntk_inr.study.search import tune
from ntk_inr.study.single import fit_task, kernel_plan, solver_plan, summary_of
from ntk_inr.study.space import parse_values
from ntk_inr.study.summary import check_target, summarize
from ntk_inr.study.tuning import load_tuning
from ntk_inr.tasks.interface import Task
from ntk_inr.tasks.registry import TASKS, kind_of, load_task

_MISTAKES = (ValueError, TypeError, OSError, ImportError, MemoryError, jax.errors.JaxRuntimeError)
"""Errors whose message is for the user: mistakes, and what the machine lacks."""
_RENAMED = {
    "target_psnr": "--target", "objective": "--for", "space": "--over", "variants": "--variant",
    "record_kernel": "--record",
}  # fmt: skip


def run(command: Any) -> int:
    """Carry out a command and return its exit status, having said in a line what went wrong."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print_error(str(message), "note:")
            return carry_out(command, terminal.make_console())
    except _MISTAKES as error:
        said = " ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])
        print_error(in_options(said, options_of(command)))
        return 2
    except KeyboardInterrupt:
        print_error(what_is_kept(command), "stopped.")
        return 130


@functools.singledispatch
def carry_out(command: Any, console: Console) -> int:
    """Do what a command asks for; return the exit status."""
    raise NotImplementedError(type(command))


@carry_out.register(Compare)
def _(command: Compare, console: Console) -> int:
    data, network, training = command.data, command.network, command.training
    check_target(training.target)
    task, out = task_of(command, holdout=data.holdout, grey=data.grey or None), folder_of(command)
    with terminal.progress(console) as progress:
        study = compare(
            task, network.variant, features=network.features, depth=network.depth, steps=training.steps,
            seeds=training.seeds, seed=training.seed, kernel_points=training.kernel_points, out=out,
            overwrite=command.output.overwrite, resume=command.output.resume, progress=progress,
            **keywords_of(training),
        )  # fmt: skip
        with claimed(out):
            page = write_report(study, out, target_psnr=training.target, progress=progress)
    terminal.print_study(console, study, summarize(study, training.target))
    console.print(f"\nReport: [bold]{shown(page)}[/]", soft_wrap=True)
    if all(result.diverged for result in study.variants):
        rates = ", ".join(dict.fromkeys(result.rate for result in study.variants))
        raise ValueError(f"every network diverged at learning rate {rates}; pass a smaller --learning-rate.")
    return 0


@carry_out.register(Fit)
def _(command: Fit, console: Console) -> int:
    task, out, names = task_of(command), folder_of(command), command.network.variant
    networks_of(names, out=task.channels)  # mistakes show before the first is trained
    for name in names:
        if len(names) > 1:
            console.print(f"[bold]{escape(name)}[/]")
        _fit_one(command, console, task, name, out / _file_name(name) if len(names) > 1 else out)
    return 0


def _fit_one(command: Fit, console: Console, task: Task, name: str, out: Path) -> None:
    """Train one network, and print what came of it."""
    network, training, output, going_on = command.network, command.training, command.output, command.going_on
    how, size = keywords_of(training), {"features": network.features, "depth": network.depth}
    ((net, plan),) = plans_of(task, name, options_from(how), **size, steps=training.steps).values()
    console.print(f"{escape(summary_of(task, net, plan.rows))}.", soft_wrap=True)
    if going_on.record:
        console.print(f"A kernel that is recorded:\n{escape(str(kernel_plan(task, net)))}", soft_wrap=True)
    solves = solver_plan(task, net, plan)
    if solves is not None:
        told = solves.rows()
        console.print(
            f"Each step solves for {told['solves for']}: {told['unknowns']}, {told['memory']}.", soft_wrap=True
        )
    with terminal.training(console) as progress:
        fitted = fit_task(
            task, name, **size, steps=training.steps,
            further=going_on.further, start=going_on.start, record_kernel=going_on.record, seed=training.seed,
            out=out, overwrite=output.overwrite, resume=output.resume, progress=progress, **how,
        )  # fmt: skip
    if fitted.run.status == "interrupted":
        raise KeyboardInterrupt
    for label, text in fitted.score_lines(task):
        console.print(f"{label}: [bold]{text}[/]")
    for label, path in fitted.files.items():
        console.print(f"{label}: {shown(path)}", soft_wrap=True)
    if fitted.run.status == "ended above the start":
        first, last = fitted.run.history["loss"][[0, -1]]
        console.print(
            f"{name} did not learn: its loss ended above the start, {last:.3g} after {first:.3g}. "
            "Pass a smaller --learning-rate, or more --steps.",
            soft_wrap=True,
        )
    if fitted.run.status == "stalled":
        console.print(f"{name} stopped after {fitted.run.steps} steps: no further one lowers the loss.")
    if fitted.run.status == "diverged":
        raise ValueError(
            f"{name} diverged after {fitted.run.steps} steps; the reconstruction is of the last good one. "
            "Pass a smaller --learning-rate."
        )


@carry_out.register(Tune)
def _(command: Tune, console: Console) -> int:
    network, search, training, output = command.network, command.search, command.training, command.output
    task, out = task_of(command), folder_of(command)
    with terminal.progress(console) as progress:
        tuning = tune(
            task, network.variant, ranges_of(search.over) or None, objective=search.objective, steps=training.steps,
            target_psnr=search.target, features=network.features, depth=network.depth, points=search.points,
            refine=search.refine, sample=search.sample, repeats=search.repeats, pilot=search.pilot,
            infinite=search.infinite, seed=training.seed, out=out, overwrite=output.overwrite, resume=output.resume,
            progress=progress, **keywords_of(training),
        )  # fmt: skip
    with claimed(out):
        save_figure(tuning.plot(), out / "tune", "png")
    terminal.print_tuning(console, tuning)
    settings = task_settings(command)
    if settings.get("seed") == 0:
        del settings["seed"]
    words = [*command.data.source, *(["--size", str(settings["size"])] if "size" in settings else [])]
    others = [f"{name}={value}" for name, value in settings.items() if name not in ("size", "seed")]
    words += ["--set", *others] if others else []
    words += ["--seed", str(training.seed)] if training.seed else []
    console.print(f"\nTrain it: [bold]{escape(tuning.command(*words))}[/]", soft_wrap=True)
    keywords = "".join(f", {name}={value!r}" for name, value in settings.items())
    expression = f'ni.load_task("{kind_of_task(command)}", {command.data.source[-1]!r}{keywords})'
    console.print(f"In Python:\n{escape(tuning.snippet(expression))}", soft_wrap=True)
    console.print(f"\nPicture: [bold]{shown(out / 'tune.png')}[/]", soft_wrap=True)
    return 0


@carry_out.register(Tasks)
def _(command: Tasks, console: Console) -> int:
    for name, kind in TASKS.items():
        console.print(f"[bold]{name}[/]: {escape(kind.summary)}")
        settings = ", ".join(f"{key}={value!r}" for key, value in kind.settings.items())
        console.print(f"    [dim]{escape(settings)}[/]", soft_wrap=True)
    return 0


@carry_out.register(Variants)
def _(command: Variants, console: Console) -> int:
    table = Table(box=None, show_header=False)
    for name, summary in variants().items():
        table.add_row(f"[bold]{escape(name)}[/]", escape(summary))
    console.print(table)
    return 0


@carry_out.register(Report)
def _(command: Report, console: Console) -> int:
    study = load_study(command.folder)
    with terminal.progress(console) as progress, claimed(command.folder):
        page = write_report(study, command.folder, target_psnr=command.target, progress=progress)
    terminal.print_study(console, study, summarize(study, command.target))
    console.print(f"\nReport: [bold]{shown(page)}[/]", soft_wrap=True)
    return 0


@carry_out.register(Render)
def _(command: Render, console: Console) -> int:
    check_device()
    found, path = _load(command), command.out
    if path is None:
        size = "" if command.size is None else f"-{command.size}"
        cut = "" if command.slice is None else f"-slice{command.slice}"
        path = command.folder / f"render{size}{cut}{found.suffix if command.slice is None else '.png'}"
    with terminal.progress(console) as progress:
        path = found.render(
            path, size=command.size, slice=command.slice, overwrite=command.overwrite,
            progress=lambda done, total: progress("rows", done, total),
        )  # fmt: skip
    console.print(f"rendered: {shown(path)}", soft_wrap=True)
    return 0


@carry_out.register(Export)
def _(command: Export, console: Console) -> int:
    check_device()
    path = _load(command).export(command.file, platforms=command.platforms, overwrite=command.overwrite)
    console.print(f"exported: {shown(path)}", soft_wrap=True)
    console.print(
        f"Call it: [bold]jax.export.deserialize(bytearray(open({escape(repr(str(path)))}, 'rb').read())).call(x)[/]",
        soft_wrap=True,
    )
    return 0


def _load(command: Render | Export) -> Fitted:
    return load_fit(command.folder, variant=command.variant, seed=command.seed)


def what_is_kept(command: Any) -> str:
    """Return what to tell a user who pressed Ctrl-C."""
    if isinstance(command, Report):
        return "The results are untouched."
    if not isinstance(command, OnATask) or not command.data.source:
        return ""
    out = folder_of(command)
    going_on = "the same command with --resume goes on from there."
    if isinstance(command, Fit):
        if not any(out.rglob("checkpoints")):
            return "Nothing was trained yet, so nothing was kept."
        return f"The last step is kept in {out}; {going_on}"
    if not (out / RESULTS).exists():
        return f"No {'network' if isinstance(command, Compare) else 'candidate'} was finished, so nothing was kept."
    if isinstance(command, Tune):
        return f"{len(load_tuning(out).candidates)} candidates are finished and kept in {out}; {going_on}"
    done = len(load_study(out).variants)
    return f"{done} of {len(command.network.variant)} networks are finished and kept in {out}; {going_on}"


def options_of(command: Any) -> dict[str, str]:
    """Return what a user of a command writes for each keyword of the library."""
    kind = TASKS.get(kind_of_task(command)) if isinstance(command, OnATask) and command.data.source else None
    settings = {name: f"--set {name}=" for name in (kind.settings if kind else ())}
    return settings | {name: f"--{name.replace('_', '-')}" for name in values_of(command)} | _RENAMED


def kind_of_task(command: OnATask) -> str:
    """Return the kind of task: as the user says, or told by the source."""
    source = command.data.source
    return source[0] if len(source) == 2 else kind_of(source[-1])


def task_settings(command: OnATask, **options: Any) -> dict[str, Any]:
    """Return the settings that a command's task is built with; options that are None are left out.

    Its size and its seed are always among them, where it has them, so that what is printed builds the same again.
    """
    kind = TASKS.get(kind_of_task(command))
    known = kind.settings if kind else {}
    defaults = {name: known[name] for name in ("size",) if known.get(name) is not None}
    if kind and not isinstance(command, Fit):
        defaults |= kind.sample
    if "seed" in known:
        defaults["seed"] = values_of(command)["seed"]
    written = {name: value for name, value in {"size": command.data.size, **options}.items() if value is not None}
    return defaults | written | named(command.data.set, "--set", "size=128")


def task_of(command: OnATask, **options: Any) -> Task:
    """Return the task of a command; ``options`` are settings that are options of their own."""
    check_device()
    source = command.data.source
    if not 1 <= len(source) <= 2:
        raise ValueError(f"expected [TASK] FILE, got {' '.join(source) or 'nothing'}.")
    return load_task(kind_of_task(command), source[-1], **task_settings(command, **options))


def folder_of(command: OnATask) -> Path:
    """Return the folder for the results."""
    source, kind = command.data.source[-1], kind_of_task(command)
    name = _file_name(Path(source).stem)
    return command.output.out or Path("runs") / (
        command.prefix + (name if kind == kind_of(source) else f"{kind}-{name}")
    )


def _file_name(text: str) -> str:
    """Return text as the name of a folder on any system."""
    return "".join("_" if letter in '\ufffd:*?"<>|/\\' else letter for letter in printable(text))


def keywords_of(training: Trained) -> dict[str, Any]:
    """Return the options of a training as the keywords of ``fit_task``, ``compare`` and ``tune``."""
    keywords = {field.name: getattr(training, field.name) for field in dataclasses.fields(TrainingOptions)}
    return keywords | {"optimizer_set": named(training.optimizer_set, "--optimizer-set", "b1=0.95")}


def named(texts: Sequence[str], option: str, example: str) -> dict[str, Any]:
    """Return what texts such as "name=value" say; what is no Python value is a text."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{option} {text!r} is no setting; write name=value, such as {example}.")
        try:
            values[name.replace("-", "_")] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name.replace("-", "_")] = value
    return values


def ranges_of(texts: Sequence[str]) -> dict[str, Any]:
    """Return what texts such as "scale=0.25:32" say."""
    ranges = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--over {text!r} is no range; write name=low:high or name=a,b,c, such as scale=0.25:32.")
        ranges[name] = parse_values(values)
    return ranges
