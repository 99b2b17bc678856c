"""One network on one task: trained, scored, and everything that came out written to a folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ntk_inr._results import Record, result, static
from ntk_inr.kernels.adapters import init
from ntk_inr.study import record
from ntk_inr.study.derivatives import check_derivatives
from ntk_inr.study.description import (
    baselines_of,
    describe,
    describe_task,
    eight_bits,
    numbers_of,
    own_scores,
    readable,
)
from ntk_inr.study.environment import environment
from ntk_inr.study.figures import save_figure
from ntk_inr.study.measurement import trained
from ntk_inr.study.plan import options_from, plans_of
from ntk_inr.tasks.interface import Task
from ntk_inr.tasks.metrics import score_lines
from ntk_inr.tasks.registry import TASKS
from ntk_inr.training.fitting import fit
from ntk_inr.training.recorder import Recorder
from ntk_inr.training.result import FitResult

_SCHEMA = "ntk_inr.fit v1"


@result
class Fitted:
    """What became of a task.

    Attributes:
        run: the training.
        scores: of the reconstruction, by the task's own metrics.
        reconstruction: what the task makes of the network.
        files: what was written, by what it is; empty without a folder.
        baselines: what simpler methods reach, a dict each with "name", "kind" ("baseline") and "scores".
    """

    run: FitResult
    scores: dict[str, Any]
    reconstruction: Any
    files: Record = static(default=Record())
    baselines: tuple[Record, ...] = static(default=())

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: how the training ended, the scores, and what was written."""
        files = {name: str(path) for name, path in self.files.items()}
        return {"status": self.run.status, "steps": self.run.steps, **self.scores, **files}

    def score_lines(self, task: Task) -> list[tuple[str, str]]:
        """Return scores as a label and a number each, by the task's metric first; those of baselines are last."""
        shown = functools.partial(score_lines, metric=task.metric, eight_bit=eight_bits(task)["eight_bit"])
        others = [
            (f"baseline, {other['name']}: {label}", text)
            for other in self.baselines
            for label, text in shown(other["scores"])
        ]
        return shown(self.scores) + others


def fit_task(
    task: Task,
    variant: str | nn.Module,
    *,
    features: int = 256,
    depth: int = 4,
    steps: int = 1000,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    **training: Any,
) -> Fitted:
    """Train one network on a task and score what it reconstructs.

    With ``out`` it is safe to stop: ``checkpoints/`` holds the last states, ``history.jsonl`` the curve and the kernel
    as they come, and the same call with ``resume=True`` goes on. At the end come ``results.json``, ``figure.png``, and
    the reconstruction as a file that other programs open.

    Args:
        task: what to fit.
        variant: a name as :func:`ntk_inr.variant` takes it, or a Linen module (n, d) -> (n, c), to which features
            and depth do not apply.
        features: width of the hidden layers.
        depth: number of hidden layers.
        steps: training steps; of minibatches where the task recommends them.
        seed: of the initialisation and of the batches.
        out: folder to keep everything in; None keeps it in memory.
        overwrite: replace what ``out`` holds.
        resume: go on from what ``out`` holds.
        progress: called with (steps done, steps, figures), as by :func:`ntk_inr.fit`.
        **training: how it is trained, ``recipe="published"`` or ``learning_rate=1e-3, schedule="cosine"`` say, as
            :class:`ntk_inr.study.TrainingOptions` lists it; what is not given is as the network's recipe says
            (:func:`ntk_inr.networks.recipe`). What the task holds out is the validation set.

    Returns:
        :class:`Fitted`. Its run's status is "diverged" or "interrupted" where it is not whole, and "ended above the
        start" where it learned nothing; an interrupted one is not scored.

    Raises:
        ValueError: an unknown variant, optimizer or schedule, a task about derivatives that the network holds back,
            or ``resume`` of what is no fit.
        FileExistsError: ``out`` is not empty and neither ``overwrite`` nor ``resume`` was given, or someone else is
            writing to it.

    Example:
        >>> import ntk_inr as ni
        >>> fitted = ni.fit_task(ni.load_task("signal", "sines", samples=64), "siren", features=32, depth=2, steps=50)
        >>> fitted.run.status, sorted(fitted.scores)
        ('finished', ['psnr'])
    """
    task = readable(task)
    plans = plans_of(task, variant, options_from(training), features=features, depth=depth, steps=steps)
    ((name, (net, plan)),) = plans.items()
    warned, numbers = check_derivatives(task, {name: net}), numbers_of(net)
    start, shuffles = jax.random.split(jax.random.key(seed))
    with record.results_folder(out, overwrite=overwrite, resume=resume) as folder:
        options = {} if folder is None else _kept_in(folder, overwrite)
        x, y = jnp.asarray(task.x), jnp.asarray(task.y)
        apply, params = init(net, start, x)
        run = fit(
            task.observe(apply), params, x, y, **plan.keywords(steps), key=shuffles, loss=task.loss,
            validation=task.heldout, data_range=task.data_range, progress=progress, resume=not overwrite, **options,
        )  # fmt: skip
        if run.status == "interrupted":
            return Fitted(run, {}, None)
        reconstruction = task.reconstruct(functools.partial(trained(apply, run), run.params))
        fitted = Fitted(run, own_scores(task, reconstruction), reconstruction, baselines=baselines_of(task))
        if folder is None:
            return fitted
        settings = {
            "features": numbers["features"], "depth": numbers["depth"], "steps": steps,
            **plan.described(task), "seed": seed,
        }  # fmt: skip
        described = {"network": describe(net), "numbers": numbers, "settings": settings, "warnings": warned}
        return dataclasses.replace(fitted, files=Record(_write(folder, task, described, fitted)))


def _kept_in(folder: Path, overwrite: bool) -> dict[str, Any]:
    """Return the options of a training that keeps its states and its curve in a folder, unless that is no fit's."""
    if (folder / record.RESULTS).exists():
        record.read_results(folder, _SCHEMA, what="a fit", writer="ntk-inr fit")
    recorder = Recorder(jsonl=folder / "history.jsonl", overwrite=overwrite)
    return {"checkpoint": folder / "checkpoints", "overwrite": overwrite, "recorder": recorder}


def _write(folder: Path, task: Task, described: dict[str, Any], fitted: Fitted) -> dict[str, Path]:
    """Write the figure, the reconstruction and the results."""
    save_figure(task.figure(fitted.reconstruction), folder / "figure", "png")
    kind = TASKS.get(task.kind)
    saved = folder / f"reconstruction{'.png' if kind is None else kind.writes}"
    files = {
        "figure": folder / "figure.png",
        "reconstruction": task.save(fitted.reconstruction, saved, overwrite=True),
        "result": folder / record.RESULTS,
    }
    content = {
        "schema": _SCHEMA,
        "task": describe_task(task),
        **described,
        "environment": environment(),
        "status": fitted.run.status,
        "steps": fitted.run.steps,
        "seconds": float(fitted.run.history["seconds"][-1]),
        "scores": fitted.scores,
        "baselines": fitted.baselines,
        "files": {name: path.name for name, path in files.items() if name != "result"},
    }
    record.write_json(files["result"], content)
    return files
