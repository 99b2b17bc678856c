"""The loop around the fused steps: reports, checkpoints, records, and when to stop."""

from __future__ import annotations

import bisect
import contextlib
import time
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr.kernels.api import ntk
from ntk_inr.spectra.dense import moments
from ntk_inr.training.course import HIDDEN, Course, Row
from ntk_inr.training.curves import psnr
from ntk_inr.training.data import Batch
from ntk_inr.training.interrupts import Interrupts
from ntk_inr.training.options import Options, subset
from ntk_inr.training.result import FitResult, Status
from ntk_inr.training.run import Run, prepare
from ntk_inr.training.saver import Saver
from ntk_inr.training.second_order import has_stalled
from ntk_inr.training.steps import evaluate

_TICK_SECONDS = 0.5  # between calls of ``progress``


def train(apply: Any, params: Any, data: Any, options: Options, *, seeds: int | None) -> list[FitResult]:
    """Train as ``options`` say and return one result a seed: fused steps, reports and checkpoints between them."""
    with contextlib.ExitStack() as stack:
        run = prepare(apply, params, data, options, seeds)
        if run.feed is not None:
            stack.callback(run.feed.close)
        interrupts = stack.enter_context(Interrupts(options.checkpoint is not None))
        saver = stack.enter_context(Saver(run))
        course = saver.begin()
        course.state = run.advance(course.state, course.done, course.done)  # compiles
        stops, ticked = report_steps(options), 0.0
        while (stop := _next_report(course, stops, options)) is not None:
            saver.after(course)
            while course.done < stop and not interrupts.received:
                until = saver.next(course.done, stop)
                start = time.perf_counter()
                state = run.advance(course.state, course.done, until)
                took = time.perf_counter() - start
                saver.timed(until - course.done, took)
                course.stepped(state, until, took)
                saver.after(course)
                if options.progress is not None and time.monotonic() - ticked > _TICK_SECONDS and until < stop:
                    options.progress(until, options.steps, course.figures)
                    ticked = time.monotonic()
            if interrupts.received and course.done < stop:
                saver.save(course)
                course.rows.append(report(run, course, course.done))
                break
            course.report(report(run, course, stop), stop)
            saver.report(course.rows[-1])
            if options.progress is not None:
                options.progress(stop, options.steps, course.figures)
        else:
            saver.save(course)
            interrupts.received = None  # it came too late to stop anything
    return [_result(run, apply, course, seed, bool(interrupts.received)) for seed in range(run.count)]


def report(run: Run, course: Course, done: int) -> Row:
    """Return the row of the history at step ``done``; what ends a run is judged on all rows."""
    options, seeds, state = run.options, run.seeds, course.state
    model = run.model(state)
    row = _scores(run, model, state.params, run.reported(done))
    above = row["loss"] > (course.rows[0]["loss"] if course.rows else row["loss"])
    stalled = np.broadcast_to(has_stalled(state.opt_state), above.shape)
    row |= {"alive": np.atleast_1d(state.alive), "above": above, "stalled": stalled}
    if run.everything is not None and (done == options.steps or _ended(row, options)):
        row |= _scores(run, model, state.params, run.everything)
    if options.validation is not None:
        scores = _scores(run, model, state.params, Batch(*options.validation))
        row |= {f"validation_{name}": column for name, column in scores.items()}
    if options.ntk_points is not None:
        at = run.sample.x[subset(len(run.sample.x), options.ntk_points)]
        models = [jax.tree.map(lambda leaf, s=s: leaf[s], (model, state.params)) for s in range(seeds or 0)]
        kernels = [moments(ntk(a, p, at)) for a, p in models or [(model, state.params)]]
        for name in ("mean", "variance", "cv"):
            row[f"ntk_{name}"] = np.array([float(getattr(m, name)) for m in kernels])
    row["step"] = np.minimum(np.atleast_1d(state.steps), done)
    row["seconds"] = np.full(run.count, course.seconds / run.count)
    return row


def report_steps(options: Options) -> list[int]:
    """Return the steps to report at: 0, each ``report_every``-th or some 40 in geometric progression, and the last."""
    steps, every = options.steps, options.report_every
    between = np.round(np.geomspace(1, steps, 40)) if every is None else np.arange(every, steps, every)
    return np.unique(np.concatenate([[0], between, [steps]])).astype(int).tolist()


def _next_report(course: Course, stops: list[int], options: Options) -> int | None:
    """Return the step of the next report, None where the run has ended."""
    following = bisect.bisect_right(stops, course.reported)
    if following == len(stops) or (course.rows and _ended(course.rows[-1], options)):
        return None
    return stops[following]


def _scores(run: Run, model: Partial, params: Any, batch: Batch) -> Row:
    evaluation = evaluate(model, params, *batch[:3], program=run.program)
    row = {"loss": np.atleast_1d(evaluation.loss)}
    if evaluation.mse is not None:
        row["psnr"] = psnr(np.atleast_1d(evaluation.mse), run.options.data_range)
    return row


def _reached(row: Row, options: Options) -> Any:
    if options.stop_at is None:
        return np.zeros(len(row["alive"]), bool)
    return row["psnr"] >= options.stop_at


def _ended(row: Row, options: Options) -> bool:
    return bool(np.all(_reached(row, options) | ~row["alive"] | row["stalled"]))


def _result(run: Run, apply: Any, course: Course, seed: int, interrupted: bool) -> FitResult:
    def own(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[seed], tree) if run.seeds else tree

    state, best, rows, options = own(course.state), own(course.best), course.rows, run.options
    kept = state if best is None else best
    if kept.model is not None:
        apply = kept.model
    elif run.seeds:
        apply = own(run.apply)
    status: Status = "finished" if bool(state.alive) else "diverged"
    if _reached(rows[-1], options)[seed]:
        status = "target reached"
    elif interrupted and bool(state.alive):
        status = "interrupted"
    elif status == "finished" and rows[-1]["stalled"][seed]:
        status = "stalled"
    elif status == "finished" and rows[-1]["above"][seed]:
        status = "ended above the start"
    taken = int(state.steps)
    losses = np.concatenate(course.losses, axis=-1) if course.losses else np.zeros((run.count, 0))
    columns = {name: np.asarray([row[name][seed] for row in rows]) for name in rows[0] if name not in HIDDEN}
    # A seed that diverged has reports that repeat its last good step; the first of them is enough.
    first = np.unique(columns["step"], return_index=True)[1]
    return FitResult(
        params=kept.params,
        # A function of the user's is no pytree, which a result and all of its parts are.
        apply=_checks.as_partial(apply) if jax.tree_util.all_leaves([apply]) else apply,
        status=status,
        steps=taken,
        history={name: column[first] for name, column in columns.items()},
        losses=np.atleast_2d(losses)[seed, :taken],
        full_batch=run.whole_batch,
        data_range=options.data_range,
        loss=run.program.loss.name,
        every_step=run.whole_batch and run.program.loss.name == "mse" and state.model is None,
        best_step=None if best is None else int(best.step),
    )
