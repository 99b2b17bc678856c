"""Write checkpoints and records while a run goes, and say when the fused steps stop for them."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Any

import jax
import numpy as np

from ntk_inr._claims import claimed
from ntk_inr.training.checkpoint import Store, program_digest, restore, tree_digest
from ntk_inr.training.run import Run
from ntk_inr.training.steps import State, advance

Row = dict[str, np.ndarray]

# With checkpoints, a fused call lasts about this long, so that a signal is seen soon.
_CALL_SECONDS = 0.25


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

    def begin(self) -> tuple[State, int, float, list[Row]]:
        """Return state, steps done, seconds and rows of the history to go on from."""
        run, options = self._run, self._options
        state, done, seconds, rows, lines = run.start, 0, 0.0, [], None
        saved = None
        if options.checkpoint is not None:
            self._store = Store(options.checkpoint, options.keep, _identity(run))
            self._store.folder.mkdir(parents=True, exist_ok=True)
            self._open.enter_context(claimed(self._store.folder))
            self._open.callback(self._store.close)
            saved = self._store.find(options.resume, options.overwrite)
        if saved is not None:
            state = restore(saved, run.start)
            done, seconds, lines = saved.meta["step"], saved.meta["seconds"], saved.meta["records"]
            rows = [{name: column[i] for name, column in saved.history.items()} for i in range(saved.meta["rows"])]
            self._saved_step = done
        if self._recorder is not None:
            self._open.callback(self._recorder.close)
            first = run.start
            self._recorder.begin(run.model(first), first.params, run.x, run.y, run.program.loss, options.steps, lines)
        if self._store is not None:
            self._store.clear(saved)  # after everything that may refuse the run
        self.save(state, done, seconds, rows)  # before the record's file, which it then belongs to
        if self._recorder is not None:
            self._recorder.open(done)
        return state, done, seconds, rows

    def next(self, done: int, stop: int) -> int:
        """Return the step up to which the next fused call goes from ``done``, at most ``stop``."""
        if self._recorder is not None:
            stop = min(stop, self._recorder.next(done))
        if self._store is None:
            return stop
        if self._by_steps:
            every = int(self._options.checkpoint_every)
            stop = min(stop, (done // every + 1) * every)
        return min(stop, done + self._length)

    def timed(self, steps: int, took: float) -> None:
        """Set the length of the next fused call from one of ``steps`` steps that took ``took`` seconds."""
        self._length = max(1, min(4 * steps, int(_CALL_SECONDS * steps / took)))

    def after(self, state: State, done: int, seconds: float, rows: list[Row]) -> None:
        """Record and save what is due after ``done`` steps."""
        if self._recorder is not None:
            self._recorder.record(done, self._run.model(state), state.params)
        if self._store is None or done == self._saved_step:
            return
        every = self._options.checkpoint_every
        due = done % int(every) == 0 if self._by_steps else time.monotonic() - self._saved_time >= every
        if due:
            self.save(state, done, seconds, rows)

    def report(self, row: Row) -> None:
        """Record a row of the history."""
        if self._recorder is not None:
            self._recorder.report({name: column[0].item() for name, column in row.items() if name != "alive"})

    def save(self, state: State, done: int, seconds: float, rows: list[Row]) -> None:
        """Write a checkpoint now, if they are asked for."""
        if self._store is None:
            return
        history = {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
        leaves = jax.tree.leaves(state)
        meta: dict[str, Any] = {"leaves": len(leaves), "rows": len(rows), "seconds": seconds, "records": None}
        if self._recorder is not None:
            meta["records"] = self._recorder.lines()
        self._store.save(done, leaves, history, meta)
        self._saved_step, self._saved_time = done, time.monotonic()


def _identity(run: Run) -> dict[str, Any]:
    """Return digests and settings that identify the run, by the names that a message calls them."""
    options, start = run.options, run.start
    step = functools.partial(advance, program=run.program)
    return {
        "parameters at the start": tree_digest((run.apply, start.params)),
        "data": tree_digest((run.x, run.y, options.validation)),
        "key": tree_digest(run.keys),
        "settings": [
            options.steps, options.batch_size, options.sampling, options.microbatch, options.target_psnr,
            options.ntk_points, options.data_range, options.loss if isinstance(options.loss, str) else "callable",
            None if options.recorder is None else options.recorder.settings, run.seeds,
            None if run.program.mesh is None else list(run.program.mesh.devices.shape),
        ],
        "model, loss or optimizer (or the version of JAX)": program_digest(
            step, run.apply, start, run.keys, run.limit, run.x, run.y, 0, 0
        ),
    }  # fmt: skip
