"""The loop around the fused steps: reports, checkpoints, records, and when to stop."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr.kernels.api import ntk
from ntk_inr.spectra.dense import moments
from ntk_inr.training.curves import psnr
from ntk_inr.training.interrupts import Interrupts
from ntk_inr.training.options import Options, subset
from ntk_inr.training.result import FitResult, Status
from ntk_inr.training.run import Run, prepare
from ntk_inr.training.saver import Saver
from ntk_inr.training.steps import State, evaluate


def train(apply: Any, params: Any, x: Any, y: Any, options: Options, *, seeds: int | None) -> list[FitResult]:
    """Train as ``options`` say and return one result a seed: fused steps, reports and checkpoints between them."""
    run = prepare(apply, params, x, y, options, seeds)
    with Interrupts(options.checkpoint is not None) as interrupts, Saver(run) as saver:
        state, done, seconds, rows = saver.begin()
        state = run.advance(state, done, done)  # compiles
        stops = report_steps(options.steps)
        while not (rows and (len(rows) == len(stops) or _ended(rows[-1], options))):
            stop = stops[len(rows)]
            saver.after(state, done, seconds, rows)
            while done < stop and not interrupts.received:
                until = saver.next(done, stop)
                start = time.perf_counter()
                state = run.advance(state, done, until)
                took = time.perf_counter() - start
                saver.timed(until - done, took)
                seconds, done = seconds + took, until
                saver.after(state, done, seconds, rows)
            if interrupts.received and done < stop:
                saver.save(state, done, seconds, rows)
                rows = [*rows, report(run, state, done, seconds)]
                break
            rows.append(report(run, state, stop, seconds))
            saver.report(rows[-1])
            if options.progress is not None:
                options.progress(stop, options.steps)
        else:
            saver.save(state, done, seconds, rows)
            interrupts.received = None  # it came too late to stop anything
    return [_result(run, apply, state, rows, seed, bool(interrupts.received)) for seed in range(run.count)]


def report(run: Run, state: State, done: int, seconds: float) -> dict[str, np.ndarray]:
    """Return one row of the history at step ``done``: columns by name, each with one entry a seed."""
    options, seeds, model = run.options, run.seeds, run.model(state)
    row = _scores(run, model, state.params, run.x, run.y)
    if options.validation is not None:
        scores = _scores(run, model, state.params, *options.validation)
        row |= {f"validation_{name}": column for name, column in scores.items()}
    if options.ntk_points is not None:
        at = run.x[subset(len(run.x), options.ntk_points)]
        models = [jax.tree.map(lambda leaf, s=s: leaf[s], (model, state.params)) for s in range(seeds or 0)]
        kernels = [moments(ntk(a, p, at)) for a, p in models or [(model, state.params)]]
        for name in ("mean", "variance", "cv"):
            row[f"ntk_{name}"] = np.array([float(getattr(m, name)) for m in kernels])
    row["step"] = np.minimum(np.atleast_1d(state.steps), done)
    row["seconds"] = np.full(run.count, seconds / run.count)
    row["alive"] = np.atleast_1d(state.alive)
    return row


def report_steps(steps: int) -> list[int]:
    """Return the steps to report at: 0, some 40 logarithmically spaced ones, and the last."""
    return np.unique(np.append(0, np.round(np.geomspace(1, steps, 40)))).astype(int).tolist()


def _scores(run: Run, model: Partial, params: Any, x: Array, y: Array) -> dict[str, np.ndarray]:
    evaluation = evaluate(model, params, x, y, program=run.program)
    row = {"loss": np.atleast_1d(evaluation.loss)}
    if evaluation.mse is not None:
        row["psnr"] = psnr(np.atleast_1d(evaluation.mse), run.options.data_range)
    return row


def _reached(row: dict[str, np.ndarray], options: Options) -> Any:
    if options.target_psnr is None:
        return np.zeros(len(row["step"]), bool)
    return row["psnr"] >= options.target_psnr


def _ended(row: dict[str, np.ndarray], options: Options) -> bool:
    return bool(np.all(_reached(row, options) | ~row["alive"]))


def _result(
    run: Run, apply: Any, state: State, rows: list[dict[str, np.ndarray]], seed: int, interrupted: bool
) -> FitResult:
    own = jax.tree.map(lambda leaf: leaf[seed], state) if run.seeds else state
    if own.model is not None:
        apply = own.model
    elif run.seeds:
        apply = jax.tree.map(lambda leaf: leaf[seed], run.apply)
    status: Status = "finished" if bool(own.alive) else "diverged"
    if _reached(rows[-1], run.options)[seed]:
        status = "target reached"
    elif interrupted and bool(own.alive):
        status = "interrupted"
    elif status == "finished" and rows[-1]["loss"][seed] > rows[0]["loss"][seed]:
        status = "ended above the start"
    taken = int(own.steps)
    columns = {name: np.asarray([row[name][seed] for row in rows]) for name in rows[0] if name != "alive"}
    # A seed that diverged has reports that repeat its last good step; the first of them is enough.
    kept = np.unique(columns["step"], return_index=True)[1]
    options, whole = run.options, run.options.batch_size is None
    return FitResult(
        params=own.params,
        # A function of the user's is no pytree, which a result and all of its parts are.
        apply=_checks.as_partial(apply) if jax.tree_util.all_leaves([apply]) else apply,
        status=status,
        steps=taken,
        history={name: column[kept] for name, column in columns.items()},
        losses=np.asarray(own.losses)[:taken],
        full_batch=whole,
        data_range=options.data_range,
        loss=run.program.loss.name,
        every_step=whole and run.program.loss.name == "mse" and own.model is None,
    )
