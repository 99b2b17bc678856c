"""Write checkpoints and records while a run goes, and say when the fused steps stop for them."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Any

import jax
import numpy as np
import optax

from ntk_inr._claims import claimed
from ntk_inr.training.checkpoint import OPTIMIZER, Store, program_digest, restore, tree_digest
from ntk_inr.training.course import HIDDEN, Course, Row, begun
from ntk_inr.training.data import Drawn, HostData
from ntk_inr.training.run import Run
from ntk_inr.training.second_order import settings_of
from ntk_inr.training.steps import CALL_STEPS, rows_gradient

# With checkpoints or progress, a fused call lasts about this long: a signal is seen soon, and steps that take memory do
# not fetch it from the system each on its own, which can take half of their time again.
_CALL_SECONDS = 2.0


class Saver:
    """Save checkpoints and record kernels of a run where its options ask for them; else every method does nothing."""

    def __init__(self, run: Run) -> None:
        self._run, self._options, self._recorder = run, run.options, run.options.recorder
        self._store: Store | None = None
        self._open = contextlib.ExitStack()
        self._by_steps = isinstance(self._options.checkpoint_every, int | np.integer)
        self._saved_step, self._saved_time = -1, time.monotonic()
        self._length = 1  # steps of the next fused call

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def begin(self) -> Course:
        """Return the course to go on from."""
        run, options = self._run, self._options
        course, saved, lines = begun(run.start, options.keep, run.seeds), None, None
        if options.checkpoint is not None:
            self._store = Store(options.checkpoint, options.checkpoint_keep, _identity(run))
            self._store.folder.mkdir(parents=True, exist_ok=True)
            self._open.enter_context(claimed(self._store.folder))
            self._open.callback(self._store.close)
            saved = self._store.find(options.resume, options.overwrite, options.steps)
        if saved is not None:
            course.state, course.best = restore(saved, (course.state, course.best))
            course.done, course.seconds = saved.meta["step"], saved.meta["seconds"]
            course.reported, lines = saved.meta["reported"], saved.meta["records"]
            if "losses" in saved.history:
                course.losses = [saved.history.pop("losses")]
            course.rows = [{name: c[i] for name, c in saved.history.items()} for i in range(saved.meta["rows"])]
            self._saved_step = course.done
        if self._recorder is not None:
            self._open.callback(self._recorder.close)
            first, (x, y, *_) = run.start, run.sample
            self._recorder.begin(run.model(first), first.params, x, y, run.program.loss, options.steps, lines)
        if self._store is not None:
            self._store.clear(saved)  # after everything that may refuse the run
        self.save(course)  # before the record's file, which it then belongs to
        if self._recorder is not None:
            self._recorder.open(course.done)
        return course

    def next(self, done: int, stop: int) -> int:
        """Return the step up to which the next fused call goes from ``done``, at most ``stop``."""
        stop = min(stop, done + CALL_STEPS)
        if self._recorder is not None:
            stop = min(stop, self._recorder.next(done))
        if self._store is not None and self._by_steps:
            every = int(self._options.checkpoint_every)
            stop = min(stop, (done // every + 1) * every)
        watched = self._store is not None or self._options.progress is not None
        return min(stop, done + self._length) if watched else stop

    def timed(self, steps: int, took: float) -> None:
        """Set the length of the next fused call from one of ``steps`` steps that took ``took`` seconds."""
        self._length = max(1, min(4 * steps, int(_CALL_SECONDS * steps / took)))

    def after(self, course: Course) -> None:
        """Record and save what is due."""
        if self._recorder is not None:
            self._recorder.record(course.done, self._run.model(course.state), course.state.params)
        if self._store is None or course.done == self._saved_step:
            return
        every = self._options.checkpoint_every
        due = course.done % int(every) == 0 if self._by_steps else time.monotonic() - self._saved_time >= every
        if due:
            self.save(course)

    def report(self, row: Row) -> None:
        """Record a row of the history."""
        if self._recorder is not None:
            self._recorder.report({name: column[0].item() for name, column in row.items() if name not in HIDDEN})

    def save(self, course: Course) -> None:
        """Write a checkpoint now, if they are asked for."""
        if self._store is None:
            return
        meta: dict[str, Any] = {
            "rows": len(course.rows), "seconds": course.seconds, "reported": course.reported,
            "records": None if self._recorder is None else self._recorder.lines(),
        }  # fmt: skip
        self._store.save(course.done, (course.state, course.best), course.columns, meta)
        self._saved_step, self._saved_time = course.done, time.monotonic()


def _identity(run: Run) -> dict[str, Any]:
    """Return digests and settings that identify the run, by the names that a message calls them."""
    options, start = run.options, run.start
    apply, state = jax.tree.map(lambda leaf: leaf[0], (run.apply, start)) if run.seeds else (run.apply, start)

    def gradient(apply: Any, params: Any, model: Any, rows: Any) -> Any:
        state = start._replace(params=params, model=model, opt_state=None)
        return rows_gradient(apply, state, rows, program=run.program)[:2]

    return {
        "parameters at the start": tree_digest((run.apply, start.params)),
        "data": [_data_digest(run), tree_digest(options.validation)],
        "key": tree_digest(run.keys),
        "settings": [
            options.batch_size, options.sampling, options.microbatch, options.stop_at, options.report_every,
            options.keep, options.ntk_points, options.data_range,
            options.loss if isinstance(options.loss, str) else "callable",
            None if options.recorder is None else options.recorder.settings, run.seeds,
            None if run.program.mesh is None else list(run.program.mesh.devices.shape),
        ],
        "model or loss (or the version of JAX)": program_digest(gradient, apply, state.params, state.model, run.sample),
        OPTIMIZER: _optimizer_digest(run.program.optimizer, state),
    }  # fmt: skip


def _data_digest(run: Run) -> str:
    """Return a digest of what each step's rows are."""
    if isinstance(run.data, HostData):
        return f"{run.data.name} {jax.tree.map(lambda part: part.shape, run.sample)}"
    if isinstance(run.data, Drawn):
        return program_digest(lambda data, key: data.batch(key, 0, None), run.data, jax.random.key(0))
    return tree_digest((run.data.x, run.data.y))


def _optimizer_digest(optimizer: Any, state: Any) -> str:
    solves = settings_of(optimizer)
    if solves is not None:
        return str(solves)
    return program_digest(functools.partial(_update, optimizer), state.params, state.opt_state)


def _update(optimizer: Any, params: Any, opt_state: Any) -> Any:
    """Return an optimizer's step on a loss that any parameters have, which tells optimizers apart."""

    def loss(params: Any) -> Any:
        return optax.tree.norm(params, squared=True)

    value, gradient = jax.value_and_grad(loss)(params)
    extra = {}
    if isinstance(optimizer, optax.GradientTransformationExtraArgs):
        extra = {"value": value, "grad": gradient, "value_fn": loss}
    return optimizer.update(gradient, opt_state, params, **extra)
