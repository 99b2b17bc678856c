"""One network on one task: trained, scored, and everything that came out written to a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ntk_inr._results import Record
from ntk_inr.kernels.adapters import init
from ntk_inr.kernels.planning import Plan, explain
from ntk_inr.study import record
from ntk_inr.study.derivatives import check_derivatives
from ntk_inr.study.description import (
    baselines_of,
    describe,
    describe_task,
    numbers_of,
    own_scores,
    readable,
)
from ntk_inr.study.environment import environment
from ntk_inr.study.figures import save_figure
from ntk_inr.study.fitted import Context, Fitted, suffix_of
from ntk_inr.study.kept import FIT, keep, load_fit, network_in
from ntk_inr.study.legs import Leg, legs_of, optimizer_of
from ntk_inr.study.measurement import trained
from ntk_inr.study.plan import Plan as TrainingPlan
from ntk_inr.study.plan import options_from, plans_of
from ntk_inr.tasks.interface import IN_MEMORY, Task, bytes_of_rows, first_row
from ntk_inr.training.data import shuffled
from ntk_inr.training.fitting import fit
from ntk_inr.training.recorder import Recorder
from ntk_inr.training.second_order import settings_of
from ntk_inr.training.solvers import SolverPlan

_KERNEL_ROWS = 256
"""Rows that a kernel is taken on where one is recorded."""


def fit_task(
    task: Task,
    variant: str | nn.Module,
    *,
    features: int = 256,
    depth: int = 4,
    steps: int = 1000,
    further: str | None = None,
    start: str | os.PathLike[str] | Fitted | None = None,
    record_kernel: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    **training: Any,
) -> Fitted:
    """Train one network on a task and score what it reconstructs.

    With ``out`` it is safe to stop: ``checkpoints/`` holds the last states, ``history.jsonl`` the curve as it comes,
    and the same call with ``resume=True`` goes on, also with more ``steps``. The network is kept as soon as it is
    trained, for :func:`load_fit`; then come ``results.json``, ``figure.png``, and the reconstruction as a file that
    other programs open.

    Args:
        task: what to fit.
        variant: a name as :func:`ntk_inr.variant` takes it, or a Linen module (n, d) -> (n, c), to which features
            and depth do not apply.
        features: width of the hidden layers.
        depth: number of hidden layers.
        steps: training steps; of minibatches where the task recommends them.
        further: schedule of the steps beyond those that ``out`` holds, beginning at the learning rate. A run at
            a constant rate needs none.
        start: the folder of another run, or what :func:`load_fit` gives, whose network is trained on.
        record_kernel: take the kernel on 256 rows at steps 0, 1, 2, 4, ... and write it to ``history.jsonl``.
        seed: of the initialisation and of the batches.
        out: folder to keep everything in; None keeps it in memory.
        overwrite: replace what ``out`` holds.
        resume: go on from what ``out`` holds.
        progress: called with (steps done, steps, figures), as by :func:`ntk_inr.fit`, and while the signal is
            reconstructed with figures ``{"reconstructed": share}``.
        **training: how it is trained, ``recipe="published"`` or ``learning_rate=1e-3, schedule="cosine"`` say, as
            :class:`ntk_inr.study.TrainingOptions` lists it; what is not given is as the network's recipe says
            (:func:`ntk_inr.networks.recipe`). What the task holds out is the validation set.

    Returns:
        :class:`Fitted`. Its run's status is "diverged" or "interrupted" where it is not whole, and "ended above the
        start" where it learned nothing; an interrupted one is not scored.

    Raises:
        ValueError: an unknown variant, optimizer or schedule, a task about derivatives that the network holds back,
            ``resume`` of what is no fit, more steps of a run whose schedule has ended without ``further``, or a
            ``start`` of another network.
        FileExistsError: ``out`` is not empty and neither ``overwrite`` nor ``resume`` was given, or someone else is
            writing to it.
        OSError: what comes after the training can't be written; the network is kept.

    Example:
        >>> import ntk_inr as ni
        >>> fitted = ni.fit_task(ni.load_task("signal", "sines", samples=64), "siren", features=32, depth=2, steps=50)
        >>> fitted.run.status, sorted(fitted.scores), fitted([0.5]).shape
        ('finished', ['psnr'], (1,))
    """
    task = readable(task)
    plans = plans_of(task, variant, options_from(training), features=features, depth=depth, steps=steps)
    ((name, (net, plan)),) = plans.items()
    how = plan.recipe
    legs = legs_of(
        _settings_in(out) if resume else None, name=how.optimizer, schedule=how.schedule,
        learning_rate=how.learning_rate, steps=steps, further=further,
    )  # fmt: skip
    keywords = plan.keywords(steps) | {"optimizer": optimizer_of(how, legs)}
    warned, numbers = check_derivatives(task, {name: net}), numbers_of(net)
    first, shuffles = jax.random.split(jax.random.key(seed))
    with record.results_folder(out, overwrite=overwrite, resume=resume) as folder:
        x = first_row(task)[0]
        apply, params = init(net, first, x) if start is None else _started(start, net)
        settings = {
            "features": numbers["features"], "depth": numbers["depth"], "steps": steps,
            **plan.described(task), "learning_rate": legs[0]["learning_rate"], "legs": legs, "seed": seed,
            "start": None if start is None else str(start) if not isinstance(start, Fitted) else "a network at hand",
        }  # fmt: skip
        described = {
            "network": describe(net), "numbers": numbers, "settings": settings, "warnings": warned,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        }  # fmt: skip
        results = _Results(folder, task, described)
        options = {} if folder is None else _kept_in(folder, overwrite, resume, record_kernel)
        results.begin()
        run = fit(
            task.observe(apply), params, **keywords | _data_of(task, plan.rows, shuffles), key=shuffles, loss=task.loss,
            data_range=task.data_range, validation=task.heldout, progress=progress, resume=_resumes(overwrite, legs),
            **options,
        )  # fmt: skip
        context = Context(net, x.shape[1], task, described["network"])
        fitted = Fitted(run, {}, None, apply=trained(apply, run), context=context)
        if run.status == "interrupted":
            return results.trained(fitted)
        return results.complete(fitted, progress and (lambda done, rows: progress(steps, steps, _share(done, rows))))


def summary_of(task: Task, net: nn.Module, batch_size: int | None) -> str:
    """Return what will be fitted by how much: "photo.png 64 × 48; 1,219 parameters for 9,216 values"."""
    described, x = task.describe(), first_row(task)[0]
    model = jax.eval_shape(lambda key: init(net, key, x)[1], jax.random.key(0))
    parameters, values = sum(leaf.size for leaf in jax.tree.leaves(model)), described["values"]
    batch = "" if batch_size is None else f" by {batch_size:,} {described['noun']} a step"
    text = f"{described['summary']}{batch}; {parameters:,} parameters for {values:,} values"
    return f"{text}: more parameters than values" if parameters > values else text


def kernel_plan(task: Task, net: nn.Module) -> Plan:
    """Return what one kernel costs that ``fit_task(record_kernel=True)`` takes, as :func:`ntk_inr.explain` plans it."""
    x = jnp.asarray(task.rows(np.arange(min(task.n, _KERNEL_ROWS)))[0])
    apply, params = init(net, jax.random.key(0), x)
    return explain(task.observe(apply), params, x)


def solver_plan(task: Task, net: nn.Module, plan: TrainingPlan) -> SolverPlan | None:
    """Return what a step of ``ni.gauss_newton`` solves, None of other optimizers."""
    solves = settings_of(plan.optimizer(1))
    if solves is None:
        return None
    x = jnp.asarray(task.rows(np.arange(1))[0])
    apply, params = jax.eval_shape(lambda: init(net, jax.random.key(0), x))
    c = jax.eval_shape(task.observe(apply), params, x).shape[1]
    return solves.plan(params, plan.rows or task.n, c)


class _Results:
    """Write what comes of a training to its folder, each part as soon as it is there; nothing where there is none."""

    def __init__(self, folder: Path | None, task: Task, described: Mapping[str, Any]) -> None:
        self.folder, self.task = folder, task
        self.content = {"schema": FIT, "task": describe_task(task), **described, "environment": environment()}
        self.earlier = None if folder is None else _results_in(folder)
        if folder is not None and self.earlier is not None:
            _check_same(folder, self.earlier, self.content)

        self.saved = None if folder is None else folder / f"reconstruction{suffix_of(task.kind)}"

    def begin(self) -> None:
        """Refuse what the end would fail over; write what is asked for, beside the scores of an earlier part."""
        check: Any = getattr(self.task, "check", None)  # of tasks of this package
        if check is not None:
            check(out=self.saved, overwrite=True)
        if self.folder is None:
            return
        fresh = {"status": "running", "steps": 0, "scores": {}, "files": {}}
        self._write({**(self.earlier or fresh), **self.content})

    def trained(self, fitted: Fitted) -> Fitted:
        """Keep the network."""
        if self.folder is None:
            return fitted
        run = fitted.run
        self.content |= {
            "status": run.status, "steps": run.steps, "seconds": float(run.history["seconds"][-1]), "scores": {},
            "baselines": [], "files": {},
        }  # fmt: skip
        files = {"network": keep(network_in(self.folder), fitted), "result": self._write(self.content)}
        return dataclasses.replace(fitted, files=Record(files))

    def complete(self, fitted: Fitted, progress: Callable[[int, int], None] | None) -> Fitted:
        """Keep the network, then score, draw and write what it reconstructs."""
        task, fitted = self.task, self.trained(fitted)
        with self._network_is_kept():
            reconstruction = _reconstructed(task, fitted, self.saved, progress)
            fitted = dataclasses.replace(
                fitted, reconstruction=reconstruction, scores=own_scores(task, reconstruction),
                baselines=baselines_of(task),
            )  # fmt: skip
            if self.folder is None or self.saved is None:
                return fitted
            self.content |= {"scores": fitted.scores, "baselines": fitted.baselines}
            self._write(self.content)
            save_figure(task.figure(reconstruction), self.folder / "figure", "png")
            files = {"figure": self.folder / "figure.png", "reconstruction": self.saved}
            self._write(self.content | {"files": {name: path.name for name, path in files.items()}})
        return dataclasses.replace(fitted, files=Record({**files, **fitted.files}))

    @contextlib.contextmanager
    def _network_is_kept(self) -> Iterator[None]:
        """Say with an error inside what is not lost."""
        try:
            yield
        except Exception as error:
            if self.folder is not None:
                error.add_note(
                    f"The network is trained and kept in {str(self.folder)!r}; the same call with resume=True does the "
                    "rest."
                )
            raise

    def _write(self, content: Mapping[str, Any]) -> Path:
        assert self.folder is not None
        record.write_json(self.folder / record.RESULTS, content)
        return self.folder / record.RESULTS


def _share(done: int, rows: int) -> dict[str, float]:
    return {"reconstructed": done / rows}


def _reconstructed(task: Task, fitted: Fitted, saved: Path | None, progress: Callable[[int, int], None] | None) -> Any:
    """Return what a task makes of a network, written to ``saved`` where that is given."""
    whole: Any = task.reconstruct
    known = inspect.signature(whole).parameters  # of a class of the user's own perhaps the network alone
    options = {"out": saved, "overwrite": True, "progress": progress} if "overwrite" in known else {}
    reconstruction = whole(fitted, **options)
    if saved is not None and not options:
        task.save(reconstruction, saved, overwrite=True)
    return reconstruction


def _started(start: Any, net: nn.Module) -> tuple[Any, Any]:
    """Return the network of another run, or say that it is another one."""
    found = start if isinstance(start, Fitted) else load_fit(start, net=net)
    kept, wanted = found.context.text if found.context else "", describe(net)
    if kept != wanted:
        raise ValueError(f"start= holds {kept}, and the network to train is {wanted}; expected the same one.")
    return found.apply, found.params


def _data_of(task: Task, batch_size: int | None, key: jax.Array) -> dict[str, Any]:
    """Return what ``fit`` takes its rows from: arrays, or by the step where these would be large."""
    if batch_size is not None and bytes_of_rows(task) > IN_MEMORY:
        rows = shuffled(task.rows, task.n, batch_size, key, name=task.digest)
        return {"data": rows, "batch_size": None}
    return {"x": jnp.asarray(task.x), "y": jnp.asarray(task.y), "batch_size": batch_size}


def _resumes(overwrite: bool, legs: list[Leg]) -> Any:
    """Return how ``fit`` takes up what the folder holds."""
    return "further" if len(legs) > 1 and not overwrite else not overwrite


def _results_in(folder: Path) -> dict[str, Any] | None:
    """Return the results of an earlier part of a fit, None where there are none; refuse those of something else."""
    if not (folder / record.RESULTS).exists():
        return None
    return record.read_results(folder, FIT, what="a fit", writer="ntk-inr fit")


def _check_same(folder: Path, earlier: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise where a folder holds a fit of another network or task, or with other settings, but for how long it is."""
    kept, asked = (
        {"network": content["network"], "task": content["task"]["digest"], **content["settings"]}
        for content in (earlier, wanted)
    )
    both = [name for name in asked if name in kept and name not in ("steps", "legs", "stop_at", "report_every")]
    differ = [f"{name} was {kept[name]!r}, now {asked[name]!r}" for name in both if kept[name] != asked[name]]
    if differ:
        raise ValueError(
            f"{str(folder)!r} holds a fit with other settings ({'; '.join(differ)}); resume with the same ones, or "
            "choose another folder."
        )


def _settings_in(out: str | Path | None) -> dict[str, Any] | None:
    earlier = None if out is None else _results_in(Path(out))
    return None if earlier is None else earlier["settings"]


def _kept_in(folder: Path, overwrite: bool, resume: bool, record_kernel: bool) -> dict[str, Any]:
    """Return the options of a training that keeps its states and its curve in a folder."""
    checkpoints, network = folder / "checkpoints", network_in(folder)
    if resume and not checkpoints.exists() and network.with_name(f"{network.name}.json").exists():
        raise FileNotFoundError(
            f"{str(folder)!r} holds a trained network, but not the checkpoints that its training would go on from; "
            f"choose another folder and start={str(folder)!r}, or overwrite=True to begin anew."
        )
    points = _KERNEL_ROWS if record_kernel else 0
    recorder = Recorder(points, jsonl=folder / "history.jsonl", overwrite=overwrite)
    return {"checkpoint": checkpoints, "overwrite": overwrite, "recorder": recorder}
